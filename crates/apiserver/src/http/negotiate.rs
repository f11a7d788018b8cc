//! Which form an answer takes: JSON, YAML or protobuf, the object itself or a `Table` or `PartialObjectMetadata` of it.

use http::HeaderMap;
use orlop_api::status::ApiError;

/// What the server can answer and read, as the 406 and 415 messages list it.
pub const MEDIA_TYPES: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// An encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

impl Format {
    /// Its content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
            Format::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// A transformation of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The object itself.
    Object,
    /// `Table`, in `meta.k8s.io/v1` or `v1beta1`.
    Table(&'static str),
    /// `PartialObjectMetadata`.
    Partial(&'static str),
    /// `PartialObjectMetadataList`.
    PartialList(&'static str),
}

/// A negotiated form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Encoding.
    pub format: Format,
    /// Transformation.
    pub view: View,
    /// Whether JSON is indented.
    pub pretty: bool,
}

impl Accept {
    /// Plain JSON.
    pub const JSON: Accept = Accept { format: Format::Json, view: View::Object, pretty: false };

    /// Chooses from the `Accept` header. `pretty` is the query parameter of that name, if given.
    pub fn negotiate(headers: &HeaderMap, pretty: Option<&str>) -> Result<Accept, ApiError> {
        let mut accept = Accept::choose(headers)?;
        accept.pretty = match pretty {
            Some(value) => !matches!(value.to_ascii_lowercase().as_str(), "0" | "false"),
            // Upstream indents for those who look at answers by eye.
            None => headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok()).is_some_and(
                |agent| ["curl", "Wget", "Mozilla/5.0"].iter().any(|known| agent.starts_with(known)),
            ),
        };
        Ok(accept)
    }

    fn choose(headers: &HeaderMap) -> Result<Accept, ApiError> {
        let header: Vec<&str> =
            headers.get_all(http::header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        let header = header.join(",");
        if header.trim().is_empty() {
            return Ok(Accept::JSON);
        }
        let mut clauses: Vec<(f32, &str)> = header
            .split(',')
            .map(|clause| {
                let quality = clause
                    .split(';')
                    .skip(1)
                    .find_map(|p| p.trim().strip_prefix("q="))
                    .and_then(|q| q.parse().ok())
                    .unwrap_or(1.0);
                (quality, clause.trim())
            })
            .collect();
        clauses.sort_by(|a, b| b.0.total_cmp(&a.0));
        clauses
            .iter()
            .find_map(|(_, clause)| clause_form(clause))
            .ok_or_else(|| ApiError::not_acceptable(&MEDIA_TYPES))
    }
}

fn clause_form(clause: &str) -> Option<Accept> {
    let mut parts = clause.split(';').map(str::trim);
    let format = match parts.next()?.to_ascii_lowercase().as_str() {
        "application/json" | "*/*" | "application/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        "application/vnd.kubernetes.protobuf" => Format::Protobuf,
        _ => return None,
    };
    let (mut kind, mut group, mut version) = ("", "", "");
    for parameter in parts {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match name {
            "as" => kind = value,
            "g" => group = value,
            "v" => version = value,
            _ => {}
        }
    }
    let version = match version {
        "v1" => "meta.k8s.io/v1",
        "v1beta1" => "meta.k8s.io/v1beta1",
        _ => "",
    };
    let view = match kind {
        "" => View::Object,
        _ if group != "meta.k8s.io" || version.is_empty() => return None,
        // Tables have no message.
        "Table" if format == Format::Protobuf => return None,
        "Table" => View::Table(version),
        "PartialObjectMetadata" => View::Partial(version),
        "PartialObjectMetadataList" => View::PartialList(version),
        _ => return None,
    };
    Some(Accept { format, view, pretty: false })
}

/// The format of a request body; JSON when nothing is said.
pub fn content_format(headers: &HeaderMap) -> Result<Format, ApiError> {
    match media_type(headers).as_str() {
        "" | "application/json" => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Format::Protobuf),
        _ => Err(ApiError::unsupported_media_type(&MEDIA_TYPES)),
    }
}

/// The `Content-Type` without parameters, in lower case.
pub fn media_type(headers: &HeaderMap) -> String {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(|value| value.split(';').next().unwrap_or("").trim().to_ascii_lowercase())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn accept_header() {
        let check = |header: &str, expected: Option<(Format, View)>| {
            let mut headers = HeaderMap::new();
            headers.insert("accept", header.parse().unwrap());
            let got = Accept::negotiate(&headers, None).ok().map(|a| (a.format, a.view));
            assert_eq!(got, expected, "{header}");
        };
        check("*/*", Some((Format::Json, View::Object)));
        check("application/yaml", Some((Format::Yaml, View::Object)));
        check("text/plain", None);
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Some((Format::Json, View::Table("meta.k8s.io/v1"))),
        );
        check(
            "application/json;as=Table;g=meta.k8s.io;v=v9, application/json",
            Some((Format::Json, View::Object)),
        );
        check("application/json;as=Foo;g=meta.k8s.io;v=v1", None);
        check(
            "application/vnd.kubernetes.protobuf, application/json",
            Some((Format::Protobuf, View::Object)),
        );
        check("application/json, application/vnd.kubernetes.protobuf", Some((Format::Json, View::Object)));
        check(
            "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1, application/json",
            Some((Format::Json, View::Object)),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Format::Protobuf, View::PartialList("meta.k8s.io/v1"))),
        );
        check("application/json;q=0.5, application/yaml", Some((Format::Yaml, View::Object)));
    }
}
