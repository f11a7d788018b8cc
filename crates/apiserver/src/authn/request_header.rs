//! Identities in request headers, believed when an authenticating proxy with a known certificate sends them.

use http::HeaderMap;

use super::UserInfo;
use crate::options::RequestHeaderOptions;
use crate::request_info::percent_decode;

/// The identity that a proxy of this common name speaks for; `None` when the proxy is not known or names nobody.
pub fn user(options: &RequestHeaderOptions, proxy: &str, headers: &HeaderMap) -> Option<UserInfo> {
    let allowed = options.allowed_names.is_empty() || options.allowed_names.iter().any(|name| name == proxy);
    if !allowed {
        return None;
    }
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).trim().to_string();
    let first = |names: &[String]| {
        names.iter().find_map(|name| headers.get(name.as_str()).map(text).filter(|value| !value.is_empty()))
    };
    let name = first(&options.username_headers)?;
    let uid = first(&options.uid_headers).unwrap_or_default();
    // The first header that is there has all groups.
    let groups = options
        .group_headers
        .iter()
        .map(|name| headers.get_all(name.as_str()).iter().map(text).collect::<Vec<_>>())
        .find(|groups| !groups.is_empty())
        .unwrap_or_default();
    let mut user = UserInfo { name, uid, groups, ..UserInfo::default() };
    for prefix in &options.extra_header_prefixes {
        let prefix = prefix.to_ascii_lowercase();
        for (key, value) in headers {
            if let Some(rest) = key.as_str().strip_prefix(&prefix) {
                user.extra.entry(percent_decode(rest, false)).or_default().push(text(value));
            }
        }
    }
    Some(user)
}

/// Takes away the headers that named an identity: nobody behind shall take them for his own.
pub fn remove(options: &RequestHeaderOptions, headers: &mut HeaderMap) {
    let named = [&options.username_headers, &options.uid_headers, &options.group_headers];
    for name in named.into_iter().flatten() {
        headers.remove(name.as_str());
    }
    let prefixes: Vec<String> =
        options.extra_header_prefixes.iter().map(|prefix| prefix.to_ascii_lowercase()).collect();
    let extra: Vec<http::HeaderName> = headers
        .keys()
        .filter(|key| prefixes.iter().any(|prefix| key.as_str().starts_with(prefix)))
        .cloned()
        .collect();
    for key in extra {
        headers.remove(key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn proxies_and_headers() {
        let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let options = RequestHeaderOptions {
            allowed_names: own(&["front"]),
            username_headers: own(&["X-Remote-User"]),
            uid_headers: own(&["X-Remote-Uid"]),
            group_headers: own(&["X-Remote-Group"]),
            extra_header_prefixes: own(&["X-Remote-Extra-"]),
            ..RequestHeaderOptions::default()
        };
        let mut headers = HeaderMap::new();
        for (key, value) in [
            ("x-remote-user", "jane"),
            ("x-remote-uid", "7"),
            ("x-remote-group", "a"),
            ("x-remote-group", "b"),
            ("x-remote-extra-acme.com%2fproject", "p"),
        ] {
            headers.append(key, value.parse().unwrap());
        }
        assert!(user(&options, "other", &headers).is_none());
        let jane = user(&options, "front", &headers).unwrap();
        assert_eq!((jane.name.as_str(), jane.uid.as_str(), jane.groups.len()), ("jane", "7", 2));
        assert_eq!(jane.extra["acme.com/project"], ["p"]);
        remove(&options, &mut headers);
        assert!(headers.is_empty());
        assert!(user(&options, "front", &headers).is_none());
    }
}
