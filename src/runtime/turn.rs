//! The turn of a shard: the loop that connects sockets, lanes, logs and the state machine. Decisions are not made here;
//! the folder `sale` makes them.
//!
//! 1. Wait for work, if there is none.
//! 2. Collect: time, finished flushes, messages from other shards, requests from sockets.
//! 3. Apply each event to the state machine, without an await in between.
//! 4. Append the records that the state machine has produced.
//! 5. Start a flush, if none is in progress, or if there are enough records for another one.
//! 6. Publish the counters, send one batch on each lane, and write the answers.
//! 7. Prepare the next sale, shortly before it begins.
//!
//! Log before reply: the state machine produces a reply that depends on a record only when it applies `Flushed` or
//! `Persisted` for this record. So the reply leaves in step 6 of a turn that begins after the flush has ended.
//!
//! The executor has work only while a segment is made or removed. At other times the shard sleeps in its epoll set, which
//! has the sockets, the doorbell and the ring of the log: that is one system call, where the executor needs several.

use crate::config::fatal::Fatal;
use crate::http::head::Head;
use crate::http::response::{Responder, Style};
use crate::http::route::{Route, respond, route};
use crate::log::block::LogKind;
use crate::log::writer::{Flushed, LogWriter, Made};
use crate::operate::item_states::ItemStates;
use crate::operate::shard_status::LogStatus;
use crate::operate::status::Phase;
use crate::runtime::control::{Notice, Order};
use crate::runtime::log_pair::{LogPair, LogRoom, Needs, PersistenceChannels};
use crate::runtime::mesh::Delivery;
use crate::runtime::published_numbers::note_published;
use crate::runtime::shard_io::ShardIo;
use crate::sale::command::Command;
use crate::sale::effects::Effects;
use crate::sale::ids::{Moment, SaleId, Seq, Ticket};
use crate::sale::message::Reply;
use crate::sale::parts::NeededSales;
use crate::sale::record::LogEvent;
use crate::sale::shard::{Shard, ShardEvent};
use crate::server::client::LostClients;
use crate::server::item_pages::OnSale;
use crate::server::sockets::Handled;
use crate::server::status_pages::{self, Facts};
use crate::system::clock::turn_us;
use crate::upgrade::protocol::UpgradeSocket;
use std::io;
use std::sync::{Arc, atomic::Ordering};
use std::task::Poll;
use strum::VariantArray;

/// Milliseconds between attempts to send on a lane that has no spare buffer.
const LANE_RETRY_MS: u64 = 1;
/// Milliseconds between sweeps. A sweep closes overdue connections and takes orders. As the longest sleep, it also bounds
/// how late a shard notices that the server's time has changed.
const SWEEP_MS: u64 = 1_000;
/// Milliseconds that a shard sleeps at most while an upgrade pauses it.
const PAUSE_MS: u64 = 50;

/// The state of this shard in an upgrade.
///
/// In the old process: `No`, `Still`, `Asked`, `HandedOver`, and back to `No` if the upgrade is aborted. In the new
/// process: `Awaiting`, then `No`.
enum Pause {
    /// No upgrade pauses this shard.
    No,
    /// Old process: paused, and no client of this shard waits for a decision.
    Idle,
    /// Old process: the main thread has ordered this shard to send its sockets over this upgrade socket.
    HandoverOrdered(Arc<UpgradeSocket>),
    /// Old process: the sockets and the ends of the logs are sent. The new process continues after these ends, so this
    /// shard writes nothing more to its logs.
    HandedOver,
    /// New process: this shard has the sockets, but the old process can still abort the upgrade.
    Awaiting,
}

/// The loop of a shard, with everything that a turn needs.
pub struct TurnLoop {
    pub(crate) shard_io: ShardIo,
    pub(crate) shard: Shard,
    pub(crate) logs: LogPair,
    pub(crate) item_states: Arc<ItemStates>,
    /// The phase of the process at the start of the turn.
    phase: Phase,
    pub(crate) effects: Effects,
    applied: Seq,
    /// Position up to which the purchase log is in Postgres, as the persistence thread has published it.
    persisted: Seq,
    room: LogRoom,
    /// The sales whose records the log must keep, as of the durable record `needed_at`.
    needed: NeededSales,
    needed_at: Seq,
    /// The newest sale when the counts were published last.
    pub(crate) published: SaleId,
    is_ready: bool,
    is_draining: bool,
    has_drained: bool,
    pause: Pause,
    next_sweep_ms: u64,
    /// Milliseconds that the next turn may wait for work.
    wait_ms: u64,
}

impl TurnLoop {
    /// Creates the loop of `shard`. `effects` has what the shard has produced at its creation.
    pub fn new(shard_io: ShardIo, shard: Shard, effects: Effects, logs: LogPair, item_states: Arc<ItemStates>) -> Self {
        let room = LogRoom::new(&logs);
        TurnLoop {
            shard_io,
            shard,
            logs,
            item_states,
            phase: Phase::Recovering,
            effects,
            applied: 0,
            persisted: 0,
            room,
            needed: NeededSales::ALL,
            needed_at: 0,
            published: SaleId(0),
            is_ready: false,
            is_draining: false,
            has_drained: false,
            // Without an upgrade, the first turn that is not paused ends this state.
            pause: Pause::Awaiting,
            next_sweep_ms: 0,
            wait_ms: 0,
        }
    }

    /// Runs turns until the process stops.
    ///
    /// # Errors
    /// [`Fatal::LogFailed`]: a log cannot be written, so no reply may leave any more.
    pub async fn run(mut self) -> Result<(), Fatal> {
        while !self.turn().await? {}
        Ok(())
    }

    /// Runs one turn. Returns whether it was the last.
    async fn turn(&mut self) -> Result<bool, Fatal> {
        self.wait().await?;
        let (now, read_us) = self.shard_io.clock.read();
        let began_us = turn_us(read_us);
        self.phase = self.shard_io.status.phase();
        let is_paused = self.phase == Phase::Paused;
        if !is_paused {
            self.end_pause(now);
            self.keep_time(now);
        }
        self.take_flushed(now);
        self.receive(now);
        if !is_paused {
            self.serve(now);
        }

        self.append(now);
        self.note_needed();
        self.start_flushes(now)?;
        // Publish the counters before any reply leaves, from here or through another shard, so that a client that reads
        // the sale after a 200 sees its own purchase.
        self.publish();
        self.shard_io.dispatch();
        if !is_paused {
            let ShardIo { server, status, .. } = &mut self.shard_io;
            let (parts, item_states) = (self.shard.parts(), &*self.item_states);
            let schedule = self.shard.rules.schedule;
            let sale = OnSale { parts, item_states, schedule, now };
            let facts = Facts { status, sale: Some(sale), known: None };
            server.send_events(&facts, now);
        }
        // During the handover, both processes have the sockets, so neither writes to them.
        if !matches!(self.pause, Pause::HandedOver | Pause::Awaiting) {
            self.shard_io.server.write_replies(now);
        }
        if is_paused {
            self.advance_handover();
        }
        if self.has_finished(now) {
            return Ok(true);
        }
        self.make_segments(now);
        self.note_ready();
        if !is_paused {
            self.shard.prepare(now);
        }
        self.wait_ms = if self.shard.has_due_effects() {
            0
        } else if is_paused {
            if self.shard_io.mesh.has_unsent() { LANE_RETRY_MS } else { PAUSE_MS }
        } else {
            self.time_to_next(now)
        };
        self.record_duration(began_us);
        Ok(false)
    }

    // --- collect and apply ---

    fn keep_time(&mut self, now: Moment) {
        self.shard.apply(ShardEvent::Tick, now, &mut self.effects);
        if now.monotonic_ms >= self.next_sweep_ms {
            let is_unfinished = self.shard_io.server.sweep(now);
            self.next_sweep_ms = if is_unfinished { now.monotonic_ms } else { now.monotonic_ms + SWEEP_MS };
            if let Some(overdue) = self.shard_io.server.overdue() {
                self.shard_io.notify(Notice::Overdue(self.shard_io.id, overdue));
            }
            self.take_orders();
            self.logs.relieve(self.needed);
        }
    }

    fn take_flushed(&mut self, now: Moment) {
        let flushed = self.logs.purchases.flushed();
        let has_moved = flushed > self.applied;
        if has_moved {
            self.applied = flushed;
        }
        let has_due = self.shard.has_due_effects();
        if has_moved || has_due {
            self.shard.apply(ShardEvent::Flushed(flushed), now, &mut self.effects);
        }
        let persisted = self.numbers().log(LogKind::Purchases).persisted.load(Ordering::Acquire);
        if persisted > self.persisted || has_due {
            self.persisted = persisted;
            self.shard.apply(ShardEvent::Persisted(persisted), now, &mut self.effects);
        }
        let LostClients { withdrawn, undelivered } = self.shard_io.server.lost();
        for (ticket, item, reason) in withdrawn.drain(..) {
            self.shard.apply(ShardEvent::Withdrawn(ticket, item, reason), now, &mut self.effects);
        }
        for code in undelivered.drain(..) {
            self.shard.apply(ShardEvent::Undelivered(code), now, &mut self.effects);
        }
        let room = self.logs.room_for_holds();
        self.shard.apply(ShardEvent::LogRoom(room), now, &mut self.effects);
    }

    fn receive(&mut self, now: Moment) {
        let (shard, effects, status) = (&mut self.shard, &mut self.effects, &self.shard_io.status);
        let item_states = &self.item_states;
        self.shard_io.mesh.receive(|delivery| {
            shard.apply(ShardEvent::Sale(status.newest_sale()), now, effects);
            match delivery {
                Delivery::Reply(Reply::NoneFree { sale, is_named, product, .. }) => {
                    let wanted = (is_named.then_some(sale), product);
                    note_published(shard, wanted, (status, item_states), now, effects);
                }
                Delivery::Reply(Reply::KeyUnknown { named, product, .. }) => {
                    note_published(shard, (named, product), (status, item_states), now, effects);
                }
                _ => {}
            }
            let event = match delivery {
                Delivery::Request(from, request) => ShardEvent::Request(from, request),
                Delivery::Reply(reply) => ShardEvent::Reply(reply),
            };
            shard.apply(event, now, effects);
        });
        self.answer(now);
    }

    fn serve(&mut self, now: Moment) {
        // Publish the counters before reading the next request, so that a client that pipelines `GET /sale` after a
        // purchase sees its own purchase.
        self.publish_sale();
        let (ShardIo { server, status, .. }, phase) = (&mut self.shard_io, self.phase);
        let is_refusing = matches!(phase, Phase::Recovering | Phase::Standby);
        let (shard, effects) = (&mut self.shard, &mut self.effects);
        let item_states = &self.item_states;
        let mut handle = |ticket: Ticket, head: &Head<'_>, style, responder: &mut Responder, out: &mut Vec<u8>| {
            // After the request has been read, because its client may have seen a new sale on another shard.
            shard.apply(ShardEvent::Sale(status.newest_sale()), now, effects);
            let (operation, route) = route(head, responder.origins(), responder.site());
            let answer = match route {
                // This shard may be ready, but another shard is not, or another server may sell.
                Route::Command(..) if is_refusing => responder.problem(phase.refusal(), style, out),
                Route::Command(command, json) => {
                    if let Command::CheckoutAny { sale, product, .. } = command {
                        note_published(shard, (sale, product), (status, item_states), now, effects);
                    }
                    shard.apply(ShardEvent::Command(ticket, command), now, effects);
                    // A command that needs neither another shard nor the log is decided already.
                    match effects.answers.pop_if(|(decided, _)| *decided == ticket) {
                        Some((_, outcome)) => {
                            let answer = respond(outcome, Style { json, ..style }, responder, out);
                            if let Some(code) = outcome.granted() {
                                return Handled::Granted(operation, answer, code);
                            }
                            answer
                        }
                        None => {
                            // A code that leads to no item is refused at once.
                            return Handled::Deciding { operation, json, item: command.item() };
                        }
                    }
                }
                Route::Page(page) => {
                    let schedule = shard.rules.schedule;
                    let sale = OnSale { parts: shard.parts(), item_states, schedule, now };
                    let facts = Facts { status, sale: Some(sale), known: head.if_none_match };
                    status_pages::write(page, &facts, style, responder, out)
                }
                Route::Events if is_refusing => responder.problem(phase.refusal(), style, out),
                Route::Events => return Handled::Listening(operation),
                Route::Options(methods) => responder.options(methods, head, style, out),
                Route::Refused(problem) => responder.problem(problem, style, out),
            };
            Handled::Answered(operation, answer)
        };
        server.serve(now, &mut handle);
        self.answer(now);
    }

    fn answer(&mut self, now: Moment) {
        for (ticket, outcome) in self.effects.answers.drain(..) {
            let write = |style, responder: &mut _, out: &mut _| respond(outcome, style, responder, out);
            self.shard_io.server.answer(ticket, now, outcome.granted(), write);
        }
    }

    // --- log before reply ---

    fn append(&mut self, now: Moment) {
        let numbers = self.shard_io.status.shard(self.shard_io.id);
        for record in self.effects.records.drain(..) {
            match record.event {
                LogEvent::Released { reason, .. } => numbers.released[reason as usize].add(1),
                LogEvent::SaleOpened { .. } => self.shard_io.notify(Notice::Opened(record)),
                _ => {}
            }
            self.logs.append_purchase(&record);
        }
        for record in self.effects.attempts.drain(..) {
            if !self.logs.append_attempt(&record, now.monotonic_ms)
                && let LogEvent::Refused { reason, .. } = record.event
            {
                numbers.unrecorded[reason as usize].add(1);
            }
        }
        for (to, request) in self.effects.requests.drain(..) {
            self.shard_io.mesh.request(to, request);
        }
        for (to, reply) in self.effects.replies.drain(..) {
            self.shard_io.mesh.reply(to, reply);
        }
        for ended in self.effects.ended.drain(..) {
            let _ = self.shard_io.notices.send(Notice::Ended(ended));
        }
    }

    /// Determines the sales whose records the log must keep, when everything that the shard has decided is durable.
    fn note_needed(&mut self) {
        let (flushed, newest) = (self.logs.purchases.flushed(), self.shard.newest().sale);
        // Until the log has the opening of a sale, the sale before it is the latest one there, and must stay.
        let is_flushed = self.logs.is_awaited_flushed() && self.logs.is_opening_flushed();
        if !is_flushed || (flushed, newest) == (self.needed_at, self.needed.newest) {
            return;
        }
        self.needed_at = flushed;
        self.needed = self.shard.needed_sales();
        self.numbers().oldest_live.store(self.needed.oldest_live.0, Ordering::Release);
        // An item may have been owned by another shard when its records were written, so the oldest sale of all shards
        // counts.
        self.needed.oldest_live = self.shard_io.status.oldest_live_sale();
    }

    fn start_flushes(&mut self, now: Moment) -> Result<(), Fatal> {
        if matches!(self.pause, Pause::HandedOver) {
            return Ok(());
        }
        let is_ending = self.is_draining || self.phase == Phase::Paused;
        let started = self.logs.start_flushes(now.monotonic_ms, is_ending, self.shard.log_reserve());
        started.map_err(|error| Fatal::LogFailed(error.to_string()))?;
        let LogPair { purchases, attempts, retention, .. } = &mut self.logs;
        for (name, last) in purchases.take_finished().into_iter().chain(attempts.take_finished()) {
            retention.finished(name, self.shard.newest().sale, last);
        }
        Ok(())
    }

    fn make_segments(&mut self, now: Moment) {
        // While paused, the old process of an upgrade makes no segments, because the new process reads its logs. The
        // new process makes its first segments while it is paused, until it is ready.
        if self.phase == Phase::Stopping || self.phase == Phase::Paused && self.is_ready {
            return;
        }
        let (id, needs) = (self.shard_io.id, self.needs());
        let (was_full, was_losing) = (self.room.is_full, self.room.is_losing_attempts);
        self.room.extend(&mut self.logs, needs, now.monotonic_ms);
        if self.room.is_full != was_full {
            self.shard_io.notify(Notice::LogFull(id, self.room.is_full));
        }
        if self.room.is_losing_attempts != was_losing {
            self.shard_io.notify(Notice::AttemptsLost(id, self.room.is_losing_attempts));
        }
    }

    /// Returns the log space that this shard needs.
    fn needs(&self) -> Needs {
        let items = self.shard.parts().items_in_rush();
        Needs { holds: self.shard.log_reserve(), items, needed: self.needed, is_starting: !self.is_ready }
    }

    /// Reports once that the shard is ready: the log has room for the end of every recovered hold and, unless the log
    /// is full, for new holds.
    fn note_ready(&mut self) {
        if !self.is_ready && self.room.is_enough(&self.logs, self.needs()) {
            self.is_ready = true;
            self.shard_io.notify(Notice::Ready(self.shard_io.id));
        }
    }

    // --- stopping ---

    fn has_finished(&mut self, now: Moment) -> bool {
        let phase = self.phase;
        if phase >= Phase::Draining && !self.is_draining {
            self.is_draining = true;
            self.shard_io.server.drain(now);
        }
        if self.is_draining && !self.has_drained && self.shard_io.server.is_drained() {
            self.has_drained = true;
            self.shard_io.notify(Notice::Drained(self.shard_io.id));
        }
        phase == Phase::Stopping && self.logs.have_nothing_to_write()
    }

    // --- an upgrade ---

    fn take_orders(&mut self) {
        for order in self.shard_io.orders.try_iter() {
            match order {
                Order::Keep(old) => self.logs.retention.keep(old),
                Order::HandOver(line) if matches!(self.pause, Pause::Idle) => self.pause = Pause::HandoverOrdered(line),
                // The upgrade has been aborted.
                Order::HandOver(_) => {}
            }
        }
    }

    /// Takes the next step of an upgrade in the old process, if the shard has finished the last one:
    ///
    /// 1. When no client waits for a decision, the shard reports `Still`.
    /// 2. The main thread orders the handover when all shards have reported.
    /// 3. When both logs are flushed, the shard sends the ends of its logs and its sockets, and reports `HandedOver`.
    fn advance_handover(&mut self) {
        let id = self.shard_io.id;
        if matches!(self.pause, Pause::No) && self.shard_io.server.is_idle_now() {
            self.pause = Pause::Idle;
            self.shard_io.notify(Notice::Idle(id));
        }
        self.take_orders();
        if let Pause::HandoverOrdered(line) = &self.pause
            && self.logs.have_nothing_to_write()
        {
            let handed_over = self.shard_io.hand_over(line, self.logs.written());
            self.shard_io.notify(Notice::HandedOver(id, handed_over.map_err(|error| error.to_string())));
            self.pause = Pause::HandedOver;
        }
    }

    fn end_pause(&mut self, now: Moment) {
        if !matches!(std::mem::replace(&mut self.pause, Pause::No), Pause::No) {
            self.take_orders();
            self.shard_io.server.resume_listening();
            // Delay the sweep: read the requests that arrived during the pause before deadlines close connections.
            self.next_sweep_ms = now.monotonic_ms + SWEEP_MS;
        }
    }

    // --- wait ---

    /// Sleeps until there is work, then polls the sockets. No wake-up is lost:
    ///
    /// 1. Another thread stores work for this shard (a batch in a lane, the phase, `persisted`, an order, a number of
    ///    connections), and then rings the doorbell.
    /// 2. This shard calls `fall_asleep`. From then on, a ring writes the eventfd, which wakes the epoll set.
    /// 3. This shard checks each place where work is stored. A ring before step 2 has written nothing, but the checks
    ///    find its work, and then the shard does not sleep.
    /// 4. This shard sleeps, and afterwards calls `wake_up`.
    async fn wait(&mut self) -> Result<(), Fatal> {
        let mut timeout_ms = self.wait_ms;
        if timeout_ms > 0 {
            let ShardIo { id, mesh, status, orders, server, .. } = &mut self.shard_io;
            mesh.doorbell().fall_asleep();
            // Step 3. Orders count only while paused; otherwise the next sweep takes them.
            let persisted = status.shard(*id).log(LogKind::Purchases).persisted.load(Ordering::Acquire);
            let has_orders = self.phase == Phase::Paused && !orders.is_empty();
            let must_evict = self.phase != Phase::Paused && server.must_evict();
            let has_phase = status.phase() != self.phase;
            if mesh.has_messages() || has_phase || persisted > self.persisted || has_orders || must_evict {
                timeout_ms = 0;
            }
        }
        if self.logs.need_executor() {
            self.wait_in_executor(timeout_ms).await?;
            timeout_ms = 0;
        }
        self.shard_io.server.poll(timeout_ms);
        self.shard_io.mesh.doorbell().wake_up();
        self.note_flushed()
    }

    /// Notes what the last flushes have made durable.
    fn note_flushed(&mut self) -> Result<(), Fatal> {
        let published = self.shard_io.status.shard(self.shard_io.id);
        let note = |kind, log: &LogWriter, persistence: Option<&PersistenceChannels>, flush: Flushed| {
            let LogStatus { flushed, flushes, .. } = published.log(kind);
            flushes.record(flush.time, flush.records);
            // The order matters:
            // 1. Offer the records to the persistence thread.
            // 2. Publish the position: every record below it has been offered.
            // 3. Wake the thread, which then sees the position.
            if let (Some(chunk), Some(PersistenceChannels { feed, .. })) = (flush.chunk, persistence) {
                feed.offer(chunk);
                flushed.store(log.flushed(), Ordering::Release);
                feed.ring();
            }
        };
        let failed = |(kind, error): (LogKind, io::Error)| Fatal::LogFailed(format!("{}: {error}", kind.name()));
        self.logs.take_flushed(note).map_err(failed)
    }

    /// Waits in the executor, and handles the segments that have been made meanwhile.
    async fn wait_in_executor(&mut self, timeout_ms: u64) -> Result<(), Fatal> {
        let TurnLoop { shard_io, logs, .. } = self;
        let mut made: [io::Result<Option<Made>>; 2] = [Ok(None), Ok(None)];
        shard_io
            .wait_with_executor(timeout_ms, |cx| {
                let is_open = |made: &io::Result<_>| matches!(made, Ok(None));
                for (log, made) in [&mut logs.purchases, &mut logs.attempts].into_iter().zip(&mut made) {
                    // `poll_making` reports each result once and `made` holds one, so do not poll again after a result.
                    if is_open(made)
                        && let Poll::Ready(result) = log.poll_making(cx)
                    {
                        *made = result.map(Some);
                    }
                }
                let is_over = !made.iter().all(is_open);
                if is_over { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        for (&kind, made) in LogKind::VARIANTS.iter().zip(made) {
            let failed = |error| Fatal::LogFailed(format!("{}: {error}", kind.name()));
            match made.map_err(failed)? {
                Some(Made::NoRoom(blocks)) => {
                    let needs = self.needs();
                    self.room.refused(&mut self.logs, needs, kind, blocks);
                }
                Some(Made::Segment(blocks)) => self.room.made(&mut self.logs, kind, blocks),
                None => {}
            }
        }
        Ok(())
    }

    fn time_to_next(&self, now: Moment) -> u64 {
        let server = &self.shard_io.server;
        if server.has_work() {
            return 0;
        }
        let lane_retry = self.shard_io.mesh.has_unsent().then_some(now.monotonic_ms + LANE_RETRY_MS);
        let (expiry, accepts, event_due) =
            (self.shard.next_expiry_ms(), server.accepts_again_ms(), server.subscribers().next_ms());
        let due = [lane_retry, Some(self.next_sweep_ms), expiry, accepts, event_due, self.logs.attempts_due_ms()];
        let due_ms = due.into_iter().flatten().min().expect("the next sweep is always scheduled");
        let to_next_sale_ms = self.shard.time_to_next_sale_ms(now).unwrap_or(u64::MAX);
        due_ms.saturating_sub(now.monotonic_ms).min(to_next_sale_ms)
    }
}
