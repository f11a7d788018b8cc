//! One task reads frames and hands data to streams, one writes what streams say.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::SpdyError;
use super::compression::{Deflater, Inflater};
use super::frame::{self, FLAG_FIN, FLAG_UNIDIRECTIONAL, Frame, Head, kind};

/// Which end of the connection this is; it decides the numbers of the streams it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opened the connection: odd stream numbers.
    Client,
    /// Accepted it: even stream numbers.
    Server,
}

/// Frames that wait for the writer.
const OUT: usize = 32;
/// Pieces of data, of at most [`frame::CHUNK`] bytes each, that wait for a stream's reader.
const INBOX: usize = 32;
/// Streams that wait to be accepted.
const BACKLOG: usize = 64;
/// Streams open at a time; a port-forward has two for each connection it carries.
const MOST_STREAMS: usize = 1000;

const PROTOCOL_ERROR: u32 = 1;
const INVALID_STREAM: u32 = 2;
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

/// Streams that the other side has opened, in order; ends with the connection.
pub type Incoming = mpsc::Receiver<Stream>;

struct Shared {
    out: mpsc::Sender<Frame>,
    inboxes: Mutex<HashMap<u32, mpsc::Sender<Bytes>>>,
    next: AtomicU32,
    ended: CancellationToken,
}

/// A connection. It ends when this and all its streams are dropped, or the other side goes.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
    _guard: Arc<DropGuard>,
}

/// A stream of bytes in both directions.
pub struct Stream {
    /// Its number.
    pub id: u32,
    /// What it was opened with; names are in lower case.
    pub headers: Vec<(String, String)>,
    reader: Reader,
    writer: Writer,
}

/// The receiving half of a stream.
pub struct Reader {
    inbox: mpsc::Receiver<Bytes>,
    _guard: Arc<DropGuard>,
}

/// The sending half of a stream. Dropped without [`Writer::finish`], it resets the stream.
pub struct Writer {
    id: u32,
    shared: Arc<Shared>,
    _guard: Arc<DropGuard>,
    finished: bool,
}

impl Stream {
    /// The value of a header; the name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Both halves.
    pub fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}

impl Reader {
    /// The next piece of data; `None` when the other side has finished, reset the stream or gone.
    pub async fn read(&mut self) -> Option<Bytes> {
        self.inbox.recv().await
    }
}

impl Writer {
    /// Sends data.
    ///
    /// # Errors
    /// `Closed` when the connection has ended.
    pub async fn write(&self, bytes: Bytes) -> Result<(), SpdyError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.send(Frame::Data { stream: self.id, bytes, fin: false }).await
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// `Closed` when the connection has ended.
    pub async fn finish(mut self) -> Result<(), SpdyError> {
        self.finished = true;
        self.send(Frame::Data { stream: self.id, bytes: Bytes::new(), fin: true }).await
    }

    async fn send(&self, frame: Frame) -> Result<(), SpdyError> {
        self.shared.out.send(frame).await.map_err(|_| SpdyError::Closed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // A full queue: the other side learns of it when the connection ends.
            let _ = self.shared.out.try_send(Frame::Reset { stream: self.id, status: CANCEL });
        }
    }
}

impl Connection {
    /// Speaks SPDY over a connection whose upgrade is done.
    ///
    /// # Errors
    /// `Headers` when the compressor cannot be made.
    pub fn start<S>(io: S, role: Role) -> Result<(Connection, Incoming), SpdyError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let deflater = Deflater::new()?;
        let (read, write) = tokio::io::split(io);
        let (out, frames) = mpsc::channel(OUT);
        let (accepted, incoming) = mpsc::channel(BACKLOG);
        let ended = CancellationToken::new();
        let shared = Arc::new(Shared {
            out,
            inboxes: Mutex::default(),
            next: AtomicU32::new(if role == Role::Client { 1 } else { 2 }),
            ended: ended.clone(),
        });
        let guard = Arc::new(ended.clone().drop_guard());
        let reading = Reading {
            role,
            shared: shared.clone(),
            guard: Arc::downgrade(&guard),
            accepted,
            inflater: Inflater::new(),
            last: 0,
        };
        let (stop, reason) = (ended.clone(), shared.clone());
        tokio::spawn(async move {
            if let Some(Err(error)) = stop.run_until_cancelled(reading.run(read)).await {
                tracing::debug!(%error, "SPDY connection ended");
            }
            // Readers see the end of their streams.
            reason.inboxes.lock().clear();
            stop.cancel();
        });
        tokio::spawn(write_frames(write, frames, deflater, ended));
        Ok((Connection { shared, _guard: guard }, incoming))
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// `Closed` when the connection has ended.
    pub async fn open(&self, headers: &[(&str, &str)]) -> Result<Stream, SpdyError> {
        let id = self.shared.next.fetch_add(2, Ordering::Relaxed);
        let headers: Vec<(String, String)> =
            headers.iter().map(|(n, v)| (n.to_ascii_lowercase(), (*v).to_owned())).collect();
        let stream = stream(&self.shared, &self._guard, id, headers.clone());
        self.shared
            .out
            .send(Frame::Syn { stream: id, headers, fin: false })
            .await
            .map_err(|_| SpdyError::Closed)?;
        Ok(stream)
    }

    /// Completes when the connection has ended.
    pub async fn ended(&self) {
        self.shared.ended.cancelled().await;
    }
}

fn stream(shared: &Arc<Shared>, guard: &Arc<DropGuard>, id: u32, headers: Vec<(String, String)>) -> Stream {
    let (sender, inbox) = mpsc::channel(INBOX);
    shared.inboxes.lock().insert(id, sender);
    Stream {
        id,
        headers,
        reader: Reader { inbox, _guard: guard.clone() },
        writer: Writer { id, shared: shared.clone(), _guard: guard.clone(), finished: false },
    }
}

async fn write_frames<W: AsyncWrite + Unpin>(
    mut write: W,
    mut frames: mpsc::Receiver<Frame>,
    mut deflater: Deflater,
    ended: CancellationToken,
) {
    let mut out = BytesMut::new();
    loop {
        let frame = tokio::select! {
            biased;
            frame = frames.recv() => frame,
            () = ended.cancelled() => {
                // What was said before the end still goes out.
                frames.close();
                match frames.recv().await {
                    Some(frame) => Some(frame),
                    None => break,
                }
            }
        };
        let Some(frame) = frame else { break };
        out.clear();
        if let Err(error) = frame::encode(&frame, &mut out, |plain, out| deflater.block(plain, out)) {
            tracing::debug!(%error, "SPDY header block cannot be made");
            break;
        }
        if write.write_all(&out).await.is_err() || write.flush().await.is_err() {
            break;
        }
    }
    ended.cancel();
    let _ = write.shutdown().await;
}

struct Reading {
    role: Role,
    shared: Arc<Shared>,
    guard: std::sync::Weak<DropGuard>,
    accepted: mpsc::Sender<Stream>,
    inflater: Inflater,
    /// The highest number of a stream that the other side has opened.
    last: u32,
}

impl Reading {
    async fn run<R: AsyncRead + Unpin>(mut self, mut read: R) -> Result<(), SpdyError> {
        let result = self.frames(&mut read).await;
        if matches!(result, Err(SpdyError::Protocol(_) | SpdyError::Headers(_))) {
            let _ = self.shared.out.try_send(Frame::GoAway { last: self.last });
        }
        result
    }

    async fn frames<R: AsyncRead + Unpin>(&mut self, read: &mut R) -> Result<(), SpdyError> {
        loop {
            let mut head = [0; 8];
            read.read_exact(&mut head).await?;
            match Head::parse(head) {
                Err(version) => {
                    return Err(SpdyError::Protocol(format!("version {version}, not 3")));
                }
                Ok(Head::Data { stream, flags, length }) => {
                    self.data(read, stream, flags, length).await?;
                }
                Ok(Head::Control { kind, flags, length }) => {
                    if length > frame::LONGEST_CONTROL {
                        return Err(SpdyError::Protocol(format!("a control frame of {length} bytes")));
                    }
                    let mut body = vec![0; length as usize];
                    read.read_exact(&mut body).await?;
                    self.control(kind, flags, &body).await?;
                }
            }
        }
    }

    async fn data<R: AsyncRead + Unpin>(
        &mut self,
        read: &mut R,
        stream: u32,
        flags: u8,
        length: u32,
    ) -> Result<(), SpdyError> {
        let inbox = self.shared.inboxes.lock().get(&stream).cloned();
        if inbox.is_none() && length > 0 {
            self.reset(stream, INVALID_STREAM).await;
        }
        let mut left = length as usize;
        while left > 0 {
            let mut chunk = vec![0; left.min(frame::CHUNK)];
            read.read_exact(&mut chunk).await?;
            left -= chunk.len();
            if let Some(inbox) = &inbox {
                // A reader that is gone wants nothing.
                let _ = inbox.send(chunk.into()).await;
            }
        }
        if flags & FLAG_FIN != 0 {
            self.shared.inboxes.lock().remove(&stream);
        }
        Ok(())
    }

    async fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<(), SpdyError> {
        let short = || SpdyError::Protocol(format!("control frame of type {kind} is cut short"));
        let number = |at: usize| -> Result<u32, SpdyError> {
            let bytes = body.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).ok_or_else(short)?;
            Ok(u32::from_be_bytes(bytes) & 0x7fff_ffff)
        };
        match kind {
            kind::SYN_STREAM => {
                let id = number(0)?;
                let headers = self.headers(body.get(10..).ok_or_else(short)?)?;
                self.opened(id, flags, headers).await?;
            }
            // Compressed blocks must be read even where nobody asks, or the next one cannot be.
            kind::SYN_REPLY | kind::HEADERS => {
                let id = number(0)?;
                self.headers(body.get(4..).ok_or_else(short)?)?;
                if flags & FLAG_FIN != 0 {
                    self.shared.inboxes.lock().remove(&id);
                }
            }
            kind::RST_STREAM => {
                self.shared.inboxes.lock().remove(&number(0)?);
            }
            kind::PING => {
                let id = number(0)?;
                let theirs = id % 2 == u32::from(self.role == Role::Server);
                if theirs {
                    let _ = self.shared.out.send(Frame::Ping(id)).await;
                }
            }
            // GOAWAY: the streams that are open go on. SETTINGS and WINDOW_UPDATE have nothing to say here.
            _ => {}
        }
        Ok(())
    }

    fn headers(&mut self, compressed: &[u8]) -> Result<Vec<(String, String)>, SpdyError> {
        let plain = self.inflater.block(compressed)?;
        frame::parse_block(&plain).ok_or_else(|| SpdyError::Protocol("a header block is malformed".into()))
    }

    async fn opened(&mut self, id: u32, flags: u8, headers: Vec<(String, String)>) -> Result<(), SpdyError> {
        let theirs = id % 2 == u32::from(self.role == Role::Server);
        if !theirs || id <= self.last {
            self.reset(id, PROTOCOL_ERROR).await;
            return Ok(());
        }
        self.last = id;
        let full = self.shared.inboxes.lock().len() >= MOST_STREAMS;
        let Some(guard) = self.guard.upgrade().filter(|_| !full) else {
            self.reset(id, REFUSED_STREAM).await;
            return Ok(());
        };
        let mut stream = stream(&self.shared, &guard, id, headers);
        if flags & FLAG_FIN != 0 {
            self.shared.inboxes.lock().remove(&id);
        }
        stream.writer.finished = flags & FLAG_UNIDIRECTIONAL != 0;
        let _ = self.shared.out.send(Frame::Reply { stream: id }).await;
        // Nobody accepts streams any more: dropping it resets it.
        let _ = self.accepted.send(stream).await;
        Ok(())
    }

    async fn reset(&self, stream: u32, status: u32) {
        let _ = self.shared.out.send(Frame::Reset { stream, status }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> ((Connection, Incoming), (Connection, Incoming)) {
        let (a, b) = tokio::io::duplex(1 << 14);
        (Connection::start(a, Role::Client).unwrap(), Connection::start(b, Role::Server).unwrap())
    }

    #[tokio::test]
    async fn a_stream_both_ways() {
        let ((client, _c), (_server, mut incoming)) = pair();
        for round in 0..3 {
            let near = client.open(&[("StreamType", "data"), ("port", &round.to_string())]).await.unwrap();
            let far = incoming.recv().await.unwrap();
            assert_eq!((far.id, far.header("streamtype")), (1 + 2 * round, Some("data")));
            let ((mut near_in, near_out), (mut far_in, far_out)) = (near.split(), far.split());
            near_out.write(Bytes::from_static(b"ping")).await.unwrap();
            near_out.finish().await.unwrap();
            assert_eq!(far_in.read().await.unwrap(), "ping");
            assert_eq!(far_in.read().await, None);
            far_out.write(Bytes::from_static(b"pong")).await.unwrap();
            assert_eq!(near_in.read().await.unwrap(), "pong");
            far_out.finish().await.unwrap();
            assert_eq!(near_in.read().await, None);
        }
    }

    #[tokio::test]
    async fn much_data_in_many_streams() {
        let ((client, _c), (server, mut incoming)) = pair();
        let echo = tokio::spawn(async move {
            while let Some(stream) = incoming.recv().await {
                tokio::spawn(async move {
                    let (mut reader, writer) = stream.split();
                    while let Some(bytes) = reader.read().await {
                        writer.write(bytes).await.unwrap();
                    }
                    writer.finish().await.unwrap();
                });
            }
        });
        let mut tasks = Vec::new();
        for n in 0..8u8 {
            let stream = client.open(&[]).await.unwrap();
            tasks.push(tokio::spawn(async move {
                let (mut reader, writer) = stream.split();
                let sending = tokio::spawn(async move {
                    for _ in 0..20 {
                        writer.write(vec![n; 100_000].into()).await.unwrap();
                    }
                    writer.finish().await.unwrap();
                });
                let mut total = 0;
                while let Some(bytes) = reader.read().await {
                    assert!(bytes.iter().all(|b| *b == n));
                    total += bytes.len();
                }
                sending.await.unwrap();
                total
            }));
        }
        for task in tasks {
            assert_eq!(task.await.unwrap(), 2_000_000);
        }
        drop((client, server));
        echo.await.unwrap();
    }

    #[tokio::test]
    async fn a_dropped_writer_resets_and_a_dropped_connection_ends() {
        let ((client, _c), (server, mut incoming)) = pair();
        let (mut reader, writer) = client.open(&[]).await.unwrap().split();
        drop(incoming.recv().await.unwrap());
        assert_eq!(reader.read().await, None);
        drop((reader, writer, client));
        tokio::time::timeout(std::time::Duration::from_secs(5), server.ended()).await.unwrap();
        assert!(incoming.recv().await.is_none());
        assert!(matches!(server.open(&[]).await, Err(SpdyError::Closed)));
    }

    #[tokio::test]
    async fn hostile_bytes_end_the_connection() {
        let check = async |bytes: &[u8]| {
            let (a, mut b) = tokio::io::duplex(1 << 16);
            let (server, _incoming) = Connection::start(a, Role::Server).unwrap();
            b.write_all(bytes).await.unwrap();
            b.shutdown().await.unwrap();
            tokio::time::timeout(std::time::Duration::from_secs(5), server.ended()).await.unwrap();
        };
        check(b"GET / HTTP/1.1\r\n\r\n").await;
        check(&[0x80, 2, 0, 1, 0, 0, 0, 0]).await;
        check(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).await;
        check(&[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0]).await;
        check(&[0x80, 3, 0, 1, 0, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]).await;
    }

    #[tokio::test]
    async fn pings_are_answered() {
        let (a, mut b) = tokio::io::duplex(1 << 16);
        let (_server, _incoming) = Connection::start(a, Role::Server).unwrap();
        let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
        b.write_all(&ping).await.unwrap();
        let mut answer = [0; 12];
        b.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, ping);
    }
}
