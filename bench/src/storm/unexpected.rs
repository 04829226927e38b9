//! The file of unexpected responses and their requests. The number of saved entries is limited; the rest are counted.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Maximum size of a saved request or response, in bytes. The rest is cut off.
const BYTES_MAX: usize = 16 * 1024;

/// Saves and counts unexpected responses.
pub struct UnexpectedResponses {
    path: PathBuf,
    file: Option<File>,
    most: u64,
    /// Number of unexpected responses, saved or not.
    pub count: u64,
}

impl UnexpectedResponses {
    /// Creates a recorder of at most `most` entries. The file is created with the first entry.
    pub fn new(path: &Path, most: u64) -> UnexpectedResponses {
        UnexpectedResponses { path: path.to_owned(), file: None, most, count: 0 }
    }

    /// Returns the path of the file, if there is an entry.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|_| self.path.as_path())
    }

    /// Saves a response that arrived `at` after the start of the run: the reason, the request, and the bytes of the
    /// response received so far.
    ///
    /// # Errors
    /// Returns an I/O error if the file cannot be created or written.
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
            entry.extend_from_slice(b"==== further entries are only counted: --unexpected-max\n");
        }
        file.write_all(&entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_over_the_limit_are_only_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("unexpected");
        let mut unexpected = UnexpectedResponses::new(&path, 2);
        assert_eq!((unexpected.path(), path.exists()), (None, false), "no file without an entry");
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
    fn a_long_response_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut unexpected = UnexpectedResponses::new(&dir.path().join("unexpected"), 2);
        unexpected.save("too long", Duration::ZERO, b"GET /", &vec![b'x'; 1 << 20]).unwrap();
        assert!(std::fs::metadata(unexpected.path().unwrap()).unwrap().len() < 20_000);
    }
}
