//! SPDY/3.1 frames as bytes (draft-mbelshe-httpbis-spdy-00, section 2).

use bytes::{BufMut as _, Bytes, BytesMut};

/// Frame types of control frames.
pub(super) mod kind {
    pub const SYN_STREAM: u16 = 1;
    pub const SYN_REPLY: u16 = 2;
    pub const RST_STREAM: u16 = 3;
    pub const PING: u16 = 6;
    pub const GOAWAY: u16 = 7;
    pub const HEADERS: u16 = 8;
}

const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;

/// The sender says nothing more on this stream.
pub(super) const FLAG_FIN: u8 = 1;
/// On SYN_STREAM: the other side says nothing on this stream.
pub(super) const FLAG_UNIDIRECTIONAL: u8 = 2;

/// Longest control frame that is taken in. Header blocks of exec and port-forward have a few dozen bytes.
pub(super) const LONGEST_CONTROL: u32 = 64 << 10;

/// Most bytes of one DATA frame that is sent.
pub(super) const CHUNK: usize = 32 << 10;

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    Control { kind: u16, flags: u8, length: u32 },
    Data { stream: u32, flags: u8, length: u32 },
}

impl Head {
    /// Why a version that is not spoken here is refused.
    pub fn parse(bytes: [u8; 8]) -> Result<Head, u16> {
        let [a, b, c, d, flags, x, y, z] = bytes;
        let length = u32::from_be_bytes([0, x, y, z]);
        let first = u16::from_be_bytes([a, b]);
        if first & CONTROL == 0 {
            return Ok(Head::Data { stream: u32::from_be_bytes([a, b, c, d]), flags, length });
        }
        match first & !CONTROL {
            VERSION => Ok(Head::Control { kind: u16::from_be_bytes([c, d]), flags, length }),
            other => Err(other),
        }
    }
}

/// What the writer sends.
#[derive(Debug)]
pub(super) enum Frame {
    Syn { stream: u32, headers: Vec<(String, String)>, fin: bool },
    Reply { stream: u32 },
    Data { stream: u32, bytes: Bytes, fin: bool },
    Reset { stream: u32, status: u32 },
    Ping(u32),
    GoAway { last: u32 },
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, body: &[u8]) {
    out.put_u16(CONTROL | VERSION);
    out.put_u16(kind);
    // Bodies are made here and short: far below 24 bits.
    out.put_u32(u32::from(flags) << 24 | (body.len() as u32 & 0xff_ffff));
    out.put_slice(body);
}

/// Encodes a frame; `compress` turns a plain header block into the connection's compressed stream.
pub(super) fn encode<E>(
    frame: &Frame,
    out: &mut BytesMut,
    mut compress: impl FnMut(&[u8], &mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let mut body = Vec::new();
    match frame {
        Frame::Syn { stream, headers, fin } => {
            body.put_u32(*stream);
            body.put_u32(0);
            // Priority 0, no slot.
            body.put_u16(0);
            compress(&block(headers), &mut body)?;
            control(out, kind::SYN_STREAM, if *fin { FLAG_FIN } else { 0 }, &body);
        }
        Frame::Reply { stream } => {
            body.put_u32(*stream);
            compress(&block(&[]), &mut body)?;
            control(out, kind::SYN_REPLY, 0, &body);
        }
        Frame::Data { stream, bytes, fin } => {
            let mut rest = bytes.clone();
            loop {
                let chunk = rest.split_to(rest.len().min(CHUNK));
                let last = rest.is_empty();
                out.put_u32(*stream);
                let flags = if *fin && last { FLAG_FIN } else { 0 };
                out.put_u32(u32::from(flags) << 24 | chunk.len() as u32);
                out.put_slice(&chunk);
                if last {
                    return Ok(());
                }
            }
        }
        Frame::Reset { stream, status } => {
            body.put_u32(*stream);
            body.put_u32(*status);
            control(out, kind::RST_STREAM, 0, &body);
        }
        Frame::Ping(id) => {
            body.put_u32(*id);
            control(out, kind::PING, 0, &body);
        }
        Frame::GoAway { last } => {
            body.put_u32(*last);
            body.put_u32(0);
            control(out, kind::GOAWAY, 0, &body);
        }
    }
    Ok(())
}

/// A plain header block.
fn block(headers: &[(String, String)]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(headers.len() as u32);
    for (name, value) in headers {
        for text in [name.to_ascii_lowercase().as_bytes(), value.as_bytes()] {
            out.put_u32(text.len() as u32);
            out.put_slice(text);
        }
    }
    out
}

/// The pairs of a plain header block; `None` when it is cut short or not text.
pub(super) fn parse_block(mut bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let number = |bytes: &mut &[u8]| -> Option<usize> {
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        *bytes = rest;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    };
    let count = number(&mut bytes)?;
    let mut pairs = Vec::new();
    for _ in 0..count {
        let text = |bytes: &mut &[u8]| -> Option<String> {
            let length = number(bytes)?;
            let (head, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            String::from_utf8(head.to_vec()).ok()
        };
        let name = text(&mut bytes)?;
        pairs.push((name, text(&mut bytes)?));
    }
    Some(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let check = |bytes: [u8; 8], expected: Result<Head, u16>| assert_eq!(Head::parse(bytes), expected);
        check([0x80, 3, 0, 6, 0, 0, 0, 4], Ok(Head::Control { kind: 6, flags: 0, length: 4 }));
        check([0, 0, 0, 5, 1, 1, 0, 2], Ok(Head::Data { stream: 5, flags: 1, length: 65538 }));
        check([0x80, 2, 0, 1, 0, 0, 0, 0], Err(2));
    }

    #[test]
    fn blocks_that_lie_about_their_length() {
        let good = block(&[("StreamType".into(), "data".into())]);
        assert_eq!(parse_block(&good), Some(vec![("streamtype".into(), "data".into())]));
        for cut in 0..good.len() {
            assert_eq!(parse_block(&good[..cut]), None, "{cut}");
        }
        assert_eq!(parse_block(&[0xff; 12]), None);
    }
}
