//! A registry of a few lines, for pulls.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_cri::{AuthConfig, CriError, Runtime};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::archive::{arch, busybox_layers, sha256};
use crate::support::{Host, shell};

/// Path to (content type, body).
type Files = HashMap<String, (String, Vec<u8>)>;

/// Serves until the test ends; `password` makes it ask for basic authentication of `user`.
async fn serve(files: Files, password: Option<&'static str>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let files = Arc::new(files);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let files = files.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                    match stream.read(&mut buffer).await {
                        Ok(count) if count > 0 => request.extend_from_slice(&buffer[..count]),
                        _ => return,
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                let path = request.split(' ').nth(1).unwrap().split('?').next().unwrap().to_owned();
                // "user:secret" in base64.
                let allowed = password.is_none() || request.contains("Basic dXNlcjpzZWNyZXQ=");
                let (head, body) = if !allowed {
                    ("401 Unauthorized\r\nWww-Authenticate: Basic realm=\"test\"".to_owned(), Vec::new())
                } else if path == "/v2/" {
                    ("200 OK".to_owned(), b"{}".to_vec())
                } else if let Some((kind, body)) = files.get(&path) {
                    let digest = sha256(body);
                    (
                        format!("200 OK\r\nContent-Type: {kind}\r\nDocker-Content-Digest: sha256:{digest}"),
                        body.clone(),
                    )
                } else {
                    let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown", "detail": ""}]});
                    (
                        "404 Not Found\r\nContent-Type: application/json".to_owned(),
                        body.to_string().into_bytes(),
                    )
                };
                let head =
                    format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                stream.write_all(head.as_bytes()).await.unwrap();
                if !request.starts_with("HEAD") {
                    let _ = stream.write_all(&body).await;
                }
            });
        }
    });
    address
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// `app:1` behind an index, `app:arm` for another machine only, `app:bad` with a layer that is not what it says.
fn content() -> (Files, String) {
    let mut files = Files::new();
    let layers: Vec<Vec<u8>> =
        busybox_layers().iter().map(|layer| zstd::encode_all(&layer[..], 1).unwrap()).collect();
    let diff_ids: Vec<String> =
        busybox_layers().iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let config = json!({"architecture": arch(), "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": []})
    .to_string()
    .into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len()});
    let manifest = |layers: &[Vec<u8>]| {
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+zstd", layer))
            .collect();
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": layers})
            .to_string()
            .into_bytes()
    };
    let index = |manifest: &[u8], arch: &str| {
        let mut entry = descriptor(MANIFEST, manifest);
        entry["platform"] = json!({"architecture": arch, "os": "linux"});
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string().into_bytes()
    };
    let mut blob = |digest: String, bytes: &[u8]| {
        files.insert(
            format!("/v2/team/app/blobs/sha256:{digest}"),
            ("application/octet-stream".to_owned(), bytes.to_vec()),
        );
    };
    for bytes in layers.iter().chain([&config]) {
        blob(sha256(bytes), bytes);
    }
    let wrong = b"this layer lies about itself".to_vec();
    blob(sha256(&wrong), b"THIS layer lies about itself");
    let good = manifest(&layers);
    let bad = manifest(&[layers[0].clone(), wrong]);
    let list = index(&good, arch());
    let digest = sha256(&list);
    let mut named = |name: &str, kind: &str, bytes: &[u8]| {
        files.insert(format!("/v2/team/app/manifests/{name}"), (kind.to_owned(), bytes.to_vec()));
    };
    named("1", INDEX, &list);
    named(&format!("sha256:{digest}"), INDEX, &list);
    named(&format!("sha256:{}", sha256(&good)), MANIFEST, &good);
    named("arm", INDEX, &index(&good, "s390x"));
    named("bad", MANIFEST, &bad);
    (files, digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls() {
    let host = Host::new().await;
    let (files, digest) = content();
    let registry = serve(files, None).await;
    let id = host.rt().pull_image(&format!("{registry}/team/app:1"), None).await.unwrap();
    let image = host.rt().image_status(&id).await.unwrap().unwrap();
    assert_eq!(image.repo_tags, [format!("{registry}/team/app:1")]);
    assert_eq!(image.repo_digests, [format!("{registry}/team/app@sha256:{digest}")]);
    // Again, and by digest: the same.
    assert_eq!(host.rt().pull_image(&format!("{registry}/team/app:1"), None).await.unwrap(), id);
    assert_eq!(host.rt().pull_image(&image.repo_digests[0], None).await.unwrap(), id);
    let sandbox = host.sandbox().await;
    let mut config = shell("c", "echo pulled");
    config.image = image.repo_digests[0].clone();
    let (status, log) = host.run(&sandbox, config).await;
    assert_eq!(
        (log.as_str(), status.image_ref.as_str()),
        ("stdout:pulled\n", image.repo_digests[0].as_str())
    );
    let refused = async |name: &str, expected: &str| {
        let error = host.rt().pull_image(&format!("{registry}/team/app:{name}"), None).await.unwrap_err();
        assert!(matches!(error, CriError::ImagePull(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    refused("2", "not found").await;
    refused("arm", "failed to resolve reference").await;
    refused("bad", "failed to copy layer").await;
    assert_eq!(std::fs::read_dir(host.dir.path().join("root/images/ingest")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_with_credentials() {
    let host = Host::new().await;
    let registry = serve(content().0, Some("secret")).await;
    let name = format!("{registry}/team/app:1");
    let auth = |password: &str| {
        Some(AuthConfig { username: "user".into(), password: password.into(), registry_token: String::new() })
    };
    for wrong in [None, auth("guess")] {
        let error = host.rt().pull_image(&name, wrong).await.unwrap_err().to_string();
        assert!(
            error.contains("pull access denied, repository does not exist or may require authorization"),
            "{error}"
        );
    }
    host.rt().pull_image(&name, auth("secret")).await.unwrap();
}
