//! The standard streams, in the state in which the parent process has left them: closed, full, broken, or non-blocking.
//! Rust's runtime opens `/dev/null` in the place of closed ones, so that no socket and no file of the log gets their
//! numbers.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::AsFd;
use rustix::stdio::stdout;
use std::fs::File;
use std::io::{self, ErrorKind, Write};

/// A stream that waits until it can be written, if another process has made it non-blocking.
pub struct PatientStream<W>(pub W);

impl<W: Write + AsFd> Write for PatientStream<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Returns standard output without a buffer: that of `io::stdout` loses what does not fit into a non-blocking stream.
///
/// # Errors
/// No file descriptor is left.
pub fn standard_output() -> io::Result<PatientStream<File>> {
    Ok(PatientStream(File::from(stdout().try_clone_to_owned()?)))
}

/// Prints the output of a command on standard output. It is no error if the reader has closed it, such as `head`.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(text: &str) -> io::Result<()> {
    match standard_output()?.write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints a line of an error on standard error. If that cannot be written, the exit code has to tell.
pub fn complain(line: &str) {
    // Write the line at once: in an upgrade, two processes write to the same standard error.
    let _ = PatientStream(io::stderr()).write_all(format!("{line}\n").as_bytes());
}
