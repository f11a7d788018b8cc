//! Images on this node: manifests and configurations by digest, layers unpacked into content-addressed snapshots, names.
//!
//! ```text
//! blobs/sha256/<hex>          manifests and configurations
//! snapshots/<chain id>/fs     a layer, ready to be a lower directory of overlayfs
//! snapshots/<chain id>/layer.json
//! ingest/<uuid>/              imports in progress; removed at start
//! images.json                 what is complete, and its names
//! ```
//! A reader never sees half an image: layers appear by rename, and `images.json` is replaced after all of them.

mod archive;
mod pull;
pub(crate) mod reference;
pub(crate) mod rooted;
pub(crate) mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use orlop_cri::Image;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::unpack::{LayerSize, Limits, hex};
use crate::error::{Context, Result, RuntimeError};
use crate::files;

pub(crate) use pull::PullOptions;

/// Longest manifest or configuration, bytes.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Most entries of a layer.
const MAX_ENTRIES: u64 = 4_000_000;

/// One image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// `sha256:` of the configuration.
    pub id: String,
    /// `registry/repository:tag`.
    pub tags: BTreeSet<String>,
    /// `registry/repository@digest`.
    pub digests: BTreeSet<String>,
    /// Chain ids (hex), lowest first.
    pub layers: Vec<String>,
    /// Bytes of the layers, unpacked.
    pub size: u64,
    /// The `User` of the configuration.
    pub user: String,
}

impl ImageRecord {
    fn to_cri(&self) -> Image {
        let user = self.user.split(':').next().unwrap_or_default();
        let uid = if user.is_empty() { None } else { user.parse().ok() };
        Image {
            id: self.id.clone(),
            repo_tags: self.tags.iter().cloned().collect(),
            repo_digests: self.digests.iter().cloned().collect(),
            size: self.size,
            username: if uid.is_none() { user.to_owned() } else { String::new() },
            uid,
        }
    }

    /// What `imageID` shows for a container made from `reference`.
    pub(crate) fn image_ref(&self) -> String {
        self.digests.first().cloned().unwrap_or_else(|| self.id.clone())
    }
}

/// The store.
pub(crate) struct ImageStore {
    root: PathBuf,
    limits: Limits,
    index: Mutex<BTreeMap<String, ImageRecord>>,
    /// Read-held while layers are added, write-held while unused ones are removed.
    adding: tokio::sync::RwLock<()>,
}

impl ImageStore {
    /// Opens or makes the store; clears what a crash left half done.
    pub(crate) fn open(root: &Path, max_layer_bytes: u64) -> Result<ImageStore> {
        for directory in ["blobs/sha256", "snapshots", "ingest"] {
            files::make_dir(&root.join(directory))?;
        }
        let ingest = root.join("ingest");
        for entry in fs::read_dir(&ingest).context("list", &ingest)?.flatten() {
            files::remove_tree(&entry.path())?;
        }
        let records: Vec<ImageRecord> = files::read_json(&root.join("images.json"))?.unwrap_or_default();
        let index = records.into_iter().map(|record| (record.id.clone(), record)).collect();
        Ok(ImageStore {
            root: root.to_owned(),
            limits: Limits { bytes: max_layer_bytes, entries: MAX_ENTRIES },
            index: Mutex::new(index),
            adding: tokio::sync::RwLock::new(()),
        })
    }

    fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        Ok(self.root.join("blobs/sha256").join(sha256_hex(digest)?))
    }

    /// Directory of a layer.
    pub(crate) fn layer_path(&self, chain: &str) -> PathBuf {
        self.root.join("snapshots").join(chain).join("fs")
    }

    /// A fresh directory for an import or pull.
    fn staging(&self) -> Result<Staging> {
        let path = self.root.join("ingest").join(uuid::Uuid::new_v4().simple().to_string());
        files::make_dir(&path)?;
        Ok(Staging(path))
    }

    fn layer_size(&self, chain: &str) -> Result<Option<LayerSize>> {
        files::read_json(&self.root.join("snapshots").join(chain).join("layer.json"))
    }

    /// Unpacks a layer unless it is there; returns its chain id and size. `open` gives the layer's bytes when needed.
    fn add_layer(
        &self,
        below: &[String],
        diff_id: &str,
        staging: &Staging,
        open: impl FnOnce() -> Result<File>,
    ) -> Result<(String, LayerSize)> {
        let chain = chain_id(below.last().map(String::as_str), diff_id)?;
        if let Some(size) = self.layer_size(&chain)? {
            return Ok((chain, size));
        }
        let work = staging.0.join(format!("layer-{chain}"));
        let content = work.join("fs");
        files::make_dir(&content)?;
        set_mode(&content, 0o755)?;
        let lowers: Vec<PathBuf> = below.iter().rev().map(|chain| self.layer_path(chain)).collect();
        let (digest, size) = unpack::unpack(open()?, &content, &lowers, self.limits)?;
        if digest != diff_id {
            return Err(RuntimeError::BadImage(format!(
                "layer has digest {digest}, but the image's configuration names {diff_id}: the image is damaged"
            )));
        }
        files::write_json(&work.join("layer.json"), &size)?;
        crate::sys::sync_filesystem(&work).context("sync", &work)?;
        let target = self.root.join("snapshots").join(&chain);
        match fs::rename(&work, &target) {
            // Another import was quicker.
            Err(_) if self.layer_size(&chain)?.is_some() => {}
            result => result.context("rename", &target)?,
        }
        files::sync_dir(&self.root.join("snapshots"))?;
        Ok((chain, size))
    }

    /// Records a complete image under its names, which it takes from others.
    fn add_image(
        &self,
        config: &[u8],
        layers: Vec<(String, LayerSize)>,
        tags: &[String],
        digests: &[String],
    ) -> Result<String> {
        let id = digest_of(config);
        files::write_atomic(&self.blob_path(&id)?, config)?;
        let parsed = parse_config(config)?;
        let user = parsed.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
        let mut index = self.index.lock();
        let mut next = index.clone();
        for record in next.values_mut() {
            record.tags.retain(|tag| !tags.contains(tag));
            record.digests.retain(|digest| !digests.contains(digest));
        }
        let record = next.entry(id.clone()).or_insert_with(|| ImageRecord {
            id: id.clone(),
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            size: layers.iter().map(|(_, size)| size.bytes).sum(),
            layers: layers.into_iter().map(|(chain, _)| chain).collect(),
            user,
        });
        record.tags.extend(tags.iter().cloned());
        record.digests.extend(digests.iter().cloned());
        self.save(&next)?;
        *index = next;
        Ok(id)
    }

    fn save(&self, index: &BTreeMap<String, ImageRecord>) -> Result<()> {
        files::write_json(&self.root.join("images.json"), &index.values().collect::<Vec<_>>())
    }

    /// The image with this name, digest or id.
    pub(crate) fn find(&self, name: &str) -> Option<ImageRecord> {
        let index = self.index.lock();
        if let Some(record) = index.get(name).or_else(|| index.get(&format!("sha256:{name}"))) {
            return Some(record.clone());
        }
        let reference = reference::parse(name).ok()?;
        let found = match (reference::digested(&reference), reference::tagged(&reference)) {
            (Some(digest), _) => index.values().find(|record| record.digests.contains(&digest)),
            (None, Some(tag)) => index.values().find(|record| record.tags.contains(&tag)),
            (None, None) => None,
        };
        found.cloned()
    }

    /// All images, or the one that matches.
    pub(crate) fn list(&self, name: Option<&str>) -> Vec<Image> {
        match name {
            Some(name) => self.find(name).iter().map(ImageRecord::to_cri).collect(),
            None => self.index.lock().values().map(ImageRecord::to_cri).collect(),
        }
    }

    /// The configuration of an image.
    pub(crate) fn config(&self, id: &str) -> Result<ImageConfiguration> {
        let path = self.blob_path(id)?;
        parse_config(&fs::read(&path).context("read", &path)?)
    }

    /// Keeps all layers in place for as long as it is held.
    pub(crate) async fn hold(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.adding.read().await
    }

    /// Forgets an image with all its names. Layers go with [`collect`](Self::collect).
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let Some(record) = self.find(name) else { return Ok(()) };
        let mut index = self.index.lock();
        let mut next = index.clone();
        next.remove(&record.id);
        self.save(&next)?;
        *index = next;
        drop(index);
        let path = self.blob_path(&record.id)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove", &path),
            _ => Ok(()),
        }
    }

    /// Removes layers that neither an image nor one of `used` needs. Does nothing while layers are being added; the next
    /// call then does.
    pub(crate) fn collect(&self, used: &BTreeSet<String>) -> Result<()> {
        let Ok(_guard) = self.adding.try_write() else { return Ok(()) };
        let needed: BTreeSet<String> = self
            .index
            .lock()
            .values()
            .flat_map(|record| record.layers.clone())
            .chain(used.iter().cloned())
            .collect();
        let snapshots = self.root.join("snapshots");
        for entry in fs::read_dir(&snapshots).context("list", &snapshots)?.flatten() {
            if !entry.file_name().to_str().is_some_and(|name| needed.contains(name)) {
                // Renamed first, so that a crash leaves nothing that looks like a layer.
                let doomed = self.root.join("ingest").join(uuid::Uuid::new_v4().simple().to_string());
                fs::rename(entry.path(), &doomed).context("rename", &entry.path())?;
                files::remove_tree(&doomed)?;
            }
        }
        Ok(())
    }

    /// Bytes and inodes of all layers.
    pub(crate) fn usage(&self) -> LayerSize {
        let chains: BTreeSet<String> =
            self.index.lock().values().flat_map(|record| record.layers.clone()).collect();
        chains.iter().filter_map(|chain| self.layer_size(chain).ok().flatten()).fold(
            LayerSize::default(),
            |sum, size| LayerSize { bytes: sum.bytes + size.bytes, inodes: sum.inodes + size.inodes },
        )
    }
}

/// Removed with all it holds when dropped.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).context("set mode of", path)
}

fn parse_config(bytes: &[u8]) -> Result<ImageConfiguration> {
    serde_json::from_slice(bytes)
        .map_err(|error| RuntimeError::BadImage(format!("image configuration is not valid: {error}")))
}

/// `sha256:…` of `bytes`.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// The hex part of a sha256 digest; refuses anything that could be a path.
fn sha256_hex(digest: &str) -> Result<&str> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| {
            hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
        })
        .ok_or_else(|| RuntimeError::BadImage(format!("{digest:?} is not a sha256 digest")))
}

/// The chain id (hex) of a layer on top of another. Source: OCI image specification, config.md, "Layer ChainID".
fn chain_id(below: Option<&str>, diff_id: &str) -> Result<String> {
    let diff = sha256_hex(diff_id)?;
    Ok(match below {
        None => diff.to_owned(),
        Some(below) => hex(&Sha256::digest(format!("sha256:{below} sha256:{diff}"))),
    })
}

/// Reads a document of at most [`MAX_DOCUMENT`] bytes.
fn read_document(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).context("open", path)?;
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).context("read", path)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(RuntimeError::BadImage(format!(
            "a document of the image is larger than {MAX_DOCUMENT} bytes"
        )));
    }
    Ok(bytes)
}
