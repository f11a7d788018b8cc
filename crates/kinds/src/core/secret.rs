//! Secret: binary data under file-name-like keys; some types promise certain keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Key, Value, json};
use x509_parser::pem::Pem;

use crate::cursor::{Cursor, child, default_empty_to, remove};
use crate::{NameRule, Strategy, metadata, printer};

use super::configmap::validate_frozen;
use super::{MAX_DATA_SIZE, decoded_len};

/// The strategy of Secrets.
pub struct Secret;

/// Go's words for a JSON text that does not decode into a map.
fn json_map_error(bytes: &[u8]) -> Option<String> {
    match orlop_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(_) | Value::Null) => None,
        Ok(other) => {
            let kind = match other {
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Number(_) => "number",
                _ => "bool",
            };
            Some(format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"))
        }
        Err(e) if e.is_eof() => Some("unexpected end of JSON input".to_owned()),
        Err(e) => {
            let line = bytes.split(|b| *b == b'\n').nth(e.line().saturating_sub(1));
            let bad = line.and_then(|l| l.get(e.column().saturating_sub(1))).map_or(' ', |b| char::from(*b));
            Some(format!("invalid character {bad:?} looking for beginning of value"))
        }
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
    let path = Path::new("data");
    let data = &obj["data"];
    let mut total = 0;
    for (key, value) in data.entries() {
        for msg in names::is_config_map_key(key) {
            errs.push(field::invalid(&path.key(key), key.as_str(), msg));
        }
        total += decoded_len(value.text());
    }
    if total > MAX_DATA_SIZE {
        errs.push(field::too_long(&path, MAX_DATA_SIZE));
    }
    let mut require = |key: &str, present: bool| {
        if !present {
            errs.push(field::required(&path.key(key), ""));
        }
    };
    match obj["type"].text() {
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            if obj["metadata"]["annotations"][ACCOUNT].text().is_empty() {
                errs.push(field::required(&Path::new("metadata").child("annotations").key(ACCOUNT), ""));
            }
        }
        kind @ ("kubernetes.io/dockercfg" | "kubernetes.io/dockerconfigjson") => {
            let key = if kind.ends_with("json") { ".dockerconfigjson" } else { ".dockercfg" };
            match data.get(key) {
                None => require(key, false),
                Some(text) => {
                    let bytes = STANDARD.decode(text.text()).unwrap_or_default();
                    if let Some(problem) = json_map_error(&bytes) {
                        errs.push(field::invalid(&path.key(key), "<secret contents redacted>", problem));
                    }
                }
            }
        }
        "kubernetes.io/basic-auth" => {
            let either = data.get("username").is_some() || data.get("password").is_some();
            require("username", either);
            require("password", either);
        }
        "kubernetes.io/ssh-auth" => {
            require("ssh-privatekey", !data["ssh-privatekey"].text().is_empty());
        }
        "kubernetes.io/tls" => {
            require("tls.crt", data.get("tls.crt").is_some());
            require("tls.key", data.get("tls.key").is_some());
        }
        _ => {}
    }
    errs
}

/// The first PEM block of a wanted type in a TLS secret's value, or Go's complaint that there is none: `missing` words it
/// for blocks of other types.
fn pem_block(
    bytes: &[u8],
    input: &str,
    wanted: fn(&str) -> bool,
    missing: impl Fn(&[String]) -> String,
) -> Result<Vec<u8>, String> {
    let mut skipped: Vec<String> = Vec::new();
    for block in Pem::iter_from_buffer(bytes) {
        let Ok(block) = block else { break };
        if wanted(&block.label) {
            return Ok(block.contents);
        }
        skipped.push(block.label);
    }
    if skipped.is_empty() {
        return Err(format!("tls: failed to find any PEM data in {input} input"));
    }
    Err(missing(&skipped))
}

/// What Go's TLS library has against a certificate and its key; whether they belong together is left to those who use
/// them.
fn tls_problem(data: &Value) -> Option<String> {
    let bytes = |key: &str| STANDARD.decode(data[key].text()).unwrap_or_default();
    let is_key = |label: &str| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY");
    let certificate = pem_block(
        &bytes("tls.crt"),
        "certificate",
        |label| label == "CERTIFICATE",
        |skipped| {
            if let [only] = skipped
                && only.ends_with("PRIVATE KEY")
            {
                return "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched".to_owned();
            }
            format!(
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [{}]",
                skipped.join(" ")
            )
        },
    );
    let certificate = match certificate {
        Ok(certificate) => certificate,
        Err(problem) => return Some(problem),
    };
    let key = pem_block(&bytes("tls.key"), "key", is_key, |skipped| {
        if let [only] = skipped
            && only == "CERTIFICATE"
        {
            return "tls: found a certificate rather than a key in the PEM for the private key".to_owned();
        }
        format!(
            "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [{}]",
            skipped.join(" ")
        )
    });
    if let Err(problem) = key {
        return Some(problem);
    }
    x509_parser::parse_x509_certificate(&certificate).err().map(|_| "x509: malformed certificate".to_owned())
}

impl Strategy for Secret {
    fn defaults(&self, obj: &mut Value) {
        // stringData is for writing only: it becomes data when the object is read in.
        let texts: Vec<(Key, String)> =
            obj["stringData"].entries().map(|(k, v)| (k.clone(), STANDARD.encode(v.text()))).collect();
        for (key, value) in texts {
            child(obj, "data")[key.as_str()] = value.into();
        }
        remove(obj, "stringData");
        default_empty_to(obj, "type", "Opaque");
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        default_empty_to(obj, "type", old["type"].clone());
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(metadata::validate_immutable(&obj["type"], &old["type"], &Path::new("type")));
        errs.extend(validate_frozen(obj, old, &["data"]));
        errs.extend(validate(obj));
        errs
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        if obj["type"].text() != "kubernetes.io/tls" {
            return Vec::new();
        }
        tls_problem(&obj["data"]).into_iter().collect()
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        match label {
            "type" => Some(obj["type"].text().to_owned()),
            _ => crate::metadata_field(true, obj, label),
        }
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            printer::name(obj),
            obj["type"].text().into(),
            json!(obj["data"].entries().count()),
            printer::age(obj, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_create, check_defaults, check_update};

    #[test]
    fn string_data_becomes_data() {
        check_defaults(
            "",
            "Secret",
            json!({"data": {"a": "Yg=="}, "stringData": {"a": "x", "username": "u"}}),
            json!({"data": {"a": "eA==", "username": "dQ=="}, "type": "Opaque"}),
        );
    }

    #[test]
    fn types_promise_keys() {
        for (kind, data, expected) in [
            ("Opaque", json!({}), &[][..]),
            (
                "kubernetes.io/basic-auth",
                json!({}),
                &["data[username]: Required value", "data[password]: Required value"],
            ),
            ("kubernetes.io/basic-auth", json!({"username": ""}), &[]),
            (
                "kubernetes.io/tls",
                json!({}),
                &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
            ),
            ("kubernetes.io/ssh-auth", json!({}), &["data[ssh-privatekey]: Required value"]),
            ("kubernetes.io/dockerconfigjson", json!({}), &["data[.dockerconfigjson]: Required value"]),
            (
                "kubernetes.io/dockerconfigjson",
                json!({".dockerconfigjson": "ew=="}),
                &[
                    "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": unexpected end of JSON input",
                ],
            ),
            (
                "kubernetes.io/service-account-token",
                json!({}),
                &["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
            ),
        ] {
            check_create("", "Secret", json!({"type": kind, "data": data}), expected);
        }
    }

    #[test]
    fn certificates_and_keys() {
        let pem =
            |label: &str| STANDARD.encode(format!("-----BEGIN {label}-----\neA==\n-----END {label}-----\n"));
        for (certificate, key, expected) in [
            ("eA==".to_owned(), String::new(), "tls: failed to find any PEM data in certificate input"),
            (
                pem("RSA PRIVATE KEY"),
                String::new(),
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched",
            ),
            (pem("CERTIFICATE"), "eA==".to_owned(), "tls: failed to find any PEM data in key input"),
            (
                pem("CERTIFICATE"),
                pem("CERTIFICATE"),
                "tls: found a certificate rather than a key in the PEM for the private key",
            ),
            (pem("CERTIFICATE"), pem("PRIVATE KEY"), "x509: malformed certificate"),
        ] {
            let problem = tls_problem(&json!({"tls.crt": certificate, "tls.key": key}));
            assert_eq!(problem.as_deref(), Some(expected));
        }
    }

    #[test]
    fn type_is_immutable() {
        check_update(
            "",
            "Secret",
            json!({"type": "example.com/x"}),
            json!({"type": "Opaque"}),
            &["type: Invalid value: \"example.com/x\": field is immutable"],
        );
    }
}
