//! Executes this program again, as the same process: every thread ends, and every file and socket is closed, except the
//! sockets of the service manager if [`listener`] keeps them.

use crate::system::listener;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{self, Command, Stdio};

/// Environment variable that marks a process as the new one of an upgrade. The value is the process id of the old
/// process, and standard input is the socket.
pub const UPGRADE_VARIABLE: &str = "STAMPEDE_TAKES_OVER_FROM";

/// Starts the program anew, with the same arguments and as no part of an upgrade. Returns only the error.
pub fn restart() -> io::Error {
    let mut command = again();
    if listener::kept() > 0 {
        // As the service manager passed them. The process id stays the same.
        command.env("LISTEN_PID", process::id().to_string()).env("LISTEN_FDS", listener::kept().to_string());
    }
    command.exec()
}

/// Runs the program with `--check-config` beside this process: it reads the settings and the plan as they are now.
///
/// # Errors
/// Why the program would not start, in one line.
pub fn check_settings() -> Result<(), String> {
    let output = again().arg("--check-config").output().map_err(|error| error.to_string())?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    if output.status.success() { Ok(()) } else { Err(complaint) }
}

fn again() -> Command {
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(arguments.next().unwrap_or_default())
        .args(arguments)
        .env_remove(UPGRADE_VARIABLE)
        .stdin(Stdio::null());
    command
}
