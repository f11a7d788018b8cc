//! A process's streams as SPDY streams: the client opens one for each, named by its `streamtype` header.

use bytes::Bytes;
use futures::FutureExt as _;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use orlop_streaming::spdy::{Connection, Reader, Role, Writer};
use orlop_streaming::upgrade::{self, STREAM_PROTOCOL};
use tokio::sync::mpsc;

use super::{
    Accepted, Asked, Body, Client, ERROR, Input, STDERR, STDOUT, STREAM_CREATION_TIMEOUT, debug, error,
    switching, terminal_size,
};

const V4: &str = "v4.channel.k8s.io";
const V3: &str = "v3.channel.k8s.io";
/// In order of preference, as upstream's kubelet.
const PROTOCOLS: [&str; 4] = [V4, V3, "v2.channel.k8s.io", "channel.k8s.io"];

/// Longest JSON text of a terminal size that is waited for.
const LONGEST_SIZE: usize = 1024;

/// The answer to a client that offers only what is not spoken.
pub(in crate::server) fn no_common_protocol(
    headers: &http::HeaderMap,
    spoken: &[&str],
) -> Box<http::Response<Body>> {
    let offered: Vec<&str> = upgrade::tokens(headers, &STREAM_PROTOCOL).collect();
    Box::new(error(
        StatusCode::FORBIDDEN,
        format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            offered.join(" "),
            spoken.join(" ")
        ),
    ))
}

pub(super) fn accept(
    request: &mut Request<Incoming>,
    asked: Asked,
) -> Result<Accepted, Box<http::Response<Body>>> {
    let offers_any = upgrade::tokens(request.headers(), &STREAM_PROTOCOL).next().is_some();
    let chosen = upgrade::choose(request.headers(), &STREAM_PROTOCOL, &PROTOCOLS);
    if offers_any && chosen.is_none() {
        return Err(no_common_protocol(request.headers(), &PROTOCOLS));
    }
    let protocol = PROTOCOLS.into_iter().find(|p| Some(*p) == chosen);
    let upgraded = hyper::upgrade::on(request);
    let client = async move {
        let connected = async {
            let io = TokioIo::new(upgraded.await?);
            serve(io, protocol.unwrap_or("channel.k8s.io"), asked).await
        };
        let connected: Result<Client, Box<dyn std::error::Error + Send + Sync>> = connected.await;
        connected.inspect_err(|error| debug!(%error, "no streams from the client")).ok()
    };
    Ok((switching(upgrade::accept_spdy(protocol)), client.boxed()))
}

/// The streams of a client, once it has opened all that it asked for.
#[derive(Default)]
struct Streams {
    stdin: Option<Reader>,
    resize: Option<Reader>,
    error: Option<Writer>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
}

async fn serve<S>(
    io: S,
    protocol: &'static str,
    asked: Asked,
) -> Result<Client, Box<dyn std::error::Error + Send + Sync>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (connection, mut incoming) = Connection::start(io, Role::Server)?;
    let resizes = asked.tty && matches!(protocol, V4 | V3);
    let expected = 1 + [asked.stdin, asked.stdout, asked.stderr, resizes].iter().filter(|a| **a).count();
    let mut streams = Streams::default();
    // Upstream holds on to the write side of what it only reads, and closes it with the connection.
    let mut unused = Vec::new();
    let opened = async {
        for _ in 0..expected {
            let stream = incoming.recv().await.ok_or("the client went away")?;
            let kind = stream.header("streamtype").unwrap_or_default().to_owned();
            let (reader, writer) = stream.split();
            match kind.as_str() {
                "stdin" => {
                    streams.stdin = Some(reader);
                    unused.push(writer);
                }
                "resize" => {
                    streams.resize = Some(reader);
                    unused.push(writer);
                }
                "stdout" => streams.stdout = Some(writer),
                "stderr" => streams.stderr = Some(writer),
                "error" => streams.error = Some(writer),
                other => return Err(format!("unexpected stream type: {other:?}")),
            }
        }
        Ok(())
    };
    tokio::time::timeout(STREAM_CREATION_TIMEOUT, opened)
        .await
        .map_err(|_| "timed out waiting for client to create streams")??;
    let (said, input) = mpsc::channel(16);
    let Streams { stdin, resize, error, stdout, stderr } = streams;
    let (closed, resized) = (connection.clone(), said.clone());
    tokio::spawn(async move {
        if let Some(mut reader) = stdin {
            while let Some(bytes) = reader.read().await {
                if said.send(Input::Stdin(bytes)).await.is_err() {
                    return;
                }
            }
            let _ = said.send(Input::StdinEnd).await;
        }
        // The input lives as long as the client does.
        closed.ended().await;
        drop(said);
    });
    if let Some(reader) = resize {
        tokio::spawn(resizing(reader, resized));
    }
    let (output, mut messages) = mpsc::channel::<(u8, Bytes)>(16);
    let sent = tokio::spawn(async move {
        while let Some((channel, data)) = messages.recv().await {
            let (writer, data) = match channel {
                STDOUT => (&stdout, data),
                STDERR => (&stderr, data),
                ERROR if protocol == V4 => (&error, data),
                ERROR => (&error, failure_text(&data)),
                _ => continue,
            };
            if let Some(writer) = writer {
                let _ = writer.write(data).await;
            }
        }
        for writer in [stdout, stderr, error].into_iter().flatten().chain(unused) {
            let _ = writer.finish().await;
        }
        drop(connection);
    });
    Ok(Client { input, output, sent })
}

/// What the error stream says before v4: the message of a failure, nothing on success.
fn failure_text(status: &[u8]) -> Bytes {
    match serde_json::from_slice::<serde_json::Value>(status) {
        Ok(status) if status["status"] != "Success" => {
            status["message"].as_str().unwrap_or_default().to_owned().into()
        }
        _ => Bytes::new(),
    }
}

/// Terminal sizes come as JSON values one after another, wherever frames begin and end.
async fn resizing(mut reader: Reader, said: mpsc::Sender<Input>) {
    let mut text = Vec::new();
    while let Some(bytes) = reader.read().await {
        text.extend_from_slice(&bytes);
        let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<serde_json::Value>();
        let mut sizes = Vec::new();
        while let Some(Ok(value)) = values.next() {
            sizes.extend(terminal_size(&value));
        }
        let used = values.byte_offset();
        text.drain(..used);
        if text.len() > LONGEST_SIZE {
            return;
        }
        for size in sizes {
            if said.send(Input::Resize(size)).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(tty: bool) -> Asked {
        Asked { stdin: true, stdout: true, stderr: !tty, tty }
    }

    #[tokio::test]
    async fn a_session_with_a_terminal() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let server = tokio::spawn(async move { serve(far, V4, asked(true)).await.unwrap() });
        let (connection, _incoming) = Connection::start(near, Role::Client).unwrap();
        let mut streams = Vec::new();
        for kind in ["error", "stdin", "stdout", "resize"] {
            streams.push(connection.open(&[("streamType", kind)]).await.unwrap().split());
        }
        let mut client = server.await.unwrap();
        streams[1].1.write(Bytes::from_static(b"ls\n")).await.unwrap();
        assert!(matches!(client.input.recv().await, Some(Input::Stdin(data)) if data == "ls\n"));
        // Two sizes in three pieces.
        for piece in [r#"{"Width":80,"#, r#""Height":24}{"Width":100"#, r#","Height":30}"#] {
            streams[3].1.write(Bytes::from_static(piece.as_bytes())).await.unwrap();
        }
        for (width, height) in [(80, 24), (100, 30)] {
            match client.input.recv().await {
                Some(Input::Resize(size)) => assert_eq!((size.width, size.height), (width, height)),
                other => panic!("{other:?}"),
            }
        }
        client.output.send((STDOUT, Bytes::from_static(b"a b"))).await.unwrap();
        client.output.send((ERROR, Bytes::from_static(b"{}"))).await.unwrap();
        drop(client.output);
        assert_eq!(streams[2].0.read().await.unwrap(), "a b");
        assert_eq!(streams[2].0.read().await, None);
        assert_eq!(streams[0].0.read().await.unwrap(), "{}");
        client.sent.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_opens_too_few_streams() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let server =
            tokio::spawn(async move { serve(far, V4, asked(false)).await.err().map(|e| e.to_string()) });
        let (connection, _incoming) = Connection::start(near, Role::Client).unwrap();
        let _stream = connection.open(&[("streamType", "error")]).await.unwrap();
        let failure = server.await.unwrap();
        assert_eq!(failure.as_deref(), Some("timed out waiting for client to create streams"));
    }

    #[test]
    fn errors_before_v4() {
        assert_eq!(failure_text(br#"{"status":"Success"}"#), "");
        assert_eq!(failure_text(br#"{"status":"Failure","message":"no"}"#), "no");
    }
}
