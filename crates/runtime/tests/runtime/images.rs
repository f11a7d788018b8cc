//! Imports, good and hostile.

use orlop_cri::{CriError, Runtime};
use serde_json::json;

use crate::archive::{File, busybox, busybox_layers, layer, oci, oci_with, sha256, tar_of};
use crate::support::{Host, IMAGE, shell};

#[tokio::test(flavor = "multi_thread")]
async fn import_names_and_removal() {
    let host = Host::new().await;
    assert_eq!(host.import(busybox("busybox:1")).await.unwrap(), ["docker.io/library/busybox:1"]);
    // Compressed, under another name: the same image.
    let zstd = zstd::encode_all(&busybox(IMAGE)[..], 1).unwrap();
    assert_eq!(host.import(zstd).await.unwrap(), [IMAGE]);
    let images = host.rt().list_images(None).await.unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].repo_tags, ["docker.io/library/busybox:1", IMAGE]);
    assert!(images[0].size > 500_000);
    let image = host.rt().image_status("busybox:1").await.unwrap().unwrap();
    assert_eq!(host.rt().image_status(&image.id).await.unwrap().unwrap(), image);
    assert!(host.rt().image_fs_info().await.unwrap().used_bytes >= image.size);
    // A tag moves to the image imported last.
    host.import(oci("busybox:1", json!({"Cmd": ["x"], "User": "33"}), &busybox_layers())).await.unwrap();
    let moved = host.rt().image_status("busybox:1").await.unwrap().unwrap();
    assert_ne!(moved.id, image.id);
    assert_eq!((moved.uid, moved.username.as_str()), (Some(33), ""));
    let snapshots = || std::fs::read_dir(host.dir.path().join("root/images/snapshots")).unwrap().count();
    assert_eq!(snapshots(), 2, "both images share their layers");
    host.rt().remove_image("busybox:1").await.unwrap();
    assert_eq!(snapshots(), 2);
    host.rt().remove_image(&image.id).await.unwrap();
    assert_eq!(snapshots(), 0);
    host.rt().remove_image("busybox:1").await.unwrap();
    assert!(host.rt().list_images(None).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_archives() {
    let host = Host::new().await;
    let layers = busybox_layers();
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": []});
    let manifest =
        json!([{"Config": "c.json", "RepoTags": ["team/app:2"], "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    let archive = tar_of(&[
        ("a/layer.tar".into(), layers[0].clone()),
        ("b/layer.tar".into(), layers[1].clone()),
        ("c.json".into(), config.to_string().into_bytes()),
        ("manifest.json".into(), manifest.to_string().into_bytes()),
    ]);
    assert_eq!(host.import(archive).await.unwrap(), ["docker.io/team/app:2"]);
    let sandbox = host.sandbox().await;
    let mut config = shell("c", "echo hi");
    config.image = "team/app:2".into();
    assert_eq!(host.run(&sandbox, config).await.1, "stdout:hi\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives() {
    let host = Host::new().await;
    let refused = async |archive: Vec<u8>, expected: &str| {
        let error = host.import(archive).await.unwrap_err();
        assert!(matches!(error, CriError::Internal(_) | CriError::InvalidArgument(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    refused(b"this is no archive at all".to_vec(), "not an image archive").await;
    refused(Vec::new(), "names no image").await;
    let good = busybox(IMAGE);
    refused(good[..good.len() / 2].to_vec(), "not an image archive").await;
    // A blob that is not what its name says.
    let at = good.windows(6).position(|window| window == b"hidden").unwrap();
    let mut bad = good.clone();
    bad[at] = b'H';
    refused(bad, "the archive is damaged").await;
    // A configuration that names another layer.
    let small = layer(&[File::Text("a", "a", 0o644)]);
    let lie =
        oci_with("x:1", json!({}), std::slice::from_ref(&small), &[format!("sha256:{}", "0".repeat(64))]);
    refused(lie, "the image's configuration names").await;
    refused(
        oci_with("x:1", json!({}), std::slice::from_ref(&small), &[]),
        "has 1 layers, but its configuration names 0",
    )
    .await;
    refused(oci("BAD NAME:1", json!({}), std::slice::from_ref(&small)), "failed to parse image reference")
        .await;
    refused(tar_of(&[("index.json".into(), b"{".to_vec())]), "not valid").await;
    let links = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": "sha256:../../../../etc/passwd", "size": 1, "annotations": {"org.opencontainers.image.ref.name": "x:1"}}]});
    assert!(host.import(tar_of(&[("index.json".into(), links.to_string().into_bytes())])).await.is_err());
    // Nothing of all this is left.
    assert!(host.rt().list_images(None).await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(host.dir.path().join("root/images/ingest")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(host.dir.path().join("root/images/snapshots")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_cannot_work_says_so() {
    let host = Host::new().await;
    let error = host.rt().pull_image("127.0.0.1:1/none:1", None).await.unwrap_err();
    assert!(matches!(error, CriError::ImagePull(_)), "{error:?}");
    let text = error.to_string();
    assert!(
        text.starts_with(
            "failed to pull and unpack image \"127.0.0.1:1/none:1\": failed to resolve reference"
        ),
        "{text}"
    );
    assert!(matches!(host.rt().pull_image("NOT VALID", None).await, Err(CriError::InvalidArgument(_))));
}
