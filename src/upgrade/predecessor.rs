//! The old process of an upgrade, as the new process sees it: checks the offer, receives everything, and waits until
//! this process may serve. If the old process ends too early, this process starts again without it. The messages are in
//! `protocol`.

use crate::config::fatal::Fatal;
use crate::config::logging;
use crate::config::settings::Config;
use crate::http::connection::ConnectionSnapshot;
use crate::log::block::{FORMAT_VERSION, LogKind, StreamKey};
use crate::log::recovery::Ends;
use crate::system::restart::{UPGRADE_VARIABLE, restart};
use crate::system::threads;
use crate::upgrade::protocol::{FromNew, FromOld, Offer, PROTOCOL, UpgradeSocket};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, getppid};
use rustix::stdio::{dup2_stdin, stdin};
use std::io;
use std::thread::sleep;
use std::time::Duration;

/// The old process of an upgrade, as the new process sees it.
pub struct Predecessor {
    line: UpgradeSocket,
    /// The offer of the old process.
    pub offer: Offer,
}

/// Everything that the old process has handed over.
pub struct Handover {
    /// The locked descriptor of the data directory.
    pub lock: OwnedFd,
    /// The listener of the admin port.
    pub admin: OwnedFd,
    /// End of the old process's lease, in microseconds since boot. `None` if it needs none.
    pub lease_until_us: Option<u64>,
    /// The ends of the streams that the old process has written.
    pub ends: Ends,
    /// The listeners of the public port, in the order in which they were opened.
    pub listeners: Vec<OwnedFd>,
    /// The clients: shard of the old process, socket, and state of the connection unless it is idle.
    pub clients: Vec<(u16, OwnedFd, Option<ConnectionSnapshot>)>,
}

impl Predecessor {
    /// Finds the process that has started this one for an upgrade, and receives its offer. Returns `None` for an
    /// ordinary start.
    ///
    /// # Errors
    /// [`Fatal::Settings`]: the environment variable is set, but standard input is not the socket of an upgrade.
    pub fn find() -> Result<Option<Predecessor>, Fatal> {
        if std::env::var_os(UPGRADE_VARIABLE).is_none() {
            return Ok(None);
        }
        let rejected =
            |why: String| Fatal::Settings(format!("{UPGRADE_VARIABLE} is reserved for upgrades ({why}); unset it"));
        let line = (|| {
            let line = UpgradeSocket::new(stdin().try_clone_to_owned()?)?;
            dup2_stdin(open("/dev/null", OFlags::RDONLY, Mode::empty())?)?;
            Ok(line)
        })();
        let line = line.map_err(|error: io::Error| rejected(error.to_string()))?;
        match line.receive::<FromOld>() {
            Ok(Some((FromOld::Offer(offer), _))) => Ok(Some(Predecessor { line, offer })),
            Ok(None) => restart_alone(),
            Ok(Some(_)) => Err(rejected("the first message is not an offer".into())),
            Err(error) => Err(rejected(error.to_string())),
        }
    }

    /// Checks that this version, with these settings, can take over from the old process.
    ///
    /// # Errors
    /// [`Fatal::Settings`]: this change needs a restart instead of an upgrade.
    pub fn check(&self, config: &Config) -> Result<(), Fatal> {
        let Offer { protocol, version, log_format, listen, data_dir, settings, .. } = &self.offer;
        let refused = |why: String| Err(Fatal::Settings(format!("{why}; restart the server instead")));
        if (*protocol, *log_format) != (PROTOCOL, FORMAT_VERSION) {
            let remedy = if *log_format == FORMAT_VERSION {
                "restart the server instead"
            } else {
                "follow \"Another format\" in docs/upgrades.md"
            };
            return Err(Fatal::Settings(format!(
                "the running version {version} has upgrade protocol {protocol} and log format {log_format}, and the \
                 new version {} has upgrade protocol {PROTOCOL} and log format {FORMAT_VERSION}; {remedy}",
                env!("CARGO_PKG_VERSION")
            )));
        }
        if *listen != config.listen {
            return refused(format!("--listen is {listen} in the running server and an upgrade cannot change it"));
        }
        if *data_dir != config.data_dir {
            let shown = data_dir.display();
            return refused(format!("--data-dir is {shown} in the running server and an upgrade cannot change it"));
        }
        match settings.and_then(|settings| settings.objection(config)) {
            Some(why) => Err(Fatal::Settings(format!("{why}, or restart the server"))),
            None => Ok(()),
        }
    }

    /// Sends `Prepared` with the longest time for which this process will hold an item, and receives everything. If the old process ends before `Everything`, this process executes
    /// itself again, as an ordinary start.
    ///
    /// # Errors
    /// [`Fatal::Host`]: a message is malformed, or a descriptor is missing.
    pub fn receive_handover(&self, longest_hold_ms: u64) -> Result<Handover, Fatal> {
        let failed = |error: io::Error| Fatal::Host(format!("the handover from the old process failed: {error}"));
        let version = env!("CARGO_PKG_VERSION").to_owned();
        if self.line.send(&FromNew::Prepared { version, longest_hold_ms }, &[]).is_err() {
            restart_alone();
        }
        let (mut lock, mut admin, mut ends, mut listeners, mut clients) =
            (None, None, Ends::new(), Vec::new(), Vec::new());
        let mut lease_until_us = None;
        loop {
            let Some((message, descriptors)) = self.line.receive().map_err(failed)? else { restart_alone() };
            match message {
                FromOld::Lease { until_us } => lease_until_us = Some(until_us),
                FromOld::Lock => lock = descriptors.into_iter().next(),
                FromOld::Admin => admin = descriptors.into_iter().next(),
                FromOld::Listener { place } => listeners.extend(descriptors.into_iter().map(|fd| (place, fd))),
                FromOld::Written { epoch, shard, purchases, attempts } => {
                    ends.insert(StreamKey { log: LogKind::Purchases, epoch, shard }, purchases);
                    ends.insert(StreamKey { log: LogKind::Attempts, epoch, shard }, attempts);
                }
                FromOld::Clients { shard, midway } => {
                    clients.extend(descriptors.into_iter().zip(midway).map(|(fd, midway)| (shard, fd, midway)));
                }
                FromOld::Everything => break,
                FromOld::Offer(_) | FromOld::Yours => return Err(failed(io::Error::other("unexpected message"))),
            }
        }
        let (Some(lock), Some(admin)) = (lock, admin) else {
            return Err(failed(io::Error::other("the data directory or the admin port is missing")));
        };
        listeners.sort_by_key(|(place, _)| *place);
        let listeners = listeners.into_iter().map(|(_, listener)| listener).collect();
        Ok(Handover { lock, admin, lease_until_us, ends, listeners, clients })
    }

    /// Sends `Ready`, and waits until this process is the server: the old process has sent `Yours`, or has ended. If
    /// the old process aborts the upgrade instead, it kills this process.
    ///
    /// # Errors
    /// [`Fatal::Host`]: the old process has sent another message.
    pub fn wait_for_release(&self) -> Result<(), Fatal> {
        let _ = self.line.send(&FromNew::Ready, &[]);
        match self.line.receive() {
            Ok(Some((FromOld::Yours, _)) | None) => Ok(()),
            message => Err(Fatal::Host(format!("the old process sent an unexpected message: {message:?}"))),
        }
    }

    /// Calls `report` on another thread when the old process has ended.
    ///
    /// # Errors
    /// [`Fatal::Host`]: the thread cannot be started.
    pub fn watch_exit(self, report: impl FnOnce() + Send + 'static) -> Result<(), Fatal> {
        let watch = move || {
            while let Ok(Some(_)) = self.line.receive::<serde_json::Value>() {}
            report();
        };
        threads::spawn("predecessor", watch).map(drop)
    }
}

/// Executes this program again, without an old process. The process id stays the same.
fn restart_alone() -> ! {
    tracing::warn!("the old process ended before the handover was complete: starting without it");
    // Wait until the old process has closed its sockets and its lock: it is the parent of this process until then.
    let old = std::env::var(UPGRADE_VARIABLE).ok().and_then(|pid| pid.parse().ok());
    while getppid().map(Pid::as_raw_nonzero) == old {
        sleep(Duration::from_millis(1));
    }
    logging::flush();
    let error = restart();
    Fatal::Host(format!("cannot start without the old process: {error}")).exit()
}
