//! A process's streams as WebSocket messages: the first byte of each is the channel, 255 closes the channel that the
//! second byte names (v5). In the base64 protocols the channel is a digit and the rest is base64 text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use orlop_streaming::{upgrade, websocket};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{
    Accepted, Asked, Body, Client, ERROR, Input, RESIZE, STDERR, STDIN, STDOUT, debug, error, switching,
    terminal_size,
};

/// A subprotocol.
#[derive(Clone, Copy, Debug)]
struct Protocol {
    name: &'static str,
    base64: bool,
    /// Whether the error channel carries a `Status`; before v4 it is text, and nothing on success.
    status: bool,
    /// Whether channels can be closed one by one.
    close: bool,
}

const PROTOCOLS: [Protocol; 5] = [
    Protocol { name: "v5.channel.k8s.io", base64: false, status: true, close: true },
    Protocol { name: "v4.channel.k8s.io", base64: false, status: true, close: false },
    Protocol { name: "v4.base64.channel.k8s.io", base64: true, status: true, close: false },
    Protocol { name: "channel.k8s.io", base64: false, status: false, close: false },
    Protocol { name: "base64.channel.k8s.io", base64: true, status: false, close: false },
];

/// Closes the channel that the next byte names.
const CLOSE: u8 = 255;

pub(super) fn accept(
    request: &mut Request<Incoming>,
    asked: Asked,
) -> Result<Accepted, Box<http::Response<Body>>> {
    let offers_any = upgrade::tokens(request.headers(), &SEC_WEBSOCKET_PROTOCOL).next().is_some();
    let names = PROTOCOLS.map(|p| p.name);
    let chosen = upgrade::choose(request.headers(), &SEC_WEBSOCKET_PROTOCOL, &names);
    let protocol = match PROTOCOLS.into_iter().find(|p| Some(p.name) == chosen) {
        Some(protocol) => protocol,
        // The first protocol needs no name.
        None if !offers_any => PROTOCOLS[3],
        None => {
            let message = format!("no common subprotocol: offer one of {}", names.join(", "));
            return Err(Box::new(error(StatusCode::FORBIDDEN, message)));
        }
    };
    let named = offers_any.then_some(protocol.name);
    let Some(headers) = upgrade::accept_websocket(request.headers(), named) else {
        return Err(Box::new(error(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing")));
    };
    let upgraded = hyper::upgrade::on(request);
    let client = async move {
        match upgraded.await {
            Ok(upgraded) => Some(serve(upgraded, protocol, asked).await),
            Err(error) => {
                debug!(%error, "client went away during the upgrade");
                None
            }
        }
    };
    Ok((switching(headers), client.boxed()))
}

fn framed(protocol: Protocol, channel: u8, data: &[u8]) -> Message {
    if protocol.base64 {
        return Message::Text(format!("{}{}", char::from(b'0' + channel), STANDARD.encode(data)).into());
    }
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::Binary(bytes.into())
}

/// The channel and data of a message.
fn unframed(protocol: Protocol, message: &Message) -> Option<(u8, Bytes)> {
    let bytes = match message {
        Message::Binary(bytes) => bytes.clone(),
        Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
        _ => return None,
    };
    let channel = *bytes.first()?;
    let data = bytes.slice(1..);
    if protocol.base64 {
        return Some((channel.checked_sub(b'0')?, STANDARD.decode(data).ok()?.into()));
    }
    Some((channel, data))
}

/// What the error channel says before v4: the message of a failure.
fn text_of(status: &[u8]) -> Option<Bytes> {
    let status: serde_json::Value = serde_json::from_slice(status).ok()?;
    (status["status"] != "Success").then(|| status["message"].as_str().unwrap_or_default().to_owned().into())
}

async fn serve(upgraded: hyper::upgrade::Upgraded, protocol: Protocol, asked: Asked) -> Client {
    let (mut sink, mut source) = websocket::server(TokioIo::new(upgraded)).await.split();
    let (said, input) = mpsc::channel(16);
    let (output, mut messages) = mpsc::channel::<(u8, Bytes)>(16);
    tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            let said_something = match unframed(protocol, &message) {
                Some((STDIN, data)) => Some(Input::Stdin(data)),
                Some((RESIZE, data)) => {
                    serde_json::from_slice(&data).ok().as_ref().and_then(terminal_size).map(Input::Resize)
                }
                Some((CLOSE, data)) if protocol.close && data[..] == [STDIN] => Some(Input::StdinEnd),
                _ if message.is_close() => return,
                _ => None,
            };
            if let Some(input) = said_something
                && said.send(input).await.is_err()
            {
                // Nobody listens any more; a close from the client must still be read.
                while let Some(Ok(_)) = source.next().await {}
                return;
            }
        }
    });
    let sent = tokio::spawn(async move {
        // An empty message tells the client that the connection stands, as upstream's server does.
        let first = if asked.stdout {
            STDOUT
        } else if asked.stderr {
            STDERR
        } else {
            ERROR
        };
        let mut failed = sink.send(framed(protocol, first, b"")).await.is_err();
        while let Some((channel, data)) = messages.recv().await {
            let data = match channel {
                ERROR if !protocol.status => text_of(&data),
                _ => Some(data),
            };
            if let Some(data) = data {
                failed = failed || sink.send(framed(protocol, channel, &data)).await.is_err();
            }
        }
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(frame))).await;
    });
    Client { input, output, sent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let check = |protocol: usize, channel: u8, data: &'static [u8], message: Message| {
            assert_eq!(framed(PROTOCOLS[protocol], channel, data), message);
            assert_eq!(unframed(PROTOCOLS[protocol], &message), Some((channel, Bytes::from_static(data))));
        };
        check(0, 1, b"hi", Message::Binary(Bytes::from_static(b"\x01hi")));
        check(2, 1, b"hi", Message::Text("1aGk=".into()));
        assert_eq!(unframed(PROTOCOLS[2], &Message::Text("1***".into())), None);
        assert_eq!(unframed(PROTOCOLS[0], &Message::Binary(Bytes::new())), None);
    }

    #[test]
    fn errors_before_v4_are_text() {
        assert_eq!(text_of(br#"{"status":"Success"}"#), None);
        assert_eq!(text_of(br#"{"status":"Failure","message":"no"}"#), Some(Bytes::from_static(b"no")));
    }
}
