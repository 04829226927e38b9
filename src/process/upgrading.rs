//! The old process's side of an upgrade: it starts the new process, pauses, hands over, or calls the upgrade off.

use crate::log::block::FORMAT_VERSION;
use crate::log::segment::remove_run;
use crate::operate::status::Phase;
use crate::process::supervisor::Supervisor;
use crate::runtime::control::{Notice, Order};
use crate::sale::deferred::Watermark;
use crate::upgrade::protocol::{FromNew, Offer, PROTOCOL};
use crate::upgrade::successor::{Stage, Successor};
use rustix::fd::AsFd;
use std::sync::atomic::Ordering;

impl Supervisor {
    /// Starts a new process, which prepares itself while this one goes on.
    pub fn upgrade(&mut self) {
        let is_connected = self.status.is_database_connected.load(Ordering::Relaxed);
        let objection = match self.status.phase() {
            _ if self.successor.is_some() || self.unsettled.is_some() => Some("one is under way"),
            // Its end is the end of everything in the container.
            _ if std::process::id() == 1 => Some("this is the first process of a container"),
            Phase::Serving if self.config.rules.purchase_ack == Watermark::Persisted && !is_connected => {
                Some("buyers wait for the database, which is away")
            }
            Phase::Serving => None,
            _ => Some("this process does not serve"),
        };
        if let Some(why) = objection {
            return tracing::warn!(why, "no upgrade now");
        }
        let offer = self.site.control.raise_epoch().map(|epoch| Offer {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            log_format: FORMAT_VERSION,
            listen: self.config.listen,
            admin_listen: self.config.admin_listen,
            data_dir: self.config.data_dir.clone(),
            epoch,
        });
        let notices = self.notices.clone();
        let report = move |pid, said| _ = notices.send(Notice::Successor(pid, said));
        match offer.and_then(|offer| Successor::start(offer, report)) {
            Ok(successor) => {
                tracing::info!(pid = successor.pid(), "upgrading: a new process prepares itself");
                self.manager.reloading();
                self.successor = Some(successor);
            }
            Err(error) => tracing::warn!(why = %error, "no upgrade now"),
        }
    }

    /// Takes the next step of an upgrade. Returns whether the new process serves, so that this one must end.
    pub fn go_on_upgrading(&mut self, notice: Notice) -> bool {
        let Some(successor) = self.successor.as_mut() else { return false };
        let step = match notice {
            Notice::Successor(pid, said) => return self.hear_successor(pid, said),
            Notice::HandedOver(_, handed_over) => handed_over.and_then(|()| successor.shard_has_handed_over()),
            _ => self.all_are_still(),
        };
        if let Err(why) = step {
            self.call_off(&why);
        }
        false
    }

    /// Goes on with an upgrade. Returns whether it is done: this process must end.
    fn hear_successor(&mut self, pid: u32, said: Option<FromNew>) -> bool {
        let Some(successor) = self.successor.as_mut().filter(|successor| successor.pid() == pid) else { return false };
        match (said, successor.stage()) {
            (Some(FromNew::Prepared { version }), Stage::Preparing) => {
                successor.pause(self.threads.len());
                self.enter(Phase::Paused);
                tracing::info!(version, "pausing: the new process is prepared, requests in flight finish");
            }
            (Some(FromNew::Ready), Stage::Passed) => {
                // It is the server as soon as it is told, and this process must not be missed.
                self.manager.main_is(pid);
                match successor.let_go() {
                    Ok(pause) => {
                        let ms = pause.as_secs_f64() * 1000.0;
                        tracing::info!(pid, ms, "handed over: the new process serves");
                        return true;
                    }
                    Err(error) => {
                        self.manager.main_is(std::process::id());
                        self.call_off(&error.to_string());
                    }
                }
            }
            (None, _) => self.call_off("it has ended"),
            (Some(_), _) => self.call_off("it is confused"),
        }
        false
    }

    /// One more shard has no requests in flight. After the last one, all hand over what they have.
    fn all_are_still(&mut self) -> Result<(), String> {
        let successor = self.successor.as_mut().expect("there is one");
        let line = successor.shard_is_still(self.threads.len(), self.site.dir.lock_descriptor(), self.admin.as_fd());
        if let Some(line) = line.map_err(|error| error.to_string())? {
            for orders in &self.orders {
                let _ = orders.send(Order::HandOver(line.clone()));
            }
            self.ring();
        }
        Ok(())
    }

    /// Goes on as if nothing had happened, if there is an upgrade under way.
    pub fn call_off(&mut self, why: &str) {
        let Some(successor) = self.successor.take() else { return };
        let epoch = successor.epoch;
        let ended = successor.call_off();
        if self.status.phase() == Phase::Paused {
            self.enter(Phase::Serving);
        }
        // Nobody has been told of anything in it.
        if let Err(error) = remove_run(&self.site.data.logs, self.site.data.cluster, epoch) {
            tracing::warn!(%error, epoch, "what the new process has begun to write cannot be removed");
        }
        self.manager.ready();
        tracing::warn!(why, ended, "the upgrade is called off: this process goes on");
    }
}
