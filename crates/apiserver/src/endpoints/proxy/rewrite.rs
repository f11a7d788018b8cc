//! Links of a page behind the proxy: those that name a path on the backend get the proxy's path in front.

use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body::Frame;
use http_body_util::{BodyDataStream, StreamBody};
use lol_html::element;

use crate::http::body::{Body, BoxError};

/// Elements and their attributes that hold addresses, as upstream knows them.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// What the addresses of one answer become.
#[derive(Clone)]
pub(super) struct Rewriter {
    /// The path of the proxy, up to and without the slash before the backend's path.
    pub prefix: String,
    /// The backend's `host:port`.
    pub backend: String,
    /// The host the client asked.
    pub host: String,
}

impl Rewriter {
    /// The address through the proxy; those of other hosts and relative ones stay.
    pub fn url(&self, url: &str) -> String {
        let (host, path) = match url.split_once("://") {
            Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                (&rest[..end], &rest[end..])
            }
            _ => match url.strip_prefix("//") {
                Some(rest) => {
                    let end = rest.find('/').unwrap_or(rest.len());
                    (&rest[..end], &rest[end..])
                }
                None => ("", url),
            },
        };
        let elsewhere = !host.is_empty() && host != self.backend && host != self.host;
        if elsewhere || !path.starts_with('/') {
            return url.to_owned();
        }
        if path.starts_with(&self.prefix) {
            return path.to_owned();
        }
        format!("{}{path}", self.prefix)
    }

    /// The page with its links rewritten, as it comes.
    pub fn page(self, page: Body) -> StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, BoxError>>> {
        let (out, written) = mpsc::channel::<Vec<u8>>();
        let this = Arc::new(self);
        let mut settings = lol_html::send::Settings::new_send();
        for (name, attributes) in LINKS {
            let this = this.clone();
            settings = settings.append_element_content_handler(element!(*name, move |element| {
                for attribute in *attributes {
                    if let Some(old) = element.get_attribute(attribute) {
                        let new = this.url(&old);
                        if new != old {
                            element.set_attribute(attribute, &new)?;
                        }
                    }
                }
                Ok(())
            }));
        }
        let rewriter = lol_html::send::HtmlRewriter::new(settings, move |piece: &[u8]| {
            let _ = out.send(piece.to_vec());
        });
        let state = (BodyDataStream::new(page), Some(rewriter), written);
        StreamBody::new(futures::stream::unfold(state, |(mut page, mut rewriter, written)| async move {
            loop {
                let pieces: Vec<u8> = written.try_iter().flatten().collect();
                if !pieces.is_empty() {
                    return Some((Ok(Frame::data(pieces.into())), (page, rewriter, written)));
                }
                let step: Result<(), BoxError> = match (page.next().await, rewriter.as_mut()) {
                    (_, None) => return None,
                    (Some(Ok(bytes)), Some(rewriter)) => rewriter.write(&bytes).map_err(BoxError::from),
                    (Some(Err(error)), _) => Err(error),
                    (None, Some(_)) => match rewriter.take() {
                        Some(rewriter) => rewriter.end().map_err(BoxError::from),
                        None => Ok(()),
                    },
                };
                if let Err(error) = step {
                    return Some((Err(error), (page, None, written)));
                }
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rewriter() -> Rewriter {
        Rewriter {
            prefix: "/api/v1/namespaces/d/pods/p:80/proxy".into(),
            backend: "10.0.0.1:80".into(),
            host: "api:6443".into(),
        }
    }

    #[test]
    fn addresses() {
        let check = |url: &str, expected: &str| assert_eq!(rewriter().url(url), expected);
        check("/rewriteme", "/api/v1/namespaces/d/pods/p:80/proxy/rewriteme");
        check("/dir/?a=b#c", "/api/v1/namespaces/d/pods/p:80/proxy/dir/?a=b#c");
        check("relative/path", "relative/path");
        check("http://10.0.0.1:80/x", "/api/v1/namespaces/d/pods/p:80/proxy/x");
        check("https://api:6443/x", "/api/v1/namespaces/d/pods/p:80/proxy/x");
        check("http://example.com/x", "http://example.com/x");
        check("//example.com/x", "//example.com/x");
        check("/api/v1/namespaces/d/pods/p:80/proxy/x", "/api/v1/namespaces/d/pods/p:80/proxy/x");
        check("mailto:a@b", "mailto:a@b");
        check("#top", "#top");
    }

    #[tokio::test]
    async fn pages() {
        let page = r#"<html><a href="/rewriteme">test</a><img src='/i.png' alt=x><p href="/no">"#;
        let body = rewriter().page(crate::http::body::full(page));
        let bytes = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
        let prefix = "/api/v1/namespaces/d/pods/p:80/proxy";
        let expected = format!(
            "<html><a href=\"{prefix}/rewriteme\">test</a><img src=\"{prefix}/i.png\" alt=x><p href=\"/no\">"
        );
        assert_eq!(String::from_utf8(bytes.to_vec()).unwrap(), expected);
    }
}
