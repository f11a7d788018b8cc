//! Header blocks are compressed with zlib: one stream in each direction for the whole connection, primed with the
//! dictionary of SPDY/3 (section 2.6.10.1), flushed after each block.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Words of the dictionary that are preceded by their length in four bytes.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host \
    if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200|OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";

/// The rest of it, plain.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// Longest plain header block that is taken in.
const LONGEST: usize = 64 << 10;

fn dictionary() -> Vec<u8> {
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        out.extend_from_slice(&(word.len() as u32).to_be_bytes());
        out.extend(word.bytes().map(|b| if b == b'|' { b' ' } else { b }));
    }
    out.extend_from_slice(TEXT.as_bytes());
    out
}

/// Why a header block cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The compressed stream is broken.
    #[error("compressed header block is broken: {0}")]
    Zlib(String),
    /// It is longer than anyone needs.
    #[error("header block is longer than {LONGEST} bytes")]
    TooLong,
}

fn broken(error: impl std::fmt::Display) -> HeaderError {
    HeaderError::Zlib(error.to_string())
}

pub(super) struct Deflater(Compress);

impl Deflater {
    pub fn new() -> Result<Deflater, HeaderError> {
        let mut inner = Compress::new(Compression::default(), true);
        inner.set_dictionary(&dictionary()).map_err(broken)?;
        Ok(Deflater(inner))
    }

    /// Appends the compressed form of a block to `out`.
    pub fn block(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), HeaderError> {
        let start = self.0.total_in();
        loop {
            out.reserve(plain.len() + 64);
            let used = (self.0.total_in() - start) as usize;
            self.0.compress_vec(&plain[used..], out, FlushCompress::Sync).map_err(broken)?;
            // Room left over means that the flush is complete.
            if out.len() < out.capacity() && (self.0.total_in() - start) as usize == plain.len() {
                return Ok(());
            }
        }
    }
}

pub(super) struct Inflater(Decompress);

impl Inflater {
    pub fn new() -> Inflater {
        Inflater(Decompress::new(true))
    }

    /// The plain form of a block.
    pub fn block(&mut self, compressed: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut out = Vec::with_capacity(512);
        let start = self.0.total_in();
        loop {
            let used = (self.0.total_in() - start) as usize;
            let before = (used, out.len());
            match self.0.decompress_vec(&compressed[used..], &mut out, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(broken("the stream ended")),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(broken)?;
                    continue;
                }
                Err(error) => return Err(broken(error)),
            }
            let used = (self.0.total_in() - start) as usize;
            if used == compressed.len() && out.len() < out.capacity() {
                return Ok(out);
            }
            if out.len() > LONGEST {
                return Err(HeaderError::TooLong);
            }
            if out.len() == out.capacity() {
                out.reserve(out.len());
            } else if (used, out.len()) == before {
                return Err(broken("it is cut short"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_one_of_the_protocol() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        // Every SPDY/3 connection begins with this checksum in its zlib header.
        let mut compress = Compress::new(Compression::default(), true);
        assert_eq!(compress.set_dictionary(&dictionary).unwrap(), 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_one_after_another() {
        let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new());
        let long = "streamtype data ".repeat(2000).into_bytes();
        for plain in [&b""[..], b"abc", b"abc", &long, b"abc"] {
            let mut compressed = Vec::new();
            deflater.block(plain, &mut compressed).unwrap();
            assert_eq!(inflater.block(&compressed).unwrap(), plain);
        }
    }

    #[test]
    fn a_bomb_and_garbage() {
        let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new());
        let mut compressed = Vec::new();
        deflater.block(&vec![b'a'; 10 << 20], &mut compressed).unwrap();
        assert!(matches!(inflater.block(&compressed), Err(HeaderError::TooLong)));
        assert!(matches!(Inflater::new().block(&[0x12; 40]), Err(HeaderError::Zlib(_))));
    }
}
