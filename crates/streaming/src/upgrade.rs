//! HTTP/1.1 upgrades: which one a request asks for, and the answers that accept it (RFC 9110 section 7.8).

use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};

/// The name of SPDY in an `Upgrade` header.
pub const SPDY: &str = "SPDY/3.1";

/// The header in which a SPDY client offers, and the server names, the protocol spoken over the streams.
pub const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What a request wants its connection to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// `Upgrade: websocket`.
    WebSocket,
    /// `Upgrade: SPDY/3.1`.
    Spdy,
    /// Something else, or nothing.
    Other,
}

/// What a request's headers ask for.
pub fn wanted(headers: &HeaderMap) -> Wanted {
    if !has_token(headers, &CONNECTION, "upgrade") {
        Wanted::Other
    } else if has_token(headers, &UPGRADE, "websocket") {
        Wanted::WebSocket
    } else if has_token(headers, &UPGRADE, SPDY) {
        Wanted::Spdy
    } else {
        Wanted::Other
    }
}

/// The comma-separated values of all headers of a name, in order.
pub fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim).filter(|t| !t.is_empty())
}

/// Whether a header lists a token; case does not matter.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|t| t.eq_ignore_ascii_case(token))
}

/// The first protocol the client offers that the server speaks, as upstream's `httpstream.Handshake` and its WebSocket
/// handler choose.
pub fn choose<'a>(headers: &HeaderMap, name: &HeaderName, spoken: &[&'a str]) -> Option<&'a str> {
    tokens(headers, name).find_map(|offered| spoken.iter().copied().find(|p| *p == offered))
}

/// The headers of the `101 Switching Protocols` that accepts a WebSocket; `None` without a `Sec-WebSocket-Key`.
pub fn accept_websocket(request: &HeaderMap, protocol: Option<&'static str>) -> Option<HeaderMap> {
    let key = request.get(SEC_WEBSOCKET_KEY)?;
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    let mut headers = switching("websocket");
    headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).ok()?);
    if let Some(protocol) = protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Some(headers)
}

/// The headers of the `101 Switching Protocols` that accepts SPDY.
pub fn accept_spdy(protocol: Option<&'static str>) -> HeaderMap {
    let mut headers = switching(SPDY);
    if let Some(protocol) = protocol {
        headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    }
    headers
}

fn switching(to: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(to));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted() {
        let check = |lines: &[(&'static str, &'static str)], expected: Wanted| {
            let headers: HeaderMap = lines
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            assert_eq!(wanted(&headers), expected, "{lines:?}");
        };
        check(&[], Wanted::Other);
        check(&[("upgrade", "websocket")], Wanted::Other);
        check(&[("connection", "Upgrade"), ("upgrade", "WebSocket")], Wanted::WebSocket);
        check(&[("connection", "keep-alive, upgrade"), ("upgrade", "websocket")], Wanted::WebSocket);
        check(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")], Wanted::Spdy);
        check(&[("connection", "Upgrade"), ("upgrade", "h2c")], Wanted::Other);
    }

    #[test]
    fn the_clients_order_decides() {
        let check = |offered: &[&'static str], spoken: &[&'static str], expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            for value in offered {
                headers.append(STREAM_PROTOCOL, HeaderValue::from_static(value));
            }
            assert_eq!(choose(&headers, &STREAM_PROTOCOL, spoken), expected);
        };
        check(&["v5.x", "v4.x"], &["v4.x", "v5.x"], Some("v5.x"));
        check(&["v5.x, v4.x"], &["v4.x"], Some("v4.x"));
        check(&["v9.x"], &["v4.x"], None);
        check(&[], &["v4.x"], None);
    }
}
