//! `--cors-allowed-origins`: pages of these origins may call the API from browsers. Upstream's `WithCORS`.

use http::{HeaderMap, HeaderValue, Method, header};
use regex::Regex;

use super::body::{self, Response};

const HEADERS: [(header::HeaderName, &str); 4] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE, PATCH"),
    (
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        "Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization, X-Requested-With, If-Modified-Since",
    ),
    (header::ACCESS_CONTROL_EXPOSE_HEADERS, "Date"),
    (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
];

/// The origins whose pages may call; none for most servers.
#[derive(Debug, Default)]
pub struct Cors(Vec<Regex>);

impl Cors {
    /// Reads the expressions.
    ///
    /// # Errors
    /// Upstream's text about one that is wrong, or that does not say where the host begins and ends.
    pub fn new(origins: &[String]) -> Result<Cors, String> {
        let compile = |origin: &String| {
            let wrong = |why: &str| {
                format!("--cors-allowed-origins has an invalid regular expression: {origin:?}: {why}")
            };
            let starts = ["^", "//"].iter().any(|mark| origin.contains(mark));
            let ends = ["$", ":"].iter().any(|mark| origin.contains(mark));
            let compiled = Regex::new(origin).map_err(|error| wrong(&error.to_string()))?;
            if !starts || !ends {
                return Err(wrong(
                    "regular expression does not pin to start/end of host in the origin header",
                ));
            }
            Ok(compiled)
        };
        origins.iter().map(compile).collect::<Result<_, _>>().map(Cors)
    }

    /// The origin of a request that may call.
    pub fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.0.is_empty() {
            return None;
        }
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        self.0.iter().any(|allowed| allowed.is_match(text)).then(|| origin.clone())
    }
}

/// The answer to a browser that asks whether it may send a request.
pub fn preflight(method: &Method) -> Option<Response> {
    (method == Method::OPTIONS).then(|| {
        let mut response = Response::new(body::full(""));
        *response.status_mut() = http::StatusCode::NO_CONTENT;
        response
    })
}

/// Tells the browser that its page may read the answer.
pub fn allow(origin: HeaderValue, headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn origins() {
        let check = |allowed: &[&str], origin: &str, expected: bool| {
            let list: Vec<String> = allowed.iter().map(|text| text.to_string()).collect();
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, origin.parse().unwrap());
            let allowed = Cors::new(&list).unwrap().allowed(&headers);
            assert_eq!(allowed.is_some(), expected, "{origin}");
        };
        check(&[], "https://a.example", false);
        check(&["^https://a[.]example$"], "https://a.example", true);
        check(&["^https://a[.]example$"], "https://a.example.evil", false);
        check(&["//localhost(:|$)", "^https://b$"], "http://localhost:8080", true);
        check(&["//localhost(:|$)"], "http://localhost.evil", false);
        let refused = |text: &str, expected: &str| {
            let error = Cors::new(&[text.to_string()]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        refused("a.example", "does not pin to start/end of host");
        refused("^(", "invalid regular expression");
    }
}
