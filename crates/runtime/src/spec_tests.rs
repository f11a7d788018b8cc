#![allow(clippy::unwrap_used)]
use super::*;

fn image(json: Value) -> ImageConfiguration {
    serde_json::from_value(json!({"architecture": "amd64", "os": "linux", "config": json,
        "rootfs": {"type": "layers", "diff_ids": []}, "history": []}))
    .unwrap()
}

#[test]
fn entrypoint_and_command() {
    let image = image(json!({"Entrypoint": ["/entry"], "Cmd": ["a", "b"]}));
    let check = |command: &[&str], args: &[&str], expected: &[&str]| {
        let config = ContainerConfig {
            command: command.iter().map(|text| (*text).to_owned()).collect(),
            args: args.iter().map(|text| (*text).to_owned()).collect(),
            ..ContainerConfig::default()
        };
        assert_eq!(arguments(&config, &image).unwrap(), expected);
    };
    check(&[], &[], &["/entry", "a", "b"]);
    check(&["/mine"], &[], &["/mine"]);
    check(&[], &["x"], &["/entry", "x"]);
    check(&["/mine"], &["x"], &["/mine", "x"]);
    let empty = arguments(&ContainerConfig::default(), &super::tests::image(json!({}))).unwrap_err();
    assert!(empty.to_string().contains("no command specified"), "{empty}");
}

#[test]
fn environment_overrides_in_place() {
    let mut all = vec!["PATH=/bin".to_owned(), "PATHS=1".to_owned()];
    set(&mut all, "PATH=/usr/bin".to_owned());
    set(&mut all, "NEW=x=y".to_owned());
    assert_eq!(all, ["PATH=/usr/bin", "PATHS=1", "NEW=x=y"]);
}

#[test]
fn capability_rules() {
    let bounding: Vec<String> = ALL_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    let check = |add: &[&str], drop: &[&str], privileged, expected: Result<usize, &str>, has: &[&str]| {
        let mut config = ContainerConfig::default();
        config.security.add_capabilities = add.iter().map(|text| (*text).to_owned()).collect();
        config.security.drop_capabilities = drop.iter().map(|text| (*text).to_owned()).collect();
        config.security.privileged = privileged;
        let got = capabilities(&config, &bounding).map_err(|error| error.to_string());
        assert_eq!(got.as_ref().map(Vec::len).map_err(String::as_str), expected, "{add:?} {drop:?}");
        for name in has {
            assert!(got.as_ref().unwrap().iter().any(|got| got == name), "{name}");
        }
    };
    check(&[], &[], false, Ok(14), &["CAP_CHOWN", "CAP_NET_RAW"]);
    check(&["NET_ADMIN"], &[], false, Ok(15), &["CAP_NET_ADMIN"]);
    check(&["NET_BIND_SERVICE"], &["ALL"], false, Ok(1), &["CAP_NET_BIND_SERVICE"]);
    check(&["ALL"], &["SYS_ADMIN"], false, Ok(40), &["CAP_BPF"]);
    check(&[], &["net_raw"], false, Ok(13), &[]);
    check(&[], &[], true, Ok(41), &["CAP_SYS_ADMIN"]);
    check(&["FLY"], &[], false, Err("container : unknown capability \"CAP_FLY\""), &[]);
}

#[test]
fn mounts_find_their_mount_point() {
    let info = "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n2 1 8:2 / /data rw master:2 - ext4 /dev/b rw\n";
    assert_eq!(mount_of(Path::new("/data/x"), info), (PathBuf::from("/data"), false, true));
    assert_eq!(mount_of(Path::new("/datax"), info), (PathBuf::from("/"), true, false));
}

#[test]
fn exec_keeps_the_containers_rights() {
    let spec = json!({"process": {"args": ["a"], "terminal": false, "env": ["A=1"], "user": {"uid": 7}}});
    let process = exec_process(&spec, &["b".to_owned()], true);
    assert_eq!(
        process,
        json!({"args": ["b"], "terminal": true, "env": ["A=1", "TERM=xterm"], "user": {"uid": 7}})
    );
}
