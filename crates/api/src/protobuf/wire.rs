//! Protobuf's wire form: tags, varints and lengths, read with distrust and written plainly.

use super::Error;

/// A value as it stands in a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2: text, bytes, a message or packed numbers.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
    /// Wire types 3 and 4, skipped to their end: no message here has any.
    Group,
}

impl<'a> Scalar<'a> {
    /// The wire type's number.
    pub fn wire_type(self) -> u8 {
        match self {
            Scalar::Varint(_) => 0,
            Scalar::Fixed64(_) => 1,
            Scalar::Bytes(_) => 2,
            Scalar::Group => 3,
            Scalar::Fixed32(_) => 5,
        }
    }

    fn wrong(self, field: &str) -> Error {
        Error::new(format!("proto: wrong wireType = {} for field {field}", self.wire_type()))
    }

    /// A varint.
    ///
    /// # Errors
    /// Another wire type.
    pub fn varint(self, field: &str) -> Result<u64, Error> {
        match self {
            Scalar::Varint(value) => Ok(value),
            other => Err(other.wrong(field)),
        }
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// Another wire type.
    pub fn fixed64(self, field: &str) -> Result<u64, Error> {
        match self {
            Scalar::Fixed64(value) => Ok(value),
            other => Err(other.wrong(field)),
        }
    }

    /// Bytes or a message.
    ///
    /// # Errors
    /// Another wire type.
    pub fn bytes(self, field: &str) -> Result<&'a [u8], Error> {
        match self {
            Scalar::Bytes(value) => Ok(value),
            other => Err(other.wrong(field)),
        }
    }

    /// Text.
    ///
    /// # Errors
    /// Another wire type, or no UTF-8.
    pub fn text(self, field: &str) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes(field)?)
            .map_err(|_| Error::new(format!("proto: field {field} contains invalid UTF-8")))
    }
}

/// Reads the fields of one message.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Of these bytes.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Whether all is read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Error> {
        let count = usize::try_from(count).ok().filter(|count| *count <= self.rest.len());
        let Some(count) = count else { return Err(Error::new("unexpected EOF")) };
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(taken)
    }

    /// A number of seven bits a byte.
    ///
    /// # Errors
    /// It is cut off or has more than 64 bits.
    pub fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { return Err(Error::new("unexpected EOF")) };
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Error::new("proto: integer overflow"))
    }

    fn scalar(&mut self, wire_type: u64) -> Result<Scalar<'a>, Error> {
        Ok(match wire_type {
            0 => Scalar::Varint(self.varint()?),
            1 => Scalar::Fixed64(little_endian(self.take(8)?)),
            2 => {
                let length = self.varint()?;
                if length > i64::MAX as u64 {
                    return Err(Error::new("proto: negative length found during unmarshaling"));
                }
                Scalar::Bytes(self.take(length)?)
            }
            5 => Scalar::Fixed32(little_endian(self.take(4)?) as u32),
            other => return Err(Error::new(format!("proto: illegal wireType {other}"))),
        })
    }

    fn tag(&mut self) -> Result<(u32, u64), Error> {
        let tag = self.varint()?;
        let (number, wire_type) = (tag >> 3, tag & 7);
        match u32::try_from(number) {
            Ok(number) if number > 0 => Ok((number, wire_type)),
            _ => Err(Error::new(format!("proto: illegal tag {number} (wire type {wire_type})"))),
        }
    }

    /// The next field's number and value; `None` at the end.
    ///
    /// # Errors
    /// What stands there is no field.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<(u32, Scalar<'a>)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = self.tag()?;
        match wire_type {
            3 => {
                // Groups may lie within groups: counted, not recursed into.
                let mut depth = 1usize;
                while depth > 0 {
                    match self.tag()?.1 {
                        3 => depth += 1,
                        4 => depth -= 1,
                        other => {
                            self.scalar(other)?;
                        }
                    }
                }
                Ok(Some((number, Scalar::Group)))
            }
            4 => Err(Error::new("proto: unexpected end of group")),
            other => Ok(Some((number, self.scalar(other)?))),
        }
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a number's field.
pub fn put_number(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value);
}

/// Appends a double's field.
pub fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

/// Appends a field of bytes, text or an encoded message.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a message's field; `fill` writes what is in it.
pub fn put_message(out: &mut Vec<u8>, number: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    put_varint(out, u64::from(number) << 3 | 2);
    let at = out.len();
    // Most messages are short: one byte for the length, moved aside for longer ones.
    out.push(0);
    fill(out);
    let length = out.len() - at - 1;
    if length < 0x80 {
        out[at] = length as u8;
        return;
    }
    let mut prefix = Vec::with_capacity(10);
    put_varint(&mut prefix, length as u64);
    out.splice(at..=at, prefix);
}
