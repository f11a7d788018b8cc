//! The ConfigMap `kube-system/extension-apiserver-authentication`: whom API servers behind this one may believe when it
//! passes requests on.

use orlop_json::{Value, json};

use crate::options::RequestHeaderOptions;

/// The name in the certificate that this server shows.
pub const FRONT_PROXY: &str = "front-proxy-client";

/// What `--requestheader-*` says, or what stands in for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHeaders {
    client_ca_pem: String,
    allowed_names: Vec<String>,
    username: Vec<String>,
    uid: Vec<String>,
    group: Vec<String>,
    extra_prefix: Vec<String>,
}

impl RequestHeaders {
    /// With a CA of the server's own.
    pub(super) fn own(ca_pem: &str) -> RequestHeaders {
        let one = |name: &str| vec![name.to_string()];
        RequestHeaders {
            client_ca_pem: ca_pem.to_string(),
            allowed_names: one(FRONT_PROXY),
            username: one("X-Remote-User"),
            uid: one("X-Remote-Uid"),
            group: one("X-Remote-Group"),
            extra_prefix: one("X-Remote-Extra-"),
        }
    }

    /// As it was configured.
    pub(super) fn configured(options: &RequestHeaderOptions) -> RequestHeaders {
        RequestHeaders {
            client_ca_pem: options.client_ca_pem.clone(),
            allowed_names: options.allowed_names.clone(),
            username: options.username_headers.clone(),
            uid: options.uid_headers.clone(),
            group: options.group_headers.clone(),
            extra_prefix: options.extra_header_prefixes.clone(),
        }
    }

    /// The ConfigMap.
    pub fn config_map(&self, client_ca_pem: &str) -> Value {
        let mut data = orlop_json::Map::new();
        data.insert("client-ca-file".into(), json!(client_ca_pem));
        if !self.client_ca_pem.is_empty() {
            data.insert("requestheader-client-ca-file".into(), json!(self.client_ca_pem));
            for (key, names) in [
                ("requestheader-allowed-names", &self.allowed_names),
                ("requestheader-extra-headers-prefix", &self.extra_prefix),
                ("requestheader-group-headers", &self.group),
                ("requestheader-uid-headers", &self.uid),
                ("requestheader-username-headers", &self.username),
            ] {
                data.insert(key.into(), json!(json!(names).to_string()));
            }
        }
        json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_map() {
        let own = RequestHeaders::own("CA").config_map("CLIENT");
        assert_eq!(own["data"]["client-ca-file"], "CLIENT");
        assert_eq!(own["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
        assert_eq!(own["data"]["requestheader-extra-headers-prefix"], "[\"X-Remote-Extra-\"]");
        let none = RequestHeaders::default().config_map("CLIENT");
        assert_eq!(none["data"].as_object().map(|d| d.len()), Some(1));
    }
}
