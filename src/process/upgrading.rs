//! The old process's side of an upgrade.
//!
//! 1. Start the new process, which prepares itself while this one serves.
//! 2. When the new process is prepared, pause: finish the requests in flight, read no more.
//! 3. When all shards have paused, pass the lock and the admin port; then each shard passes its sockets and
//!    connections.
//! 4. When the new process is ready, hand over: the new process serves, and this one ends.
//!
//! If a step fails or times out, this process ends the new one and continues to serve.

use crate::log::block::FORMAT_VERSION;
use crate::log::segment::remove_run;
use crate::operate::status::Phase;
use crate::process::supervisor::Supervisor;
use crate::runtime::control::{Notice, Order};
use crate::sale::rules::Ack;
use crate::upgrade::protocol::{FromNew, KeptSettings, Offer, PROTOCOL};
use crate::upgrade::successor::{Stage, Successor};
use rustix::fd::AsFd;
use std::os::unix::process::parent_id;
use std::sync::atomic::Ordering;

/// Logs that the upgrade for which `signal` has asked does not begin.
pub fn refuse(signal: &str, why: &str) {
    tracing::warn!(signal, why, "the upgrade was refused");
}

/// Programs that run as the first process of a container and end when the process that they have started ends.
const INITS: [&str; 5] = [
    "tini",
    "dumb-init",
    // `docker run --init`
    "docker-init",
    // `podman run --init`, by its versions
    "catatonit",
    "podman-init",
];

/// Returns why the end of this process would end all processes of its container, if it would.
fn ends_container() -> Option<&'static str> {
    match parent_id() {
        // The parent is outside. In a pod whose containers see each other's processes, this need not be process 1.
        0 => Some("this is the first process of a container"),
        1 => {
            let init = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
            INITS.contains(&init.trim_end()).then_some("the first process of the container ends with this one")
        }
        _ => None,
    }
}

impl Supervisor {
    /// Starts a new process after `signal`, which prepares itself while this one serves. Logs the reason if an upgrade
    /// is not possible.
    pub fn upgrade(&mut self, signal: &str) {
        let is_connected = self.status.is_database_connected.load(Ordering::Relaxed);
        let ack = self.config.rules.ack;
        let container = ends_container();
        let objection = match self.status.phase() {
            _ if self.successor.is_some() || self.deferred_work.is_some() => Some("an upgrade is in progress"),
            _ if container.is_some() => container,
            Phase::Serving if ack == Ack::Postgres && !is_connected => {
                Some("--ack postgres is set and the database is unavailable")
            }
            Phase::Serving if ack == Ack::Replicated && !is_connected => {
                Some("--ack replicated is set and the database is unavailable")
            }
            Phase::Serving => None,
            _ => Some("this process is not serving"),
        };
        if let Some(why) = objection {
            return refuse(signal, why);
        }
        let offer = self.site.control.raise_epoch().map(|epoch| Offer {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            log_format: FORMAT_VERSION,
            listen: self.config.listen,
            admin_listen: self.config.admin_listen,
            data_dir: self.config.data_dir.clone(),
            epoch,
            settings: Some(KeptSettings::of(&self.config)),
            clock: Some(self.clock.discipline()),
        });
        let notices = self.shards.notices.clone();
        let report = move |pid, message| _ = notices.send(Notice::Successor(pid, message));
        match offer.and_then(|offer| Successor::start(offer, report)) {
            Ok(successor) => {
                tracing::info!(signal, pid = successor.pid(), "upgrading: the new process is preparing");
                self.manager.reloading();
                self.successor = Some(successor);
            }
            Err(error) => refuse(signal, &error.to_string()),
        }
    }

    /// Takes the next step of an upgrade after `notice`. Returns whether the new process serves, so that this one must
    /// end.
    pub fn advance_upgrade(&mut self, notice: Notice) -> bool {
        let Some(successor) = self.successor.as_mut() else { return false };
        let step = match notice {
            Notice::Successor(pid, message) => return self.handle_successor(pid, message),
            Notice::HandedOver(_, handed_over) => handed_over.and_then(|()| successor.note_shard_handed_over()),
            _ => self.note_shard_idle(),
        };
        if let Err(why) = step {
            self.abort_upgrade(&why);
        }
        false
    }

    /// Handles a message of the new process, or its end (`None`). Returns whether the new process serves, so that this
    /// one must end.
    fn handle_successor(&mut self, pid: u32, message: Option<FromNew>) -> bool {
        let Some(successor) = self.successor.as_mut().filter(|successor| successor.pid() == pid) else { return false };
        match (message, successor.stage()) {
            (Some(FromNew::Prepared { version, longest_hold_ms }), Stage::Preparing) => {
                if let Err(error) = self.site.control.raise_longest_hold(longest_hold_ms) {
                    self.abort_upgrade(&error.to_string());
                    return false;
                }
                successor.pause(self.shards.threads.len());
                self.enter(Phase::Paused);
                tracing::info!(version, "pausing: the new process is prepared; finishing requests in flight");
            }
            (Some(FromNew::Ready), Stage::Passed) => {
                // Report the new process id first: the new process serves as soon as it is released, and the service
                // manager must not take the end of this process for the end of the server.
                self.manager.set_main_pid(pid);
                match successor.release_to() {
                    Ok(pause) => {
                        let ms = pause.as_secs_f64() * 1000.0;
                        tracing::info!(pid, ms, "handed over: the new process serves");
                        return true;
                    }
                    Err(error) => {
                        self.manager.set_main_pid(std::process::id());
                        self.abort_upgrade(&error.to_string());
                    }
                }
            }
            (None, _) => self.abort_upgrade("the new process ended"),
            (Some(_), _) => self.abort_upgrade("the new process sent an unexpected message"),
        }
        false
    }

    /// Counts a shard that has no requests in flight. After the last one, orders all shards to hand over.
    fn note_shard_idle(&mut self) -> Result<(), String> {
        let successor = self.successor.as_mut().expect("an upgrade is in progress");
        let (lock, admin) = (self.site.dir.lock_descriptor(), self.admin.as_fd());
        let lease_until_us = self.config.pair.map(|_| self.status.lease.until_us());
        let line = successor.note_shard_idle(self.shards.threads.len(), lock, admin, lease_until_us);
        if let Some(line) = line.map_err(|error| error.to_string())? {
            for orders in &self.shards.orders {
                let _ = orders.send(Order::HandOver(line.clone()));
            }
            self.ring();
        }
        Ok(())
    }

    /// Aborts the upgrade, if one is in progress: ends the new process, removes its segments, and serves again.
    pub fn abort_upgrade(&mut self, why: &str) {
        let Some(successor) = self.successor.take() else { return };
        let epoch = successor.epoch;
        let ended = successor.abort_upgrade();
        if self.status.phase() == Phase::Paused {
            self.enter(Phase::Serving);
        }
        // No record in these segments was acknowledged.
        if let Err(error) = remove_run(&self.site.data.logs, self.site.data.cluster, epoch) {
            tracing::warn!(%error, epoch, "the segments of the new process cannot be removed");
        }
        self.manager.ready();
        tracing::warn!(why, ended, "the upgrade was aborted: this process continues to serve");
    }
}
