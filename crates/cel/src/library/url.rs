//! URLs, read as Go's `net/url` reads request URIs.

/// An absolute URL.
#[derive(Debug)]
pub struct Url {
    /// As it was given.
    pub text: String,
    /// In lower case.
    pub scheme: String,
    /// With the port.
    pub host: String,
    path: String,
    query: String,
}

impl Url {
    /// Reads a URL or an absolute path. The error is Go's.
    pub fn parse(text: &str) -> Result<Url, String> {
        let problem = |what: &str| format!("parse {text:?}: {what}");
        if text.is_empty() {
            return Err(problem("empty url"));
        }
        if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err(problem("net/url: invalid control character in URL"));
        }
        let (scheme, rest) = scheme(text).map_err(|what| problem(&what))?;
        if scheme.is_empty() && !rest.starts_with('/') {
            return Err(problem("invalid URI for request"));
        }
        if !scheme.is_empty() && !rest.starts_with('/') {
            // `mailto:a`: opaque.
            return Ok(Url {
                text: text.to_owned(),
                scheme,
                host: String::new(),
                path: String::new(),
                query: rest.split_once('?').map(|(_, query)| query.to_owned()).unwrap_or_default(),
            });
        }
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = match rest.strip_prefix("//") {
            Some(after) if !scheme.is_empty() || !rest.starts_with("///") => {
                let end = after.find('/').unwrap_or(after.len());
                (authority(&after[..end]).map_err(|what| problem(&what))?, &after[end..])
            }
            _ => (String::new(), rest),
        };
        if let Some(bad) = bad_escape(path) {
            return Err(problem(&format!("invalid URL escape {bad:?}")));
        }
        Ok(Url { text: text.to_owned(), scheme, host, path: path.to_owned(), query: query.to_owned() })
    }

    /// The host without its port and brackets.
    pub fn hostname(&self) -> &str {
        let host = &self.host[..self.host.len() - self.port_part().len()];
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// The port, or nothing.
    pub fn port(&self) -> &str {
        self.port_part().trim_start_matches(':')
    }

    fn port_part(&self) -> &str {
        match self.host.rfind(':') {
            Some(colon) if !self.host[colon..].contains(']') => {
                let digits = &self.host[colon + 1..];
                if digits.bytes().all(|b| b.is_ascii_digit()) { &self.host[colon..] } else { "" }
            }
            _ => "",
        }
    }

    /// The path with what must be escaped escaped.
    pub fn escaped_path(&self) -> String {
        let mut out = String::with_capacity(self.path.len());
        for b in self.path.bytes() {
            let plain = b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@!'()*[]%".contains(&b);
            if plain {
                out.push(char::from(b));
            } else {
                out.push_str(&format!("%{b:02X}"));
            }
        }
        out
    }

    /// The query's values by key, in the order of their first mention.
    pub fn query_values(&self) -> Vec<(String, Vec<String>)> {
        let mut out: Vec<(String, Vec<String>)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(key), Some(value)) = (unescape(key), unescape(value)) else { continue };
            let place = *places.entry(key.clone()).or_insert_with(|| {
                out.push((key, Vec::new()));
                out.len() - 1
            });
            out[place].1.push(value);
        }
        out
    }
}

fn scheme(text: &str) -> Result<(String, &str), String> {
    for (at, b) in text.bytes().enumerate() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' => return Ok((String::new(), text)),
            b':' if at == 0 => return Err("missing protocol scheme".to_owned()),
            b':' => return Ok((text[..at].to_ascii_lowercase(), &text[at + 1..])),
            _ => return Ok((String::new(), text)),
        }
    }
    Ok((String::new(), text))
}

/// The host of `user@host:port`.
fn authority(text: &str) -> Result<String, String> {
    let (user, host) = match text.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, text),
    };
    if let Some(user) = user
        && !user.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b))
    {
        return Err("net/url: invalid userinfo".to_owned());
    }
    if let Some(rest) = host.strip_prefix('[') {
        let Some(end) = rest.find(']') else { return Err("missing ']' in host".to_owned()) };
        let port = &rest[end + 1..];
        if !valid_port(port) {
            return Err(format!("invalid port {port:?} after host"));
        }
    } else if let Some(colon) = host.rfind(':')
        && !valid_port(&host[colon..])
    {
        return Err(format!("invalid port {:?} after host", &host[colon..]));
    }
    if let Some(bad) = host.chars().find(|c| c.is_ascii() && (*c == ' ' || "<>\"{}|\\^`".contains(*c))) {
        return Err(format!("invalid character {:?} in host name", bad.to_string()));
    }
    if let Some(bad) = bad_escape(host) {
        return Err(format!("invalid URL escape {bad:?}"));
    }
    Ok(host.to_owned())
}

fn valid_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}

fn bad_escape(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(percent) = bytes[at..].iter().position(|b| *b == b'%') {
        at += percent;
        let digits = bytes.get(at + 1..at + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            let end = (at + 3).min(bytes.len());
            return Some(String::from_utf8_lossy(&bytes[at..end]).into_owned());
        }
        at += 3;
    }
    None
}

fn unescape(text: &str) -> Option<String> {
    if bad_escape(text).is_some() {
        return None;
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                out.push(u8::from_str_radix(text.get(at + 1..at + 3)?, 16).ok()?);
                at += 2;
            }
            b'+' => out.push(b' '),
            b => out.push(b),
        }
        at += 1;
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn parts() {
        let url = Url::parse("HTTPS://u:p@[::1]:80/a b/%2F?k=a&k=b+c&x#f").unwrap();
        assert_eq!((url.scheme.as_str(), url.host.as_str()), ("https", "[::1]:80"));
        assert_eq!((url.hostname(), url.port()), ("::1", "80"));
        assert_eq!(url.escaped_path(), "/a%20b/%2F");
        let query = url.query_values();
        assert_eq!(query[0], ("k".to_owned(), vec!["a".to_owned(), "b c".to_owned()]));
        assert_eq!(query[1], ("x".to_owned(), vec![String::new()]));
        let cases = [
            ("../relative", "parse \"../relative\": invalid URI for request"),
            ("", "parse \"\": empty url"),
            ("https://a:b/", "parse \"https://a:b/\": invalid port \":b\" after host"),
            ("http://a/%zz", "parse \"http://a/%zz\": invalid URL escape \"%zz\""),
        ];
        for (text, want) in cases {
            assert_eq!(Url::parse(text).unwrap_err(), want);
        }
        assert!(Url::parse("/path").is_ok());
        assert!(Url::parse("mailto:a@b").is_ok());
    }
}
