//! Answers that nobody expected, saved with their requests. Not more than so many: the rest are counted.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// So much of an answer is kept.
const BYTES_MAX: usize = 16 * 1024;

/// Where they go.
pub struct Unexpected {
    path: PathBuf,
    file: Option<File>,
    most: u64,
    /// How many there were.
    pub count: u64,
}

impl Unexpected {
    /// To a file that is made when there is something to save, `most` of it.
    pub fn new(path: &Path, most: u64) -> Unexpected {
        Unexpected { path: path.to_owned(), file: None, most, count: 0 }
    }

    /// Where they went, if there are any.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|_| self.path.as_path())
    }

    /// Saves one that came `at` since the start: why it was not expected, the request, and the answer as far as it came.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&mut self, why: &str, at: Duration, request: &[u8], answer: &[u8]) -> io::Result<()> {
        self.count += 1;
        if self.count > self.most {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::create(&self.path)?),
        };
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        let mut entry = format!("==== {} · {why} · {now} · {:.6} s\n", self.count, at.as_secs_f64()).into_bytes();
        for bytes in [request, answer] {
            entry.extend_from_slice(&bytes[..bytes.len().min(BYTES_MAX)]);
            entry.extend_from_slice(b"\n\n");
        }
        if self.count == self.most {
            entry.extend_from_slice(b"==== from here on they are only counted: --unexpected-max\n");
        }
        file.write_all(&entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_saved_and_the_rest_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("unexpected");
        let mut unexpected = Unexpected::new(&path, 2);
        assert_eq!((unexpected.path(), path.exists()), (None, false), "no file for nothing");
        for number in 1..=5 {
            let request = format!("POST /{number} HTTP/1.1");
            unexpected
                .save("500", Duration::from_millis(1500), request.as_bytes(), b"HTTP/1.1 500 Oh\r\n\r\nno")
                .unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("==== 1 · 500 · ")
                && text.contains("1.500000 s\nPOST /1 HTTP/1.1\n\nHTTP/1.1 500 Oh\r\n\r\nno")
        );
        assert!(text.contains("POST /2") && !text.contains("POST /3") && text.contains("--unexpected-max"));
        assert_eq!(unexpected.count, 5);
    }

    #[test]
    fn a_long_answer_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut unexpected = Unexpected::new(&dir.path().join("unexpected"), 2);
        unexpected.save("too long", Duration::ZERO, b"GET /", &vec![b'x'; 1 << 20]).unwrap();
        assert!(std::fs::metadata(unexpected.path().unwrap()).unwrap().len() < 20_000);
    }
}
