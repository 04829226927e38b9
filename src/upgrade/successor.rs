//! The new process of an upgrade, as the old process sees it: starts the process, tracks the stage of the upgrade and
//! its deadline, and ends the process if the upgrade is aborted. The messages are in `protocol`; the decisions are in
//! the folder `process`.

use crate::system::restart::UPGRADE_VARIABLE;
use crate::system::threads;
use crate::upgrade::protocol::{FromNew, FromOld, Offer, UpgradeSocket};
use rustix::fd::BorrowedFd;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Time limit of [`Stage::Preparing`]. Most of this time goes into reading the log.
const PREPARE_TIME: Duration = Duration::from_secs(120);
/// Time limit of [`Stage::Pausing`]. All clients wait during it.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit of [`Stage::Passing`], and of [`Stage::Passed`].
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a failed new process has to end by itself, before it is killed.
const EXIT_TIMEOUT: Duration = Duration::from_millis(100);

/// The stage of an upgrade, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The new process prepares. The old process serves.
    Preparing,
    /// The shards of the old process are paused and finish the requests in flight.
    Pausing,
    /// The shards flush their logs and send their sockets.
    Passing,
    /// The new process has everything and is not ready yet.
    Passed,
}

/// The new process of an upgrade, as the old process sees it.
pub struct Successor {
    child: Child,
    line: Arc<UpgradeSocket>,
    stage: Stage,
    /// Number of shards that have not finished this stage.
    awaited: usize,
    deadline: Instant,
    paused: Option<Instant>,
    /// Number of the run that is reserved for the new process.
    pub epoch: u32,
}

impl Successor {
    /// Starts the binary that is now at the path of this one, with the same arguments and environment, and sends it
    /// `offer`. Another thread calls `report` with the process id and each message of the new process, and with `None`
    /// when the new process has ended.
    ///
    /// # Errors
    /// The binary or a thread cannot be started.
    pub fn start(offer: Offer, report: impl Fn(u32, Option<FromNew>) + Send + 'static) -> io::Result<Successor> {
        let (line, child_end) = UpgradeSocket::pair()?;
        let mut arguments = std::env::args_os();
        let mut command = Command::new(arguments.next().unwrap_or_default());
        command
            .args(arguments)
            .env(UPGRADE_VARIABLE, std::process::id().to_string())
            .stdin(Stdio::from(child_end.into_socket()));
        // systemd sets these variables for this process alone.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        let child = command.spawn().map_err(|error| {
            io::Error::other(format!("{} cannot be started: {error}", command.get_program().display()))
        })?;
        // Close this process's copy of the child's end, so that the end closes with the child.
        drop(command);
        let line = Arc::new(line);
        let (receiver, number) = (line.clone(), child.id());
        let listen = move || {
            loop {
                let message = receiver.receive::<FromNew>().ok().flatten().map(|(message, _)| message);
                let is_gone = message.is_none();
                report(number, message);
                if is_gone {
                    return;
                }
            }
        };
        let successor = Successor {
            child,
            line,
            stage: Stage::Preparing,
            awaited: 0,
            deadline: Instant::now() + PREPARE_TIME,
            paused: None,
            epoch: offer.epoch,
        };
        if let Err(error) = threads::spawn("successor", listen) {
            successor.abort_upgrade();
            return Err(io::Error::other(error));
        }
        // If the new process has ended already, the thread reports that.
        let _ = successor.line.send(&FromOld::Offer(offer), &[]);
        Ok(successor)
    }

    /// Returns the process id of the new process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the stage of the upgrade.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Returns the time at which the current stage times out.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    fn enter(&mut self, stage: Stage, awaited: usize, time: Duration) {
        (self.stage, self.awaited, self.deadline) = (stage, awaited, Instant::now() + time);
    }

    /// Enters [`Stage::Pausing`], with `shards` shards that must finish their requests in flight.
    pub fn pause(&mut self, shards: usize) {
        self.enter(Stage::Pausing, shards, PAUSE_TIMEOUT);
        self.paused = Some(Instant::now());
    }

    /// Notes that one of `shards` shards has no requests in flight. After the last one, sends the lock of the data
    /// directory, the listener of the admin port, and the end of this process's lease if it needs one, and returns
    /// the socket on which all shards send theirs.
    ///
    /// # Errors
    /// The new process has ended, or does not receive in time.
    pub fn note_shard_idle(
        &mut self,
        shards: usize,
        lock: BorrowedFd<'_>,
        admin: BorrowedFd<'_>,
        lease_until_us: Option<u64>,
    ) -> io::Result<Option<Arc<UpgradeSocket>>> {
        if !self.was_last(Stage::Pausing) {
            return Ok(None);
        }
        self.enter(Stage::Passing, shards, HANDOVER_TIMEOUT);
        self.line.send(&FromOld::Lock, &[lock])?;
        self.line.send(&FromOld::Admin, &[admin])?;
        if let Some(until_us) = lease_until_us {
            self.line.send(&FromOld::Lease { until_us }, &[])?;
        }
        Ok(Some(self.line.clone()))
    }

    /// Notes that one shard has sent its sockets. After the last one, sends `Everything`.
    ///
    /// # Errors
    /// The new process has ended, or does not receive in time.
    pub fn note_shard_handed_over(&mut self) -> Result<(), String> {
        if !self.was_last(Stage::Passing) {
            return Ok(());
        }
        self.enter(Stage::Passed, 0, HANDOVER_TIMEOUT);
        self.line.send(&FromOld::Everything, &[]).map_err(|error| error.to_string())
    }

    /// Counts a shard that has finished `stage`, and returns whether it was the last one. The notice of the shard may
    /// belong to an aborted upgrade, which is in another stage; then it does not count.
    fn was_last(&mut self, stage: Stage) -> bool {
        let counts = self.stage == stage;
        self.awaited -= usize::from(counts);
        counts && self.awaited == 0
    }

    /// Makes the new process the server: sends `Yours`. This process must end afterwards. Returns the duration of the
    /// pause.
    ///
    /// # Errors
    /// The new process has ended, or does not receive in time.
    pub fn release_to(&self) -> io::Result<Duration> {
        self.line.send(&FromOld::Yours, &[])?;
        Ok(self.paused.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// Ends the new process, so that this process can continue to serve. Returns its exit status, for the log.
    pub fn abort_upgrade(mut self) -> String {
        // Wait for the exit status of a process that ends by itself: it explains the failure, and comes shortly after
        // the socket has closed. For a process that hangs, this adds little to the time limit that has passed.
        let deadline = Instant::now() + EXIT_TIMEOUT;
        let mut status = None;
        while status.is_none() && Instant::now() < deadline {
            sleep(Duration::from_millis(1));
            status = self.child.try_wait().ok().flatten();
        }
        let ended = status.map_or("it was still running".to_owned(), |status| status.to_string());
        // The process must have ended before its log is removed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        ended
    }
}
