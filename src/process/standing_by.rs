//! The start of one of two servers that share a database (`--standby`): waits while the other one sells, and takes over
//! when that one has stopped or does not report.
//!
//! | the database names | this server |
//! |---|---|
//! | no run, or the latest run of its own data directory | starts like any other: the first claim wins |
//! | another run, which reports | waits |
//! | another run, which has stopped in order or is silent | moves its own log aside, if it has one, and restores the sale from the database |
//! | another run with `--ack local`, which has not stopped in order | waits: silence proves nothing about it |
//!
//! A log can be moved aside, because nothing was promised that the database lacks (with `--ack postgres`: no purchase).

use crate::config::database_url::DatabaseUrl;
use crate::config::fatal::Fatal;
use crate::config::settings::{Config, PairTimes};
use crate::log::data_dir::DataDir;
use crate::log::ownership::{Conflict, Owner, Run, judge_owner};
use crate::operate::status::{Phase, Status};
use crate::postgres::failure::Failure;
use crate::postgres::owner_row::OwnerRow;
use crate::postgres::owner_watch::{OwnerState, OwnerWatch};
use crate::postgres::restore::{may_still_sell, restore};
use crate::process::resume::{Resumed, WaitLog, recover};
use crate::process::{service_manager, standby_plan};
use crate::sale::partition::Partition;
use crate::system::clock::Clock;
use crate::system::doorbell::Doorbell;
use crate::system::threads::event_loop;
use std::cell::Cell;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Time between two looks at the database.
const LOOK_TIME: Duration = Duration::from_millis(100);
/// Time between two notifications of the service manager.
const NOTIFICATION_TIME: Duration = Duration::from_secs(1);
/// Maximum number of claims. If another server was faster each time, or none is there at all, the log and the database
/// contradict each other.
const CLAIMS_MAX: u32 = 3;
/// Number of logs that stay in the data directory after they were moved aside.
const SET_ASIDE_KEPT: usize = 3;

/// A server that waits for the end of another one.
pub struct Standby<'a> {
    /// Settings.
    pub config: &'a Config,
    /// Data directory of this server.
    pub dir: &'a DataDir,
    /// Parts of the sale.
    pub partition: Partition,
    /// Clock of the server's time.
    pub clock: &'a Clock,
    /// Numbers that clients see.
    pub status: &'a Status,
    /// Doorbell of each shard.
    pub doorbells: &'a [Doorbell],
    /// The signal after which the plan is to be read again, if one has arrived.
    pub reload: &'a Cell<Option<String>>,
}

/// What a standby has logged and notified.
struct Reported<'a> {
    wait_log: WaitLog<'a>,
    owner: Option<Owner>,
    is_exclusive: bool,
    next_notification: Instant,
}

impl Standby<'_> {
    /// Returns the state from which this server sells, or `None` if the process was stopped while it waited. `is_stopped`
    /// sleeps for the given time, and returns whether a signal to stop has arrived.
    ///
    /// # Errors
    /// Every reason that an operator must remove.
    pub fn resume(
        &self,
        times: PairTimes,
        url: &DatabaseUrl,
        is_stopped: impl Fn(Duration) -> bool,
    ) -> Result<Option<Resumed>, Fatal> {
        let (runtime, mut claims) = (event_loop()?, 0);
        loop {
            claims += 1;
            let was_new = self.dir.is_new();
            if !runtime.block_on(self.wait(times, url, &is_stopped))? {
                return Ok(None);
            }
            self.enter(Phase::Recovering);
            match runtime.block_on(recover(self.config, self.dir, self.partition, self.clock, &is_stopped)) {
                // The other server was faster.
                Err(Fatal::DirectoryOlder(why)) if claims < CLAIMS_MAX => {
                    tracing::info!(why, "another server has claimed the database first");
                    // This server has sold nothing, and belongs to the installation of the other one.
                    if was_new {
                        self.dir.set_aside()?;
                    }
                }
                resumed => return resumed,
            }
        }
    }

    fn enter(&self, phase: Phase) {
        self.status.set_phase(phase);
        self.doorbells.iter().for_each(Doorbell::ring);
    }

    /// Waits until this server may start, with its own log or with one that it has restored from the database. Returns
    /// false if the process was stopped meanwhile.
    async fn wait(
        &self,
        times: PairTimes,
        url: &DatabaseUrl,
        is_stopped: impl Fn(Duration) -> bool,
    ) -> Result<bool, Fatal> {
        let mut watch = OwnerWatch::new(self.config.rules, self.config.recover_from, Some(times));
        let purpose = "a standby cannot know without it who sells";
        let wait_log = WaitLog::new(url, purpose);
        let mut reported = Reported { wait_log, owner: None, is_exclusive: false, next_notification: Instant::now() };
        self.enter(Phase::Standby);
        loop {
            let result = match watch.look(url).await {
                Ok(OwnerState::NeverUsed) => return Ok(true),
                Ok(state) => self.follow(state, url, &mut reported).await,
                Err(failure) => Err(failure),
            };
            match result {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(Failure::Transient(why)) => {
                    watch.begin_anew();
                    reported.wait_log.write(why);
                }
                Err(Failure::Final(why)) => return Err(why),
            }
            if reported.next_notification <= Instant::now() {
                service_manager::notify_standby();
                reported.next_notification = Instant::now() + NOTIFICATION_TIME;
            }
            if is_stopped(LOOK_TIME) {
                return Ok(false);
            }
            if let Some((plan, signal)) = self.config.plan.zip(self.reload.take()) {
                standby_plan::reload(plan, url, self.clock.now().unix_ms, &signal).await;
            }
        }
    }

    /// Does what the state of the owner demands. Returns whether this server may start.
    async fn follow(&self, state: OwnerState, url: &DatabaseUrl, reported: &mut Reported<'_>) -> Result<bool, Failure> {
        let (found, silent) = match state {
            OwnerState::NeverUsed => return Ok(true),
            OwnerState::Quiet(found, silent) => (found, silent),
            OwnerState::Reports(found) | OwnerState::Replaceable(found) | OwnerState::Exclusive(found) => {
                (found, Duration::ZERO)
            }
        };
        if self.is_own(&found)? {
            return Ok(true);
        }
        self.status.watched.publish(found.owner.run.epoch, silent);
        let Owner { cluster, run } = found.owner;
        if reported.owner.replace(found.owner) != Some(found.owner) {
            tracing::info!(url = url.place(), %cluster, epoch = run.epoch, run = %run.id, "standing by: another server sells");
        }
        match state {
            OwnerState::Replaceable(_) => self.take_over(found, url).await.map(|()| true),
            OwnerState::Exclusive(_) if !std::mem::replace(&mut reported.is_exclusive, true) => {
                tracing::warn!(why = %may_still_sell(&found), "this standby takes over only after a stop in order");
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// Returns whether the data directory of this server knows the run that the database names, as its own.
    fn is_own(&self, found: &OwnerRow) -> Result<bool, Fatal> {
        if self.dir.is_new() {
            return Ok(false);
        }
        let (_, control) = DataDir::open_read_only(self.dir.path())?;
        let next = Owner { cluster: control.cluster, run: Run { epoch: control.epoch + 1, id: Uuid::nil() } };
        match judge_owner(next, control.database, Some(found.owner), self.config.recover_from) {
            Ok(()) => Ok(true),
            Err(Conflict::DirectoryOlder(_)) => Ok(false),
            Err(conflict) => Err(conflict.into()),
        }
    }

    async fn take_over(&self, found: OwnerRow, url: &DatabaseUrl) -> Result<(), Failure> {
        let began = Instant::now();
        let make_new = || {
            if !self.dir.is_new() {
                let aside = self.dir.rotate_aside(SET_ASIDE_KEPT)?;
                tracing::info!(aside = %aside.display(), "the log is set aside: Postgres has the sale");
            }
            Ok(())
        };
        let (sales, now_ms) = ((&self.config.rules, self.config.plan), self.clock.now().unix_ms);
        let restored = restore(url, self.dir, sales, now_ms, found, make_new).await;
        if let (Err(Failure::Final(why @ Fatal::Plan(_))), Some(plan)) = (&restored, self.config.plan) {
            standby_plan::replace(plan, url, now_ms, why).await;
        }
        let taken_over = restored?;
        let (epoch, records) = (taken_over.owner.run.epoch, taken_over.records.len());
        let has_stopped = found.seen_us.is_none();
        let ms = began.elapsed().as_millis() as u64;
        tracing::warn!(url = taken_over.place, epoch, records, has_stopped, ms, "taking over from the other server");
        Ok(())
    }
}
