//! Skips request bodies. No request of Stampede needs a body, but clients may send one.

use crate::http::head::{BODY_BYTES_MAX, Framing};
use crate::http::problem::Problem;
use serde::{Deserialize, Serialize};

/// Maximum length of a chunk-size line, in bytes.
const LINE_BYTES_MAX: u32 = 256;

/// State of a body that is being skipped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Body with a known length: bytes that remain.
    Length(u64),
    /// Body in the chunked transfer coding (RFC 9112 §7.1).
    Chunked {
        /// Position in the coding.
        state: ChunkPart,
        /// Bytes of data announced by the chunk sizes so far.
        total: u64,
        /// Bytes of the current line that have been read.
        line: u32,
    },
}

/// Position in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkPart {
    /// In the chunk size.
    Size {
        /// Value of the digits that have been read.
        size: u64,
        /// Number of digits that have been read.
        digits: u8,
    },
    /// In the extension after the size.
    Extension {
        /// Chunk size in bytes.
        size: u64,
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
    /// Before the carriage return of the empty line after the last chunk.
    LastLine,
    /// Before the line feed of that empty line.
    End,
    /// After the body.
    Done,
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
            Framing::Chunked => Ok(Body::Chunked { state: ChunkPart::Size { size: 0, digits: 0 }, total: 0, line: 0 }),
        }
    }

    /// Returns whether the whole body has been skipped.
    pub fn is_done(&self) -> bool {
        matches!(self, Body::Length(0) | Body::Chunked { state: ChunkPart::Done, .. })
    }

    /// Skips the part of `bytes` that belongs to the body. Returns its length in bytes.
    ///
    /// # Errors
    /// [`Problem::BodyTooLarge`] if the chunks exceed [`BODY_BYTES_MAX`], and [`Problem::MalformedChunk`] for an invalid
    /// chunk.
    pub fn skip(&mut self, bytes: &[u8]) -> Result<usize, Problem> {
        match self {
            Body::Length(left) => {
                let skipped = (*left).min(bytes.len() as u64);
                *left -= skipped;
                Ok(skipped as usize)
            }
            Body::Chunked { state, total, line } => skip_chunked(state, total, line, bytes),
        }
    }
}

fn skip_chunked(state: &mut ChunkPart, total: &mut u64, line: &mut u32, bytes: &[u8]) -> Result<usize, Problem> {
    let mut at = 0;
    while at < bytes.len() && *state != ChunkPart::Done {
        if let ChunkPart::Data { left } = *state {
            let skipped = left.min((bytes.len() - at) as u64);
            at += skipped as usize;
            *state = if skipped == left { ChunkPart::DataEnd } else { ChunkPart::Data { left: left - skipped } };
            continue;
        }
        let byte = bytes[at];
        at += 1;
        *line += 1;
        if *line > LINE_BYTES_MAX {
            return Err(Problem::MalformedChunk);
        }
        *state = match (*state, byte) {
            (ChunkPart::Size { size, digits }, byte) if byte.is_ascii_hexdigit() && digits < 8 => {
                let digit = (byte as char).to_digit(16).expect("a hexadecimal digit");
                ChunkPart::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (ChunkPart::Size { size, digits: 1.. }, b'\r') | (ChunkPart::Extension { size }, b'\r') => {
                ChunkPart::SizeEnd { size }
            }
            (ChunkPart::Size { size, digits: 1.. }, b';') => ChunkPart::Extension { size },
            (ChunkPart::Extension { size }, b'\t' | b' '..=b'~') => ChunkPart::Extension { size },
            (ChunkPart::SizeEnd { size }, b'\n') => {
                *total += size;
                *line = 0;
                if *total > BODY_BYTES_MAX {
                    return Err(Problem::BodyTooLarge);
                }
                if size == 0 { ChunkPart::LastLine } else { ChunkPart::Data { left: size } }
            }
            (ChunkPart::DataEnd, b'\r') => ChunkPart::DataEndLine,
            (ChunkPart::DataEndLine, b'\n') => {
                *line = 0;
                ChunkPart::Size { size: 0, digits: 0 }
            }
            // Trailers are refused: they could contradict the framing headers, and Stampede needs none.
            (ChunkPart::LastLine, b'\r') => ChunkPart::End,
            (ChunkPart::End, b'\n') => ChunkPart::Done,
            _ => return Err(Problem::MalformedChunk),
        };
    }
    Ok(at)
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
        for body in ["0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "a;x=\"1\"\r\n0123456789\r\n00\r\n\r\n"] {
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
