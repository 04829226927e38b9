//! Skips request bodies. No request of Stampede needs a body, but clients may send one. Chunk extensions and trailers
//! are checked against their grammar and discarded.

use crate::http::head::{BODY_BYTES_MAX, Framing};
use crate::http::problem::Problem;
use serde::{Deserialize, Serialize};

/// Maximum length of a chunk-size line, in bytes.
const LINE_BYTES_MAX: u32 = 256;
/// Maximum length of all chunk extensions of a body, in bytes.
const EXTENSIONS_BYTES_MAX: u32 = 8 * 1024;
/// Maximum length of the trailers of a body with the empty line behind them, in bytes.
const TRAILERS_BYTES_MAX: u32 = 8 * 1024;

/// State of a body that is being skipped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Body with a known length: bytes that remain.
    Length(u64),
    /// Body in the chunked transfer coding.
    Chunked(Chunks),
}

/// State of a body in the chunked transfer coding (RFC 9112 §7.1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunks {
    /// Position in the coding.
    pub state: ChunkPart,
    /// Bytes of data announced by the chunk sizes so far.
    pub total: u64,
    /// Bytes of the current chunk-size line, or of the trailers, that have been read.
    pub line: u32,
    /// Bytes of chunk extensions that have been read.
    pub extensions: u32,
    /// Position in the current trailer.
    pub trailer: TrailerPart,
}

/// Position in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkPart {
    /// In the chunk size.
    Size {
        /// Value of the digits that have been read.
        size: u64,
        /// Number of digits that have been read, at most 255.
        digits: u8,
    },
    /// In an extension after the size.
    Extension {
        /// Chunk size in bytes.
        size: u64,
        /// Position in the extension.
        part: ExtensionPart,
    },
    /// Before the line feed after the size.
    SizeEnd {
        /// Chunk size in bytes.
        size: u64,
    },
    /// In the data.
    Data {
        /// Bytes of the chunk that remain.
        left: u64,
    },
    /// Before the carriage return after the data.
    DataEnd,
    /// Before the line feed after the data.
    DataEndLine,
    /// In the trailers after the last chunk, or before the carriage return of the empty line behind them.
    LastLine,
    /// Before the line feed of that empty line.
    End,
    /// After the body.
    Done,
}

impl Default for ChunkPart {
    fn default() -> Self {
        ChunkPart::Size { size: 0, digits: 0 }
    }
}

/// Position in a chunk extension (RFC 9112 §7.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExtensionPart {
    /// After white space, before a semicolon.
    Gap,
    /// After a semicolon, before a name.
    Begin,
    /// In a name.
    Name,
    /// After white space behind a name.
    NameEnd,
    /// After an equals sign, before a value.
    Equals,
    /// In a value that is a token.
    Token,
    /// In a quoted value.
    Quoted,
    /// After a backslash in a quoted value.
    Escaped,
    /// After the size, or after a quoted value.
    End,
}

/// Position in a trailer, which is a field line (RFC 9112 §7.1.2).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrailerPart {
    /// Before the name, or before the empty line behind the trailers.
    #[default]
    Begin,
    /// In the name.
    Name,
    /// In the value.
    Value,
    /// Before the line feed.
    End,
}

impl Body {
    /// Returns the initial state of the body that `framing` announces.
    ///
    /// # Errors
    /// [`Problem::BodyTooLarge`] if the length is above [`BODY_BYTES_MAX`].
    pub fn new(framing: Framing) -> Result<Body, Problem> {
        match framing {
            Framing::Length(length) if length > BODY_BYTES_MAX => Err(Problem::BodyTooLarge),
            Framing::Length(length) => Ok(Body::Length(length)),
            Framing::Chunked => Ok(Body::Chunked(Chunks::default())),
        }
    }

    /// Returns whether the whole body has been skipped.
    pub fn is_done(&self) -> bool {
        matches!(self, Body::Length(0) | Body::Chunked(Chunks { state: ChunkPart::Done, .. }))
    }

    /// Skips the part of `bytes` that belongs to the body. Returns its length in bytes.
    ///
    /// # Errors
    /// [`Problem::BodyTooLarge`] if the chunks exceed [`BODY_BYTES_MAX`] or their extensions 8 KiB,
    /// [`Problem::HeadTooLarge`] if the trailers exceed 8 KiB, and [`Problem::MalformedChunk`] for an invalid chunk or
    /// trailer.
    pub fn skip(&mut self, bytes: &[u8]) -> Result<usize, Problem> {
        match self {
            Body::Length(left) => {
                let skipped = (*left).min(bytes.len() as u64);
                *left -= skipped;
                Ok(skipped as usize)
            }
            Body::Chunked(chunks) => chunks.skip(bytes),
        }
    }
}

impl Chunks {
    fn skip(&mut self, bytes: &[u8]) -> Result<usize, Problem> {
        let mut at = 0;
        while at < bytes.len() && self.state != ChunkPart::Done {
            if let ChunkPart::Data { left } = self.state {
                let skipped = left.min((bytes.len() - at) as u64);
                at += skipped as usize;
                let rest = ChunkPart::Data { left: left - skipped };
                self.state = if skipped == left { ChunkPart::DataEnd } else { rest };
            } else {
                self.state = self.after(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    /// Returns the position after a byte outside of the data.
    fn after(&mut self, byte: u8) -> Result<ChunkPart, Problem> {
        self.line += 1;
        match self.state {
            ChunkPart::LastLine | ChunkPart::End if self.line > TRAILERS_BYTES_MAX => {
                return Err(Problem::HeadTooLarge);
            }
            ChunkPart::LastLine | ChunkPart::End => {}
            _ if self.line > LINE_BYTES_MAX => return Err(Problem::MalformedChunk),
            _ => {}
        }
        Ok(match (self.state, byte) {
            (ChunkPart::Size { size, digits }, byte) if byte.is_ascii_hexdigit() => {
                let digit = (byte as char).to_digit(16).expect("a hexadecimal digit");
                let size = size << 4 | u64::from(digit);
                // At once, so that no size overflows, however many digits follow.
                if size > BODY_BYTES_MAX {
                    return Err(Problem::BodyTooLarge);
                }
                ChunkPart::Size { size, digits: digits.saturating_add(1) }
            }
            (ChunkPart::Size { size, digits: 1.. }, byte) => self.after_extension(size, ExtensionPart::End, byte)?,
            (ChunkPart::Extension { size, part }, byte) => self.after_extension(size, part, byte)?,
            (ChunkPart::SizeEnd { size }, b'\n') => {
                self.total += size;
                self.line = 0;
                if self.total > BODY_BYTES_MAX {
                    return Err(Problem::BodyTooLarge);
                }
                if size == 0 { ChunkPart::LastLine } else { ChunkPart::Data { left: size } }
            }
            (ChunkPart::DataEnd, b'\r') => ChunkPart::DataEndLine,
            (ChunkPart::DataEndLine, b'\n') => {
                self.line = 0;
                ChunkPart::default()
            }
            (ChunkPart::LastLine, b'\r') if self.trailer == TrailerPart::Begin => ChunkPart::End,
            (ChunkPart::LastLine, byte) => {
                self.trailer = self.trailer.after(byte).ok_or(Problem::MalformedChunk)?;
                ChunkPart::LastLine
            }
            (ChunkPart::End, b'\n') => ChunkPart::Done,
            _ => return Err(Problem::MalformedChunk),
        })
    }

    /// Returns the position after a byte that follows the digits of a chunk size.
    fn after_extension(&mut self, size: u64, part: ExtensionPart, byte: u8) -> Result<ChunkPart, Problem> {
        if byte == b'\r' && matches!(part, ExtensionPart::Name | ExtensionPart::Token | ExtensionPart::End) {
            return Ok(ChunkPart::SizeEnd { size });
        }
        self.extensions += 1;
        if self.extensions > EXTENSIONS_BYTES_MAX {
            return Err(Problem::BodyTooLarge);
        }
        let part = part.after(byte).ok_or(Problem::MalformedChunk)?;
        Ok(ChunkPart::Extension { size, part })
    }
}

impl ExtensionPart {
    /// Returns the position after a byte, or `None` if the byte is not allowed here.
    fn after(self, byte: u8) -> Option<ExtensionPart> {
        use ExtensionPart::*;
        Some(match (self, byte) {
            (Quoted, b'"') => End,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, byte) if is_text(byte) => Quoted,
            (Gap | Begin | NameEnd | Equals, b' ' | b'\t') => self,
            (Name, b' ' | b'\t') => NameEnd,
            (Token | End, b' ' | b'\t') => Gap,
            (Gap | Name | NameEnd | Token | End, b';') => Begin,
            (Name | NameEnd, b'=') => Equals,
            (Equals, b'"') => Quoted,
            (Begin | Name, byte) if is_token(byte) => Name,
            (Equals | Token, byte) if is_token(byte) => Token,
            _ => return None,
        })
    }
}

impl TrailerPart {
    /// Returns the position after a byte, or `None` if the byte is not allowed here.
    fn after(self, byte: u8) -> Option<TrailerPart> {
        use TrailerPart::*;
        Some(match (self, byte) {
            (Begin | Name, byte) if is_token(byte) => Name,
            (Name, b':') => Value,
            (Value, b'\r') => End,
            (Value, byte) if is_text(byte) => Value,
            (End, b'\n') => Begin,
            _ => return None,
        })
    }
}

/// Returns whether a byte can be part of a token (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Returns whether a byte can be part of a field value or a quoted string (RFC 9110 §5.5 and §5.6.4).
fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(bytes: &[u8], step: usize) -> Result<(usize, bool), Problem> {
        let mut body = Body::new(Framing::Chunked)?;
        let mut skipped = 0;
        for piece in bytes.chunks(step) {
            let used = body.skip(piece)?;
            skipped += used;
            if used < piece.len() {
                break;
            }
        }
        Ok((skipped, body.is_done()))
    }

    #[test]
    fn chunked_bodies_end_where_they_should() {
        for body in [
            "0\r\n\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            "a;x=\"1\"\r\n0123456789\r\n00\r\n\r\n",
            "00000000000000000000a ; x\t=\t\"1\\\"\" ;y\r\n0123456789\r\n0;z\r\nA:\r\nB-c: \td\r\n\r\n",
        ] {
            let bytes = format!("{body}next");
            for step in 1..bytes.len() {
                assert_eq!(skip(bytes.as_bytes(), step), Ok((body.len(), true)), "{body:?} in steps of {step}");
            }
            assert_eq!(skip(&body.as_bytes()[..body.len() - 1], 1), Ok((body.len() - 1, false)));
        }
    }

    #[test]
    fn large_bodies_are_refused_when_they_are_announced() {
        assert_eq!(skip(b"ffffffff\r\n", 1), Err(Problem::BodyTooLarge));
        assert!(matches!(Body::new(Framing::Length(BODY_BYTES_MAX + 1)), Err(Problem::BodyTooLarge)));
        assert!(Body::new(Framing::Length(BODY_BYTES_MAX)).is_ok());
        let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
        assert_eq!(skip(chunk.repeat(3).as_bytes(), 1000), Err(Problem::BodyTooLarge));
    }
}
