//! The turn of a shard: the one place where everything meets, in the order that keeps the promises.
//!
//! 1. If there is nothing to do, wait for any source.
//! 2. Collect: sockets, messages, finished flushes, time.
//! 3. Apply each to the state machine, with no await between.
//! 4. Append the records it produced.
//! 5. Start a flush, if none is under way.
//! 6. Send one batch to each peer, write every answer that may leave.
//!
//! Log before reply: an answer that needs the log comes out of the state machine only in step 3 of a turn that
//! begins after its flush has ended.
//!
//! The executor has something to do only while a log is being written or made. Else the shard sleeps in its epoll set,
//! which is one system call where the executor takes several.

use crate::config::fatal::Fatal;
use crate::http::head::Head;
use crate::http::problem::Problem;
use crate::http::response::{Responder, Style};
use crate::http::route::{Route, respond, route};
use crate::log::block::LogKind;
use crate::log::writer::Progress;
use crate::operate::item_states::ItemStates;
use crate::operate::shard_status::ShardStatus;
use crate::operate::status::Phase;
use crate::runtime::control::{Notice, Order};
use crate::runtime::log_pair::{ATTEMPTS_MAX, LOG_SLACK_BLOCKS, LogPair, LogRoom, Needs, Shipping};
use crate::runtime::mesh::Delivery;
use crate::runtime::shard_io::ShardIo;
use crate::sale::ids::{Moment, SaleId, Seq, Ticket};
use crate::sale::record::LogEvent;
use crate::sale::shard::{Effects, Shard, ShardEvent};
use crate::server::item_pages::OnSale;
use crate::server::sockets::Handled;
use crate::server::status_pages::{self, Facts};
use crate::upgrade::protocol::UpgradeSocket;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

/// Blocks that a shard needs for itself before it sells: for the records that open sales, and their flush.
const READY_BLOCKS: u64 = 2;
/// Attempts that are worth a flush at once.
const ATTEMPTS_FLUSH: usize = 1024;
/// Attempts are flushed after this in any case.
const ATTEMPTS_FLUSH_MS: u64 = 50;
/// How long a shard waits for a peer that has not yet read what it was sent.
const LANE_RETRY_MS: u64 = 1;
/// Connections are looked over, clocks watched and the executor gets a pass, at least this often.
const SWEEP_MS: u64 = 1_000;
/// How long a shard sleeps at most while another process may take its place.
const PAUSE_MS: u64 = 50;

/// How far this shard is in giving way to another process, or in taking its place.
enum Pause {
    /// Not at all.
    No,
    /// Nobody waits for a decision any more.
    Still,
    /// It is to hand everything over.
    Asked(Arc<UpgradeSocket>),
    /// It has. The other process knows where the logs end, so nothing more is written to them.
    HandedOver,
    /// It has what another process has handed over, and that one may still want it back.
    Awaiting,
}

/// A shard at work.
pub struct Pump {
    outside: ShardIo,
    shard: Shard,
    logs: LogPair,
    board: Arc<ItemStates>,
    period_s: u32,
    /// As it was when the turn began.
    phase: Phase,
    effects: Effects,
    applied: Seq,
    /// As the persistence thread has published it.
    persisted: Seq,
    attempts_due_ms: u64,
    room: LogRoom,
    /// The sale whose opening is durable: what came before it may be removed.
    durable_sale: SaleId,
    is_ready: bool,
    is_draining: bool,
    has_drained: bool,
    pause: Pause,
    next_sweep_ms: u64,
    /// The executor may have something of its own to do.
    owes_pass: bool,
    /// How long the next turn may wait for something to do.
    patience_ms: u64,
}

impl Pump {
    /// A pump around `shard`, whose first effects are in `effects`.
    pub fn new(
        outside: ShardIo,
        shard: Shard,
        effects: Effects,
        logs: LogPair,
        board: Arc<ItemStates>,
        period_s: u32,
    ) -> Self {
        let room = LogRoom::new(&logs);
        Pump {
            outside,
            shard,
            logs,
            board,
            period_s,
            phase: Phase::Recovering,
            effects,
            applied: 0,
            persisted: 0,
            attempts_due_ms: 0,
            room,
            durable_sale: SaleId(0),
            is_ready: false,
            is_draining: false,
            has_drained: false,
            // A new process begins in the place of another or all by itself.
            pause: Pause::Awaiting,
            next_sweep_ms: 0,
            owes_pass: false,
            patience_ms: 0,
        }
    }

    /// Takes turns until the process stops.
    ///
    /// # Errors
    /// [`Fatal::LogFailed`]: nothing may be answered any more.
    pub async fn run(mut self) -> Result<(), Fatal> {
        while !self.turn().await? {}
        Ok(())
    }

    /// One turn. Returns whether it was the last.
    async fn turn(&mut self) -> Result<bool, Fatal> {
        self.wait().await?;
        let now = self.outside.clock.now();
        self.phase = self.outside.status.phase();
        let is_paused = self.phase == Phase::Paused;
        if !is_paused {
            self.end_pause(now);
            self.keep_time(now);
        }
        let mut is_busy = self.take_flushed(now);
        is_busy |= self.receive(now);
        is_busy |= !is_paused && self.serve(now);

        self.append(now);
        self.start_flushes(now);
        // Before any answer leaves, here or by another shard: who reads the sale after a 200 finds it counted.
        self.publish();
        self.outside.dispatch();
        if !is_paused {
            let ShardIo { server, status, .. } = &mut self.outside;
            let terms = *self.shard.terms();
            let sale = OnSale { terms, period_s: self.period_s, board: &self.board, unix_ms: now.unix_ms };
            let facts = Facts { status, sale: Some(sale), known: None };
            server.tell_subscribers(now, |told, out| told.update(&facts, now.monotonic_ms, out));
        }
        // What both processes have, neither touches.
        if !matches!(self.pause, Pause::HandedOver | Pause::Awaiting) {
            self.outside.server.write_replies(now);
        }
        if is_paused {
            self.give_way();
        }
        if self.has_finished(now) {
            return Ok(true);
        }
        self.make_segments(now);
        self.note_ready();
        self.patience_ms = match is_busy {
            _ if is_paused => {
                if self.outside.mesh.is_held_up() {
                    LANE_RETRY_MS
                } else {
                    PAUSE_MS
                }
            }
            true => 0,
            false => self.time_to_next(now),
        };
        Ok(false)
    }

    // --- collect and apply ---

    fn keep_time(&mut self, now: Moment) {
        self.shard.apply(ShardEvent::Tick, now, &mut self.effects);
        if now.monotonic_ms >= self.next_sweep_ms {
            self.next_sweep_ms = now.monotonic_ms + SWEEP_MS;
            self.outside.server.sweep(now);
            if let Some(overdue) = self.outside.server.overdue() {
                self.outside.tell(Notice::Overdue(self.outside.id, overdue));
            }
            self.take_orders();
            self.owes_pass = true;
        }
    }

    fn take_flushed(&mut self, now: Moment) -> bool {
        let flushed = self.logs.purchases.flushed();
        let has_moved = flushed > self.applied;
        if has_moved {
            self.applied = flushed;
            if self.logs.purchases.is_flushed() {
                self.durable_sale = self.shard.terms().sale;
            }
            self.shard.apply(ShardEvent::Flushed(flushed), now, &mut self.effects);
        }
        let persisted = self.numbers().persisted.load(Ordering::Acquire);
        if persisted > self.persisted {
            self.persisted = persisted;
            self.shard.apply(ShardEvent::Persisted(persisted), now, &mut self.effects);
        }
        for ticket in self.outside.server.withdrawn() {
            self.shard.apply(ShardEvent::Withdrawn(ticket), now, &mut self.effects);
        }
        let room = self.logs.purchases.room().saturating_sub(LOG_SLACK_BLOCKS);
        self.shard.apply(ShardEvent::LogRoom(room), now, &mut self.effects);
        has_moved
    }

    fn receive(&mut self, now: Moment) -> bool {
        let (shard, effects, status) = (&mut self.shard, &mut self.effects, &self.outside.status);
        let any = self.outside.mesh.receive(|delivery| {
            shard.apply(ShardEvent::Sale(status.newest_sale()), now, effects);
            let event = match delivery {
                Delivery::Request(from, request) => ShardEvent::Request(from, request),
                Delivery::Reply(reply) => ShardEvent::Reply(reply),
            };
            shard.apply(event, now, effects);
        });
        self.answer(now);
        any
    }

    fn serve(&mut self, now: Moment) -> bool {
        // Who asks right behind a request that has just been answered is to find it counted.
        self.publish_sale();
        let (ShardIo { server, status, .. }, is_recovering) = (&mut self.outside, self.phase == Phase::Recovering);
        let (shard, effects, period_s) = (&mut self.shard, &mut self.effects, self.period_s);
        let board = &self.board;
        let mut handle = |ticket: Ticket, head: &Head<'_>, style, responder: &mut Responder, out: &mut Vec<u8>| {
            // After the request has been read: what its client knows of a sale, this shard must know, too.
            shard.apply(ShardEvent::Sale(status.newest_sale()), now, effects);
            let (operation, route) = route(head);
            let answer = match route {
                // This shard may be ready, but another one is not.
                Route::Command(..) if is_recovering => responder.problem(Problem::NotReady, style, out),
                Route::Command(command, json) => {
                    shard.apply(ShardEvent::Command(ticket, command), now, effects);
                    // What needs nobody else and no log is decided already.
                    match effects.answers.pop_if(|(decided, _)| *decided == ticket) {
                        Some((_, outcome)) => respond(outcome, Style { json, ..style }, responder, out),
                        None => return Handled::Deciding { operation, json },
                    }
                }
                Route::Page(page) => {
                    let sale = OnSale { terms: *shard.terms(), period_s, board, unix_ms: now.unix_ms };
                    let facts = Facts { status, sale: Some(sale), known: head.if_none_match };
                    status_pages::write(page, &facts, style, responder, out)
                }
                Route::Events if is_recovering => responder.problem(Problem::NotReady, style, out),
                Route::Events => return Handled::Listening(operation),
                Route::Refused(problem) => responder.problem(problem, style, out),
            };
            Handled::Answered(operation, answer)
        };
        let any = server.serve(now, &mut handle);
        self.answer(now);
        any
    }

    fn answer(&mut self, now: Moment) {
        for (ticket, outcome) in self.effects.answers.drain(..) {
            self.outside.server.answer(ticket, now, |style, responder, out| respond(outcome, style, responder, out));
        }
    }

    // --- log before reply ---

    fn append(&mut self, now: Moment) {
        let numbers = self.outside.status.shard(self.outside.id);
        for record in self.effects.records.drain(..) {
            if let LogEvent::Released { reason, .. } = record.event {
                numbers.released[reason as usize].add(1);
            }
            self.logs.purchases.append(&record);
        }
        if !self.effects.attempts.is_empty() && self.logs.attempts.buffered() == 0 {
            self.attempts_due_ms = now.monotonic_ms + ATTEMPTS_FLUSH_MS;
        }
        for record in self.effects.attempts.drain(..) {
            if self.logs.attempts.buffered() < ATTEMPTS_MAX {
                self.logs.attempts.append(&record);
            } else if let LogEvent::Refused { reason, .. } = record.event {
                numbers.unrecorded[reason as usize].add(1);
            }
        }
        for (to, request) in self.effects.requests.drain(..) {
            self.outside.mesh.request(to, request);
        }
        for (to, reply) in self.effects.replies.drain(..) {
            self.outside.mesh.reply(to, reply);
        }
        for ended in self.effects.ended.drain(..) {
            let _ = self.outside.notices.send(Notice::Ended(ended));
        }
    }

    fn start_flushes(&mut self, now: Moment) {
        if matches!(self.pause, Pause::HandedOver) {
            return;
        }
        let LogPair { purchases, attempts, retention, .. } = &mut self.logs;
        purchases.start_flush();
        let is_due = now.monotonic_ms >= self.attempts_due_ms || self.is_draining || self.phase == Phase::Paused;
        if is_due || attempts.buffered() >= ATTEMPTS_FLUSH {
            attempts.start_flush();
        }
        for (name, last) in purchases.take_finished().into_iter().chain(attempts.take_finished()) {
            retention.finished(name, self.shard.terms().sale, last);
        }
    }

    fn make_segments(&mut self, now: Moment) {
        // While another process reads the logs, they stay as they are; but one that takes over needs its own first.
        if self.phase == Phase::Stopping || self.phase == Phase::Paused && self.is_ready {
            return;
        }
        let (id, needs) = (self.outside.id, self.needs());
        let (was_full, was_losing) = (self.room.is_full, self.room.is_losing_attempts);
        self.room.extend(&mut self.logs, needs, now.monotonic_ms);
        if self.room.is_full != was_full {
            self.outside.tell(Notice::LogFull(id, self.room.is_full));
        }
        if self.room.is_losing_attempts != was_losing {
            self.outside.tell(Notice::AttemptsLost(id, self.room.is_losing_attempts));
        }
    }

    /// What the logs must have room for.
    fn needs(&self) -> Needs {
        let items = self.shard.stock().items() as u64;
        Needs { holds: self.shard.log_reserve(), items, durable_sale: self.durable_sale }
    }

    /// Says once that the shard can sell: it has room for the end of every hold that it took over, and, unless the disk
    /// has no more, for new ones.
    fn note_ready(&mut self) {
        let needs = self.needs();
        let needed = if self.room.is_full { needs.holds + READY_BLOCKS } else { needs.reserve() };
        if !self.is_ready && self.logs.purchases.room() > needed {
            self.is_ready = true;
            self.outside.tell(Notice::Ready(self.outside.id));
        }
    }

    /// How the sale stands, and each item that has changed.
    fn publish_sale(&mut self) {
        self.outside.status.note_sale(self.shard.terms().sale);
        for change in self.effects.changes.drain(..) {
            self.board.show(self.outside.id, change);
        }
        self.numbers().publish_sales(self.shard.terms().sale, self.shard.counts());
    }

    fn publish(&mut self) {
        self.publish_sale();
        let ShardStatus {
            items, connections, subscribers, appended, flushed, attempts_flushed, log_room, turns, ..
        } = self.numbers();
        items.store(self.shard.stock().items() as u64, Ordering::Relaxed);
        connections.store(self.outside.server.connections() as u64, Ordering::Relaxed);
        subscribers.store(self.outside.server.subscribers().count() as u64, Ordering::Relaxed);
        appended.store(self.logs.purchases.appended(), Ordering::Relaxed);
        flushed.store(self.logs.purchases.flushed(), Ordering::Release);
        attempts_flushed.store(self.logs.attempts.flushed(), Ordering::Release);
        log_room.store(self.logs.purchases.room(), Ordering::Relaxed);
        turns.store(turns.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn numbers(&self) -> &ShardStatus {
        self.outside.status.shard(self.outside.id)
    }

    // --- stopping ---

    fn has_finished(&mut self, now: Moment) -> bool {
        let phase = self.phase;
        if phase >= Phase::Draining && !self.is_draining {
            self.is_draining = true;
            self.outside.server.drain(now);
        }
        if self.is_draining && !self.has_drained && self.outside.server.is_drained() {
            self.has_drained = true;
            self.outside.tell(Notice::Drained(self.outside.id));
        }
        phase == Phase::Stopping && self.logs.are_at_rest()
    }

    // --- an upgrade ---

    fn take_orders(&mut self) {
        for order in self.outside.orders.try_iter() {
            match order {
                Order::Keep(old) => self.logs.retention.keep(old),
                Order::HandOver(line) if matches!(self.pause, Pause::Still) => self.pause = Pause::Asked(line),
                // The upgrade has been called off.
                Order::HandOver(_) => {}
            }
        }
    }

    /// Goes one step on towards another process, once this one has nothing left to do for that step.
    fn give_way(&mut self) {
        let id = self.outside.id;
        if matches!(self.pause, Pause::No) && self.outside.server.is_still() {
            self.pause = Pause::Still;
            self.outside.tell(Notice::Still(id));
        }
        self.take_orders();
        if let Pause::Asked(line) = &self.pause
            && self.logs.are_at_rest()
        {
            let handed_over = self.outside.hand_over(line, self.logs.written());
            self.outside.tell(Notice::HandedOver(id, handed_over.map_err(|error| error.to_string())));
            self.pause = Pause::HandedOver;
        }
    }

    fn end_pause(&mut self, now: Moment) {
        if !matches!(std::mem::replace(&mut self.pause, Pause::No), Pause::No) {
            self.take_orders();
            // Clients have waited for this process: first what they have said meanwhile.
            self.next_sweep_ms = now.monotonic_ms + SWEEP_MS;
        }
    }

    // --- wait ---

    /// Sleeps until there is something to do, and looks what that is.
    async fn wait(&mut self) -> Result<(), Fatal> {
        let mut timeout_ms = self.patience_ms;
        if timeout_ms > 0 {
            let ShardIo { id, mesh, status, orders, .. } = &self.outside;
            mesh.doorbell().fall_asleep();
            // Whoever rings from now on wakes this shard; who rang before left something to see.
            let persisted = status.shard(*id).persisted.load(Ordering::Acquire);
            let is_told = self.phase == Phase::Paused && !orders.is_empty();
            if mesh.has_mail() || status.phase() != self.phase || persisted > self.persisted || is_told {
                timeout_ms = 0;
            }
        }
        if self.logs.are_busy() || std::mem::take(&mut self.owes_pass) {
            self.wait_for_logs(timeout_ms).await?;
            timeout_ms = 0;
        }
        self.outside.server.look(timeout_ms);
        self.outside.mesh.doorbell().wake_up();
        Ok(())
    }

    /// Waits in the executor, and notes what the logs have come to meanwhile.
    async fn wait_for_logs(&mut self, timeout_ms: u64) -> Result<(), Fatal> {
        let Pump { outside, logs, .. } = self;
        let mut progress: [io::Result<Option<Progress>>; 2] = [Ok(None), Ok(None)];
        outside
            .wait_with_executor(timeout_ms, |cx| {
                let is_open = |progress: &io::Result<_>| matches!(progress, Ok(None));
                for (log, progress) in [&mut logs.purchases, &mut logs.attempts].into_iter().zip(&mut progress) {
                    // What came to its end is told once, and there is room for one thing.
                    if is_open(progress)
                        && let Poll::Ready(result) = log.poll(cx)
                    {
                        *progress = result.map(Some);
                    }
                }
                let is_over = !progress.iter().all(is_open);
                if is_over { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        for (kind, progress) in [LogKind::Purchases, LogKind::Attempts].into_iter().zip(progress) {
            let failed = |error| Fatal::LogFailed(format!("{}: {error}", kind.name()));
            match progress.map_err(failed)? {
                Some(Progress::NoSegment(blocks)) => {
                    let needs = self.needs();
                    self.room.refused(&mut self.logs, needs, kind, blocks);
                }
                Some(Progress::SegmentMade(blocks)) => self.room.made(blocks),
                Some(Progress::Flushed { time, records }) => {
                    let published = self.outside.status.shard(self.outside.id);
                    let LogPair { purchases, attempts, persistence, .. } = &mut self.logs;
                    let is_purchases = kind == LogKind::Purchases;
                    let log = if is_purchases { purchases } else { attempts };
                    let (flushed, flushes) = if is_purchases {
                        (&published.flushed, &published.purchase_flushes)
                    } else {
                        (&published.attempts_flushed, &published.attempt_flushes)
                    };
                    flushes.record(time, records);
                    // In this order: what is seen to be flushed has been offered, and who is woken sees it.
                    if let (Some(chunk), Some(Shipping { feed, .. })) = (log.take_chunk(), persistence) {
                        feed.offer(chunk);
                        flushed.store(log.flushed(), Ordering::Release);
                        feed.ring();
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    fn time_to_next(&self, now: Moment) -> u64 {
        let server = &self.outside.server;
        if server.has_work() {
            return 0;
        }
        let attempts = &self.logs.attempts;
        let attempts_due =
            (attempts.buffered() > 0 && !attempts.is_flushing() && attempts.room() > 0).then_some(self.attempts_due_ms);
        let held_up = self.outside.mesh.is_held_up().then_some(now.monotonic_ms + LANE_RETRY_MS);
        let (expiry, accepts, news) =
            (self.shard.next_expiry_ms(), server.accepts_again_ms(), server.subscribers().next_ms());
        let due = [held_up, Some(self.next_sweep_ms), expiry, accepts, news, attempts_due];
        let due_ms = due.into_iter().flatten().min().expect("the next sweep is always due");
        let period_ms = u64::from(self.period_s) * 1000;
        let to_next_sale_ms = period_ms - now.unix_ms % period_ms;
        due_ms.saturating_sub(now.monotonic_ms).min(to_next_sale_ms)
    }
}
