#![allow(clippy::unwrap_used)]
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 100 };

enum Make<'a> {
    Dir(&'a str, u32),
    File(&'a str, &'a str),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Node(&'a str),
}

fn tar_of(entries: &[Make<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: EntryType, mode: u32, link: Option<&str>, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        // The safe setter refuses what an attacker would write.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        if let Some(link) = link {
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    };
    for entry in entries {
        match entry {
            Make::Dir(path, mode) => add(path, EntryType::Directory, *mode, None, b""),
            Make::File(path, text) => add(path, EntryType::Regular, 0o644, None, text.as_bytes()),
            Make::Link(path, to) => add(path, EntryType::Symlink, 0o777, Some(to), b""),
            Make::Hard(path, to) => add(path, EntryType::Link, 0o644, Some(to), b""),
            Make::Node(path) => add(path, EntryType::Char, 0o666, None, b""),
        }
    }
    builder.into_inner().unwrap()
}

fn run(entries: &[Make<'_>]) -> (tempfile::TempDir, Result<(String, LayerSize)>) {
    let dir = tempfile::tempdir().unwrap();
    let result = unpack(&tar_of(entries)[..], dir.path(), &[], LIMITS);
    (dir, result)
}

#[test]
fn ordinary_layer() {
    let (dir, result) = run(&[
        Make::Dir("bin/", 0o755),
        Make::File("bin/tool", "hello"),
        Make::Link("bin/alias", "tool"),
        Make::Hard("bin/twin", "bin/tool"),
        Make::Dir("tmp", 0o1777),
        Make::File("deep/er/file", "x"),
        Make::Node("dev/sda"),
    ]);
    let (_, size) = result.unwrap();
    assert_eq!(size.bytes, 6);
    let at = |path: &str| dir.path().join(path);
    assert_eq!(std::fs::read_to_string(at("bin/alias")).unwrap(), "hello");
    assert_eq!(at("bin/twin").metadata().unwrap().ino(), at("bin/tool").metadata().unwrap().ino());
    assert_eq!(at("tmp").metadata().unwrap().permissions().mode() & 0o7777, 0o1777);
    assert_eq!(at("bin").metadata().unwrap().mtime(), 1_000_000);
    assert!(!at("dev/sda").exists(), "device nodes are left out");
}

#[test]
fn compressed_layers_have_the_same_digest() {
    let plain = tar_of(&[Make::File("a", "b")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    let digest = |bytes: &[u8]| unpack(bytes, tempfile::tempdir().unwrap().path(), &[], LIMITS).unwrap().0;
    assert_eq!(digest(&plain), digest(&gzip));
    assert_eq!(digest(&plain), digest(&zstd));
    assert_eq!(digest(&plain), format!("sha256:{}", hex(&Sha256::digest(&plain))));
}

#[test]
fn whiteouts() {
    let (dir, result) = run(&[
        Make::File(".wh.gone", ""),
        Make::Dir("cleared", 0o755),
        Make::File("cleared/.wh..wh..opq", ""),
        Make::File("cleared/new", "n"),
        // Hidden and made anew as a directory: what was below must not shine through.
        Make::File(".wh.again", ""),
        Make::Dir("again", 0o755),
        // Made first, hidden later in the same layer: stays, and is opaque.
        Make::Dir("mine", 0o755),
        Make::File(".wh.mine", ""),
        Make::File(".wh..wh.aufs", ""),
    ]);
    result.unwrap();
    let at = |path: &str| dir.path().join(path);
    let gone = at("gone").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for opaque in ["cleared", "again", "mine"] {
        assert_eq!(xattr::get(at(opaque), OPAQUE).unwrap().as_deref(), Some(&b"y"[..]), "{opaque}");
    }
    assert!(at("cleared/new").exists());
    assert!(!at(".wh.gone").exists() && !at(".wh..wh.aufs").exists());
}

#[test]
fn hostile_layers() {
    let check = |entries: &[Make<'_>], expected: &str| {
        let (_dir, result) = run(entries);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&[Make::File("../escape", "x")], "leads out of the image");
    check(&[Make::File("a/../../escape", "x")], "leads out of the image");
    check(&[Make::Hard("passwd", "../../etc/passwd")], "hard link leads out of the image");
    check(&[Make::Hard("passwd", "/etc/passwd")], "No such file");
    check(&[Make::Dir("d", 0o755), Make::Hard("e", "d")], "hard link to a directory");
    check(&[Make::Link("a", "/nowhere/at/all"), Make::File("a/file", "x")], "dangling symbolic link");
    check(&[Make::File("big", &"x".repeat((1 << 20) + 1))], "larger than");
    check(&[Make::File(".wh...", "x")], "whiteout of no name");
    let many: Vec<String> = (0..101).map(|index| format!("f{index}")).collect();
    let many: Vec<Make<'_>> = many.iter().map(|name| Make::File(name, "")).collect();
    check(&many, "more than 100 entries");
}

#[test]
fn links_in_the_way_stay_inside() {
    // The classic: a link to the host, then a file through it.
    let outside = tempfile::tempdir().unwrap();
    let outside_path = outside.path().to_str().unwrap();
    let (dir, result) = run(&[
        Make::Link("link", "/inner"),
        Make::Dir("inner", 0o755),
        Make::File("link/file", "x"),
        Make::Link("abs", outside_path),
        Make::File("abs", "replaces the link"),
    ]);
    result.unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("inner/file")).unwrap(), "x");
    assert!(dir.path().join("abs").symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    // Absolute names mean the image's root.
    let (dir, result) = run(&[Make::File("/etc/motd", "m")]);
    result.unwrap();
    assert!(dir.path().join("etc/motd").exists());
}

#[test]
fn truncated_and_garbage() {
    let whole = tar_of(&[Make::File("a", &"x".repeat(2000))]);
    let dir = tempfile::tempdir().unwrap();
    assert!(unpack(&whole[..1000], dir.path(), &[], LIMITS).is_err());
    let dir = tempfile::tempdir().unwrap();
    let error = unpack(&[0x1f_u8, 0x8b, 1, 2, 3, 4, 5, 6][..], dir.path(), &[], LIMITS).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[test]
fn unlisted_parents_take_after_the_layer_below() {
    let lower = tempfile::tempdir().unwrap();
    std::fs::create_dir(lower.path().join("secret")).unwrap();
    std::fs::set_permissions(lower.path().join("secret"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let upper = tempfile::tempdir().unwrap();
    let layer = tar_of(&[Make::File("secret/file", "x")]);
    unpack(&layer[..], upper.path(), &[lower.path().to_owned()], LIMITS).unwrap();
    assert_eq!(upper.path().join("secret").metadata().unwrap().permissions().mode() & 0o777, 0o700);
}
