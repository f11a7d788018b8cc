//! Import of OCI layouts and Docker archives, as tar streams, compressed or not.
//!
//! The archive's files go into numbered files of a staging directory, so that no name in it becomes a path here.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::unpack::{Hashing, decompress};
use super::{ImageStore, Staging, digest_of, parse_config, read_document, reference};
use crate::error::{Context, Result, RuntimeError};

/// Most files of an archive.
const MAX_FILES: usize = 100_000;
/// Deepest nesting of indexes.
const MAX_DEPTH: usize = 4;

/// `manifest.json` of a Docker archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

struct StagedFile {
    path: PathBuf,
    digest: String,
}

/// The files of an archive by their names in it.
struct Staged {
    files: HashMap<PathBuf, StagedFile>,
    links: HashMap<PathBuf, PathBuf>,
}

impl ImageStore {
    /// Imports an archive; returns the names it brought.
    pub(crate) async fn import(
        self: &std::sync::Arc<Self>,
        archive: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<Vec<String>> {
        let _adding = self.adding.read().await;
        let store = std::sync::Arc::clone(self);
        let reader = StreamReader::new(archive.into_stream());
        let work = tokio::task::spawn_blocking(move || store.import_blocking(SyncIoBridge::new(reader)));
        work.await.map_err(|error| RuntimeError::BadImage(format!("import was cut short: {error}")))?
    }

    fn import_blocking(&self, archive: impl Read) -> Result<Vec<String>> {
        let staging = self.staging()?;
        let staged = stage(archive, &staging, self.limits.bytes)?;
        let mut names = Vec::new();
        if staged.find("index.json").is_some() {
            names = self.import_layout(&staged, &staging)?;
        }
        if names.is_empty() && staged.find("manifest.json").is_some() {
            names = self.import_docker(&staged, &staging)?;
        }
        if names.is_empty() {
            return Err(RuntimeError::BadImage(
                "the archive names no image: it needs index.json with the annotation org.opencontainers.image.ref.name \
                 (NAME:TAG) or io.containerd.image.name, or a Docker manifest.json with RepoTags"
                    .to_owned(),
            ));
        }
        Ok(names)
    }

    fn import_layout(&self, staged: &Staged, staging: &Staging) -> Result<Vec<String>> {
        let index: ImageIndex = staged.json("index.json")?;
        let mut names = Vec::new();
        for descriptor in index.manifests() {
            let Some(name) = name_of(descriptor) else { continue };
            let name = reference::parse(&name)?;
            let Some(manifest_digest) = staged.choose(descriptor, 0)? else { continue };
            let manifest: ImageManifest = staged.blob_json(&manifest_digest)?;
            let config = staged.read_blob(manifest.config().digest().as_ref())?;
            let layers: Vec<PathBuf> = manifest
                .layers()
                .iter()
                .map(|layer| staged.blob(layer.digest().as_ref()).map(|file| file.path.clone()))
                .collect::<Result<_>>()?;
            let tags: Vec<String> = reference::tagged(&name).into_iter().collect();
            let digest = format!("{}@{}", reference::repository(&name), descriptor.digest());
            names.extend(tags.iter().cloned());
            if tags.is_empty() {
                names.push(digest.clone());
            }
            self.assemble(&config, &layers, staging, &tags, &[digest])?;
        }
        Ok(names)
    }

    fn import_docker(&self, staged: &Staged, staging: &Staging) -> Result<Vec<String>> {
        let images: Vec<DockerImage> = staged.json("manifest.json")?;
        let mut names = Vec::new();
        for image in images {
            let tags = image.repo_tags.unwrap_or_default();
            let tags: Vec<String> = tags
                .iter()
                .map(|tag| Ok(reference::tagged(&reference::parse(tag)?)))
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .flatten()
                .collect();
            let config = read_document(&staged.file(&image.config)?.path)?;
            let layers: Vec<PathBuf> = image
                .layers
                .iter()
                .map(|layer| staged.file(layer).map(|file| file.path.clone()))
                .collect::<Result<_>>()?;
            self.assemble(&config, &layers, staging, &tags, &[])?;
            names.extend(tags);
        }
        Ok(names)
    }

    /// Unpacks the layers in order and records the image.
    pub(super) fn assemble(
        &self,
        config: &[u8],
        layers: &[PathBuf],
        staging: &Staging,
        tags: &[String],
        digests: &[String],
    ) -> Result<String> {
        let parsed = parse_config(config)?;
        let diff_ids = parsed.rootfs().diff_ids();
        if diff_ids.len() != layers.len() {
            return Err(RuntimeError::BadImage(format!(
                "the image has {} layers, but its configuration names {}",
                layers.len(),
                diff_ids.len()
            )));
        }
        let mut chains = Vec::new();
        let mut done = Vec::new();
        for (diff_id, path) in diff_ids.iter().zip(layers) {
            let (chain, size) =
                self.add_layer(&chains, diff_id, staging, || File::open(path).context("open", path))?;
            chains.push(chain.clone());
            done.push((chain, size));
        }
        self.add_image(config, done, tags, digests)
    }
}

/// The full name of an image in an index; a bare tag is none.
fn name_of(descriptor: &Descriptor) -> Option<String> {
    let annotations = descriptor.annotations().as_ref()?;
    if let Some(name) = annotations.get("io.containerd.image.name") {
        return Some(name.clone());
    }
    annotations
        .get("org.opencontainers.image.ref.name")
        .filter(|name| name.contains(['/', ':', '@']))
        .cloned()
}

/// Copies the archive's files into the staging directory.
fn stage(archive: impl Read, staging: &Staging, limit: u64) -> Result<Staged> {
    let unreadable = |error: std::io::Error| RuntimeError::BadImage(format!("not an image archive: {error}"));
    let stream = decompress(archive).map_err(unreadable)?;
    let mut tar = tar::Archive::new(stream);
    let mut staged = Staged { files: HashMap::new(), links: HashMap::new() };
    let mut total = 0_u64;
    for entry in tar.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let raw = entry.path_bytes().into_owned();
        let Some(name) = super::rooted::normalise(Path::new(std::ffi::OsStr::from_bytes(&raw))) else {
            return Err(RuntimeError::BadImage(format!(
                "archive entry {:?} leads out of the archive",
                String::from_utf8_lossy(&raw)
            )));
        };
        if staged.files.len() + staged.links.len() >= MAX_FILES {
            return Err(RuntimeError::BadImage(format!("archive has more than {MAX_FILES} files")));
        }
        let kind = entry.header().entry_type();
        if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            total = total.saturating_add(entry.size());
            if total > limit {
                return Err(RuntimeError::BadImage(format!("archive is larger than {limit} bytes")));
            }
            let path = staging.0.join(staged.files.len().to_string());
            let mut file = File::create(&path).context("create", &path)?;
            let mut hashing = Hashing::new(&mut entry);
            std::io::copy(&mut hashing, &mut file).context("write", &path)?;
            let digest = hashing.digest();
            staged.files.insert(name, StagedFile { path, digest });
        } else if kind.is_symlink() || kind.is_hard_link() {
            // Old Docker archives link equal layers to each other, relative to the link (symbolic) or the top (hard).
            let Some(target) = entry.link_name_bytes() else { continue };
            let target = Path::new(std::ffi::OsStr::from_bytes(&target)).to_owned();
            let base =
                if kind.is_symlink() { name.parent().unwrap_or(Path::new("")).join(target) } else { target };
            staged.links.insert(name, collapse(&base));
        }
    }
    Ok(staged)
}

/// Resolves `..` by text: these are keys, not paths.
fn collapse(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => drop(clean.pop()),
            std::path::Component::Normal(name) => clean.push(name),
            _ => {}
        }
    }
    clean
}

impl Staged {
    fn find(&self, name: &str) -> Option<&StagedFile> {
        let mut path = super::rooted::normalise(Path::new(name))?;
        for _ in 0..8 {
            if let Some(file) = self.files.get(&path) {
                return Some(file);
            }
            path = self.links.get(&path)?.clone();
        }
        None
    }

    fn file(&self, name: &str) -> Result<&StagedFile> {
        self.find(name)
            .ok_or_else(|| RuntimeError::BadImage(format!("archive lacks {name:?}, which it refers to")))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        let bytes = read_document(&self.file(name)?.path)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| RuntimeError::BadImage(format!("{name} of the archive is not valid: {error}")))
    }

    /// A blob, with its digest checked.
    fn blob(&self, digest: &str) -> Result<&StagedFile> {
        let hex = super::sha256_hex(digest)?;
        let file = self.file(&format!("blobs/sha256/{hex}"))?;
        if file.digest != digest {
            return Err(RuntimeError::BadImage(format!(
                "blob {digest} has content of digest {}: the archive is damaged",
                file.digest
            )));
        }
        Ok(file)
    }

    fn read_blob(&self, digest: &str) -> Result<Vec<u8>> {
        let bytes = read_document(&self.blob(digest)?.path)?;
        debug_assert_eq!(digest_of(&bytes), digest);
        Ok(bytes)
    }

    fn blob_json<T: serde::de::DeserializeOwned>(&self, digest: &str) -> Result<T> {
        serde_json::from_slice(&self.read_blob(digest)?).map_err(|error| {
            RuntimeError::BadImage(format!("blob {digest} of the archive is not valid: {error}"))
        })
    }

    /// The manifest for this machine behind a descriptor of a manifest or an index; `None` when there is none.
    fn choose(&self, descriptor: &Descriptor, depth: usize) -> Result<Option<String>> {
        let digest = descriptor.digest().to_string();
        let value: serde_json::Value = self.blob_json(&digest)?;
        if value.get("manifests").is_none() {
            return Ok(Some(digest));
        }
        if depth >= MAX_DEPTH {
            return Err(RuntimeError::BadImage("indexes of the archive are nested too deeply".to_owned()));
        }
        let index: ImageIndex = serde_json::from_value(value).map_err(|error| {
            RuntimeError::BadImage(format!("index {digest} of the archive is not valid: {error}"))
        })?;
        let ours = index.manifests().iter().filter(|candidate| fits(candidate));
        for candidate in ours {
            // Archives often hold only the blobs of one platform.
            if self.blob(candidate.digest().as_ref()).is_ok() {
                return self.choose(candidate, depth + 1);
            }
        }
        Err(RuntimeError::BadImage(format!("no image for linux/{} in the archive", architecture())))
    }
}

/// Go's name for this machine's architecture.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn fits(descriptor: &Descriptor) -> bool {
    descriptor.platform().as_ref().is_none_or(|platform| {
        platform.os().to_string() == "linux" && platform.architecture().to_string() == architecture()
    })
}
