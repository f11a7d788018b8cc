//! Image archives made on the spot.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// One entry of a layer.
pub enum File<'a> {
    Dir(&'a str, u32),
    Text(&'a str, &'a str, u32),
    Copy(&'a str, &'a Path),
    Link(&'a str, &'a str),
}

pub fn layer(files: &[File<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        match file {
            File::Dir(path, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                builder.append_data(&mut header, path, &b""[..]).unwrap();
            }
            File::Text(path, text, mode) => {
                header.set_mode(*mode);
                header.set_size(text.len() as u64);
                builder.append_data(&mut header, path, text.as_bytes()).unwrap();
            }
            File::Copy(path, from) => {
                let bytes = std::fs::read(from).unwrap();
                header.set_mode(0o755);
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, &bytes[..]).unwrap();
            }
            File::Link(path, to) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                builder.append_link(&mut header, path, to).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An OCI layout as tar.
pub fn oci(name: &str, config: Value, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    oci_with(name, config, layers, &diff_ids)
}

pub fn oci_with(name: &str, config: Value, layers: &[Vec<u8>], diff_ids: &[String]) -> Vec<u8> {
    let config = json!({"architecture": arch(), "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": []})
    .to_string();
    let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect::<Vec<_>>()})
    .to_string();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let mut files: Vec<(String, Vec<u8>)> = vec![
        ("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".into(), index.into_bytes()),
    ];
    for blob in layers.iter().cloned().chain([config.into_bytes(), manifest.into_bytes()]) {
        files.push((format!("blobs/sha256/{}", sha256(&blob)), blob));
    }
    tar_of(&files)
}

pub fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

pub const APPLETS: &[&str] = &[
    "sh", "ls", "cat", "echo", "sleep", "id", "env", "hostname", "ps", "kill", "head", "wc", "test", "mount",
    "dd", "yes", "nc", "tty", "stty", "unshare", "pwd", "ip", "touch", "true", "false", "ulimit", "date",
    "grep", "seq", "tail", "mkdir",
];

/// busybox with a shell and a user `web`.
pub fn busybox(name: &str) -> Vec<u8> {
    oci(
        name,
        json!({"Cmd": ["/bin/sh"], "Env": ["FROM_IMAGE=yes"], "WorkingDir": "/srv/here"}),
        &busybox_layers(),
    )
}

pub fn busybox_layers() -> Vec<Vec<u8>> {
    let mut files = vec![
        File::Dir("bin", 0o755),
        File::Copy("bin/busybox", Path::new("/bin/busybox")),
        File::Dir("tmp", 0o1777),
        File::Dir("run", 0o755),
        File::Dir("var", 0o755),
        File::Link("var/run", "/run"),
        File::Dir("etc", 0o755),
        File::Text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/tmp:/bin/sh\n", 0o644),
        File::Text("etc/group", "root:x:0:\nweb:x:34:\nlogs:x:50:web\n", 0o644),
        File::Text("etc/old", "old", 0o644),
        File::Dir("gone", 0o755),
        File::Text("gone/file", "hidden", 0o644),
        File::Text("bin/notexec", "x", 0o644),
    ];
    let links: Vec<String> = APPLETS.iter().map(|applet| format!("bin/{applet}")).collect();
    files.extend(links.iter().map(|link| File::Link(link, "busybox")));
    let top = [
        File::Text("etc/.wh.old", "", 0o644),
        File::Dir("gone", 0o755),
        File::Text("gone/.wh..wh..opq", "", 0o644),
        File::Text("gone/new", "new", 0o644),
    ];
    vec![layer(&files), layer(&top)]
}
