//! A byte stream inside the binary messages of a WebSocket: how kubectl carries SPDY through proxies that know only
//! WebSocket (`SPDY/3.1+portforward.k8s.io`, KEP-4006).

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

/// Bytes read from the stream for one message.
const CHUNK: usize = 32 << 10;

/// Largest message and frame that is taken in.
const LARGEST: usize = 4 << 20;

/// The server's end of a WebSocket whose handshake is done.
pub async fn server<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default().max_message_size(Some(LARGEST)).max_frame_size(Some(LARGEST));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// Carries what arrives in binary messages to `stream`, and what `stream` says in binary messages back, until either
/// side ends.
pub async fn tunnel<S, T>(socket: WebSocketStream<S>, stream: T)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut source) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            let done = match message {
                Message::Binary(bytes) => {
                    writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err()
                }
                // Pings are answered by the library.
                other => other.is_close(),
            };
            if done {
                return;
            }
        }
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let message = match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(read) => Message::Binary(Bytes::copy_from_slice(&buffer[..read])),
            };
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(frame))).await;
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways_and_a_close_ends_it() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (inner, mut other) = tokio::io::duplex(1 << 16);
        let tunnel = tokio::spawn(async move { tunnel(server(near).await, inner).await });
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        client.send(Message::Binary(Bytes::from_static(b"hello"))).await.unwrap();
        client.send(Message::Ping(Bytes::from_static(b"x"))).await.unwrap();
        let mut buffer = [0; 5];
        other.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"hello");
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"x")));
        other.write_all(b"there").await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(b"there")));
        drop(other);
        assert!(matches!(client.next().await.unwrap().unwrap(), Message::Close(_)));
        tunnel.await.unwrap();
    }
}
