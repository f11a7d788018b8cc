//! Security contexts, and pods for Windows.

use orlop_json::{Value, json};

use super::{LABEL, check};

#[test]
fn a_privileged_container_is_refused_in_its_place() {
    let privileged =
        json!({"name": "C", "image": "", "securityContext": {"privileged": true, "runAsUser": -1}});
    check(
        json!({"containers": [privileged, {"name": "d", "image": ""}]}),
        &[
            &format!("spec.containers[0].name: Invalid value: \"C\": {LABEL}"),
            "spec.containers[0].image: Required value",
            "spec.containers[0].securityContext.privileged: Forbidden: disallowed by cluster policy",
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            "spec.containers[1].image: Required value",
        ],
    );
}

#[test]
fn windows() {
    let check_options = |options: Value, expected: &[&str]| {
        let expected: Vec<String> =
            expected.iter().map(|e| format!("spec.securityContext.windowsOptions.{e}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(json!({"securityContext": {"windowsOptions": options}}), &expected);
    };
    check_options(json!({"gmsaCredentialSpecName": "a.b", "gmsaCredentialSpec": "{}"}), &[]);
    for user in ["u", "DOMAIN\\u", "my.domain-1\\u v", "NT AUTHORITY\\NETWORK SERVICE"] {
        check_options(json!({"runAsUserName": user}), &[]);
    }
    check_options(
        json!({"gmsaCredentialSpecName": "A", "gmsaCredentialSpec": "", "runAsUserName": ""}),
        &[
            "gmsaCredentialSpecName: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            "gmsaCredentialSpec: Invalid value: \"\": gmsaCredentialSpec cannot be an empty string",
            "runAsUserName: Invalid value: \"\": runAsUserName cannot be an empty string",
        ],
    );
    for (user, shown, expected) in [
        ("a\nb", "a\\nb", " cannot contain control characters"),
        ("a\\b\\c", "a\\\\b\\\\c", " cannot contain more than one backslash"),
        ("a:b\\u", "a:b\\\\u", "'s Domain doesn't match the NetBios nor the DNS format"),
        ("d\\", "d\\\\", "'s User cannot be empty"),
        (". .", ". .", "'s User cannot contain only periods or spaces"),
        ("a@b", "a@b", "'s User cannot contain the following characters: \"/\\:;|=,+*?<>@[]"),
    ] {
        check_options(
            json!({"runAsUserName": user}),
            &[&format!("runAsUserName: Invalid value: \"{shown}\": runAsUserName{expected}")],
        );
    }
    check(
        json!({"hostNetwork": true, "securityContext": {"windowsOptions": {"hostProcess": true}}}),
        &["spec: Forbidden: hostProcess containers are disallowed by cluster policy"],
    );
}

#[test]
fn security() {
    check(
        json!({"hostUsers": false, "hostNetwork": true}),
        &["spec.hostNetwork: Forbidden: when `hostUsers` is false"],
    );
    check(
        json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}}),
        &[
            "spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
        ],
    );
    check(
        json!({"securityContext": {"fsGroupChangePolicy": "Foo"}}),
        &[
            "spec.securityContext.fsGroupChangePolicy: Unsupported value: \"Foo\": supported values: \"Always\", \"OnRootMismatch\"",
        ],
    );
    check(
        json!({"os": {"name": "linux"}, "securityContext": {"windowsOptions": {"runAsUserName": "a"}}}),
        &["spec.securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod"],
    );
    check(
        json!({"os": {"name": "plan9"}}),
        &["spec.os: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\""],
    );
}
