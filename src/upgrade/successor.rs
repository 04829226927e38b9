//! The process that is to take the place of this one in an upgrade.

use crate::system::threads;
use crate::upgrade::protocol::{FromNew, FromOld, Offer, UpgradeSocket, VARIABLE};
use rustix::fd::BorrowedFd;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long the new process may prepare itself: most of it is to read the log.
const PREPARE_TIME: Duration = Duration::from_secs(120);
/// How long it may take until nobody waits for a decision, with every client waiting.
const STILL_TIME: Duration = Duration::from_secs(2);
/// How long the rest may take.
const TAKE_TIME: Duration = Duration::from_secs(5);
/// How long one that fails may take to end by itself.
const END_TIME: Duration = Duration::from_millis(100);

/// How far an upgrade is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The new process prepares itself.
    Preparing,
    /// Requests in flight finish.
    Pausing,
    /// Shards hand over what they have.
    Passing,
    /// The new process makes itself ready.
    Passed,
}

/// The new process, as the old one sees it.
pub struct Successor {
    child: Child,
    line: Arc<UpgradeSocket>,
    stage: Stage,
    /// Shards that have yet to do their part in this stage.
    awaited: usize,
    deadline: Instant,
    paused: Option<Instant>,
    /// The run that was set aside for it.
    pub epoch: u32,
}

impl Successor {
    /// Starts the binary that is now where this one was started from, with the same arguments and environment; what it
    /// says is passed to `report` with its process id, and `None` when it is gone.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(offer: Offer, report: impl Fn(u32, Option<FromNew>) + Send + 'static) -> io::Result<Successor> {
        let (line, its_end) = UpgradeSocket::pair()?;
        let mut arguments = std::env::args_os();
        let mut command = Command::new(arguments.next().unwrap_or_default());
        command.args(arguments).env(VARIABLE, std::process::id().to_string()).stdin(Stdio::from(its_end.into_socket()));
        // Meant for this process alone.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        let child = command.spawn().map_err(|error| {
            io::Error::other(format!("{} cannot be started: {error}", command.get_program().display()))
        })?;
        // The other end must close with the child.
        drop(command);
        let line = Arc::new(line);
        let (ear, number) = (line.clone(), child.id());
        let listen = move || {
            loop {
                let said = ear.receive::<FromNew>().ok().flatten().map(|(said, _)| said);
                let is_gone = said.is_none();
                report(number, said);
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
            successor.call_off();
            return Err(io::Error::other(error));
        }
        // If it is gone already, that is heard like everything that it says.
        let _ = successor.line.send(&FromOld::Offer(offer), &[]);
        Ok(successor)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How far it is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// When it must have come further.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    fn enter(&mut self, stage: Stage, awaited: usize, time: Duration) {
        (self.stage, self.awaited, self.deadline) = (stage, awaited, Instant::now() + time);
    }

    /// It is prepared, and so many shards are told to pause.
    pub fn pause(&mut self, shards: usize) {
        self.enter(Stage::Pausing, shards, STILL_TIME);
        self.paused = Some(Instant::now());
    }

    /// One of so many shards has no requests in flight any more. If it was the last one, returns where all are to hand
    /// over what they have.
    ///
    /// # Errors
    /// The new process is gone.
    pub fn shard_is_still(
        &mut self,
        shards: usize,
        lock: BorrowedFd<'_>,
        admin: BorrowedFd<'_>,
    ) -> io::Result<Option<Arc<UpgradeSocket>>> {
        if !self.was_last(Stage::Pausing) {
            return Ok(None);
        }
        self.enter(Stage::Passing, shards, TAKE_TIME);
        self.line.send(&FromOld::Lock, &[lock])?;
        self.line.send(&FromOld::Admin, &[admin])?;
        Ok(Some(self.line.clone()))
    }

    /// A shard has handed over what it had.
    ///
    /// # Errors
    /// The new process is gone.
    pub fn shard_has_handed_over(&mut self) -> Result<(), String> {
        if !self.was_last(Stage::Passing) {
            return Ok(());
        }
        self.enter(Stage::Passed, 0, TAKE_TIME);
        self.line.send(&FromOld::Everything, &[]).map_err(|error| error.to_string())
    }

    /// Whether a shard that has done its part in `stage` was the last one. It may be of an upgrade that was called off.
    fn was_last(&mut self, stage: Stage) -> bool {
        let counts = self.stage == stage;
        self.awaited -= usize::from(counts);
        counts && self.awaited == 0
    }

    /// Makes it the server; this process must end then. Returns how long nobody has been served.
    ///
    /// # Errors
    /// It is gone.
    pub fn let_go(&self) -> io::Result<Duration> {
        self.line.send(&FromOld::Yours, &[])?;
        Ok(self.paused.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// Ends it, for this process to go on. Returns how it has ended, for people.
    pub fn call_off(mut self) -> String {
        // One that ends by itself says more by its status, which comes a little after its end of the line has closed.
        // One that is stuck says nothing; beside the time that it was given, this is little.
        let patience = Instant::now() + END_TIME;
        let mut status = None;
        while status.is_none() && Instant::now() < patience {
            sleep(Duration::from_millis(1));
            status = self.child.try_wait().ok().flatten();
        }
        let ended = status.map_or("it was still there".to_owned(), |status| status.to_string());
        // It must be gone before what it has written is removed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        ended
    }
}
