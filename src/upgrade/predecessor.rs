//! The process whose place this one takes in an upgrade, if there is one: what it offers, and what it hands over.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::http::connection::Midway;
use crate::log::block::{FORMAT_VERSION, LogKind, StreamKey};
use crate::log::recovery::Ends;
use crate::system::threads;
use crate::upgrade::protocol::{FromNew, FromOld, Offer, PROTOCOL, UpgradeSocket, VARIABLE};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, getppid};
use rustix::stdio::{dup2_stdin, stdin};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// The old process, as the new one sees it.
pub struct Predecessor {
    line: UpgradeSocket,
    /// What there is to take over.
    pub offer: Offer,
}

/// Everything that the old process had.
pub struct Inheritance {
    /// What holds the data directory.
    pub lock: OwnedFd,
    /// The listener of its admin port.
    pub admin: OwnedFd,
    /// Where the streams end that it has written.
    pub ends: Ends,
    /// In the order in which they were opened.
    pub listeners: Vec<OwnedFd>,
    /// With the shards that had them, and what each is in the middle of.
    pub clients: Vec<(u16, OwnedFd, Option<Midway>)>,
}

impl Predecessor {
    /// The process that has started this one to take its place, if one has.
    ///
    /// # Errors
    /// [`Fatal::Settings`]: it only looks so.
    pub fn find() -> Result<Option<Predecessor>, Fatal> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let stranger = |why: String| Fatal::Settings(format!("{VARIABLE} is for stampede itself ({why}); unset it"));
        let line = (|| {
            let line = UpgradeSocket::new(stdin().try_clone_to_owned()?)?;
            dup2_stdin(open("/dev/null", OFlags::RDONLY, Mode::empty())?)?;
            Ok(line)
        })();
        let line = line.map_err(|error: io::Error| stranger(error.to_string()))?;
        match line.receive::<FromOld>() {
            Ok(Some((FromOld::Offer(offer), _))) => Ok(Some(Predecessor { line, offer })),
            Ok(None) => begin_anew(),
            Ok(Some(_)) => Err(stranger("no offer came".into())),
            Err(error) => Err(stranger(error.to_string())),
        }
    }

    /// Whether this version, with these settings, can go on with what there is.
    ///
    /// # Errors
    /// [`Fatal::Settings`]: it takes a restart.
    pub fn check(&self, config: &Config) -> Result<(), Fatal> {
        let Offer { protocol, version, log_format, listen, data_dir, .. } = &self.offer;
        let refused = |why: String| Err(Fatal::Settings(format!("{why}; restart instead")));
        if (*protocol, *log_format) != (PROTOCOL, FORMAT_VERSION) {
            return refused(format!(
                "the running version {version} hands over by protocol {protocol} with log format {log_format}, \
                 and this one, {}, by protocol {PROTOCOL} with log format {FORMAT_VERSION}",
                env!("CARGO_PKG_VERSION")
            ));
        }
        if *listen != config.listen {
            return refused(format!("--listen is {listen} in the running server and cannot change without a stop"));
        }
        if *data_dir != config.data_dir {
            let shown = data_dir.display();
            return refused(format!("--data-dir is {shown} in the running server and cannot change without a stop"));
        }
        Ok(())
    }

    /// Says that it can begin, and gets everything. If the old process ends before that, this one begins anew, as if it
    /// had been started alone.
    ///
    /// # Errors
    /// [`Fatal::Host`]: not everything can be taken over.
    pub fn take_everything(&self) -> Result<Inheritance, Fatal> {
        let failed = |error: io::Error| Fatal::Host(format!("the server before could not hand over: {error}"));
        let version = env!("CARGO_PKG_VERSION").to_owned();
        if self.line.send(&FromNew::Prepared { version }, &[]).is_err() {
            begin_anew();
        }
        let (mut lock, mut admin, mut ends, mut listeners, mut clients) =
            (None, None, Ends::new(), Vec::new(), Vec::new());
        loop {
            let Some((message, descriptors)) = self.line.receive().map_err(failed)? else { begin_anew() };
            match message {
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
                FromOld::Offer(_) | FromOld::Yours => return Err(failed(io::Error::other("it is confused"))),
            }
        }
        let (Some(lock), Some(admin)) = (lock, admin) else {
            return Err(failed(io::Error::other("it kept the data directory, or the admin port")));
        };
        listeners.sort_by_key(|(place, _)| *place);
        let listeners = listeners.into_iter().map(|(_, listener)| listener).collect();
        Ok(Inheritance { lock, admin, ends, listeners, clients })
    }

    /// Says that this process could serve, and waits until it is the server: because the old one says so, or is gone.
    /// One that wants to go on itself ends this one.
    ///
    /// # Errors
    /// [`Fatal::Host`]: it says something else.
    pub fn wait_for_its_word(&self) -> Result<(), Fatal> {
        let _ = self.line.send(&FromNew::Ready, &[]);
        match self.line.receive() {
            Ok(Some((FromOld::Yours, _)) | None) => Ok(()),
            said => Err(Fatal::Host(format!("the server before does not let go: {said:?}"))),
        }
    }

    /// Calls `report` on another thread when the old process has ended.
    ///
    /// # Errors
    /// [`Fatal::Host`]: no thread can be had.
    pub fn watch_it_go(self, report: impl FnOnce() + Send + 'static) -> Result<(), Fatal> {
        let watch = move || {
            while let Ok(Some(_)) = self.line.receive::<serde_json::Value>() {}
            report();
        };
        threads::spawn("predecessor", watch).map(drop)
    }
}

/// Starts this program again, as if nobody had been there before. It keeps its process id.
fn begin_anew() -> ! {
    tracing::warn!("the server before ended before it had handed everything over: starting without it");
    // A process that dies is the parent of its children until it has closed everything: its sockets and its lock.
    let old = std::env::var(VARIABLE).ok().and_then(|pid| pid.parse().ok());
    while getppid().map(Pid::as_raw_nonzero) == old {
        sleep(Duration::from_millis(1));
    }
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(arguments.next().unwrap_or_default()).args(arguments).env_remove(VARIABLE).stdin(Stdio::null());
    let error = command.exec();
    Fatal::Host(format!("starting without the server before: {error}")).exit()
}
