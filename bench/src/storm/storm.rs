//! The event loop of a run: one thread, one epoll set, and a slot for each connection.
//!
//! Latency counts from the time at which a request was due, not from the time at which it was sent. A buyer who waits
//! for a free connection therefore counts as slow, and a stall of the server shows in every request that was due
//! meanwhile.

use crate::buyer_socket::BuyerSocket;
use crate::options::StormOptions;
use crate::progress::RunProgress;
use crate::recorder::{RequestFailure, ResponseTime, RunRecorder};
use crate::run_clock::RunClock;
use crate::scenario::{Arrival, BuyerStep, NextStep};
use crate::schedule::Schedule;
use crate::stock_monitor::StockMonitor;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::thread::set_current_timer_slack;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Interval at which timeouts and closed slots are checked.
const TICK: Duration = Duration::from_millis(50);
/// Pause before a buyer repeats a request, and before a slot reconnects.
const PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of requests that are sent before the event loop looks for responses again. When a sale opens, thousands
/// are due at once, and the times of the first responses count.
const SENDS_MAX: usize = 8;
/// Key of the stock monitor's connection in the epoll set.
const MONITOR_KEY: u64 = u64::MAX;

/// A request that a buyer has made and that has no response yet.
#[derive(Clone, Copy)]
struct PendingRequest {
    step: BuyerStep,
    /// Time at which the request was due. Latency counts from here.
    due_at: Duration,
    /// The latest `Date` that had arrived when the request was sent.
    asked_s: u64,
}

impl PendingRequest {
    fn new(step: BuyerStep, due_at: Duration) -> PendingRequest {
        PendingRequest { step, due_at, asked_s: 0 }
    }
}

/// The state of one connection. Times count from the start of the run.
enum ConnectionSlot {
    /// Not connected, and the earliest time to reconnect.
    Closed(Duration),
    /// Connecting.
    Connecting(BuyerSocket),
    /// Connected, without a request in flight.
    Idle(BuyerSocket),
    /// With a request in flight, and the time at which it was sent.
    Busy(BuyerSocket, PendingRequest, Duration),
}

/// How a run ended.
pub struct RunSummary {
    /// Time from the start to the end of the run.
    pub took: Duration,
    /// Whether a signal stopped the run early.
    pub was_stopped: bool,
}

/// A run of the load generator.
pub struct Storm<'a> {
    address: SocketAddr,
    timeout: Duration,
    recorder: &'a mut RunRecorder,
    monitor: &'a mut StockMonitor,
    schedule: Schedule,
    poll: OwnedFd,
    slots: Vec<ConnectionSlot>,
    /// Slots that are idle, the one that was used last first. May also contain slots that no longer are.
    idle: VecDeque<usize>,
    busy: usize,
    /// Requests that are due and wait for an idle slot.
    waiting: VecDeque<PendingRequest>,
    /// Requests to repeat, by the time at which they are due and a serial number.
    paused: BTreeMap<(Duration, u64), BuyerStep>,
    pauses: u64,
    /// Whether more requests are due than were sent, because of `SENDS_MAX`.
    has_unsent: bool,
    /// Whether more buyers may arrive.
    is_open: bool,
    clock: RunClock,
    request: Vec<u8>,
}

impl<'a> Storm<'a> {
    /// Creates a run. The connections are opened when it starts.
    ///
    /// # Errors
    /// Returns an I/O error if the epoll set cannot be created.
    pub fn new(
        options: &StormOptions,
        address: SocketAddr,
        schedule: Schedule,
        recorder: &'a mut RunRecorder,
        monitor: &'a mut StockMonitor,
    ) -> io::Result<Storm<'a>> {
        Ok(Storm {
            address,
            timeout: options.timeout(),
            clock: recorder.clock(),
            recorder,
            monitor,
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            slots: (0..options.connections).map(|_| ConnectionSlot::Closed(schedule.connects_at())).collect(),
            schedule,
            idle: VecDeque::new(),
            busy: 0,
            waiting: VecDeque::new(),
            paused: BTreeMap::new(),
            pauses: 0,
            has_unsent: false,
            is_open: true,
            request: Vec::with_capacity(512),
        })
    }

    /// Runs until all buyers have left, or until the duration has passed or `stop` is set and the buyers who had
    /// started have left or timed out.
    ///
    /// # Errors
    /// Returns an I/O error if an unexpected response cannot be saved or the epoll set fails.
    pub fn run(mut self, progress: &mut RunProgress<'_>, stop: &AtomicBool) -> io::Result<RunSummary> {
        // The default timer slack of 50 µs would delay arrivals.
        set_current_timer_slack(NonZeroU64::new(1))?;
        let mut events: Vec<Event> = Vec::with_capacity(512);
        let mut next_tick = Duration::ZERO;
        let mut time_was_up = None;
        let mut was_stopped = false;
        loop {
            let now = self.clock.elapsed();
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick(now)?;
                progress.show(now, self.recorder, self.monitor);
                was_stopped |= stop.load(Ordering::Relaxed);
            }
            if time_was_up.is_none() && (now >= self.schedule.end() || was_stopped) {
                time_was_up = Some(now);
                self.stop_arrivals(now);
            }
            self.fill_idle_slots(now)?;
            let is_done = self.busy == 0 && self.waiting.is_empty() && self.paused.is_empty();
            if !self.is_open && is_done || time_was_up.is_some_and(|at| now > at + self.timeout + PAUSE) {
                break;
            }
            events.clear();
            let arrival = if self.is_open { self.schedule.next() } else { None };
            let next_paused = self.paused.keys().next().map(|(at, _)| *at);
            let mut next = [arrival, next_paused].into_iter().flatten().fold(next_tick, Duration::min);
            if self.has_unsent {
                next = now;
            }
            let wait = Timespec { tv_sec: 0, tv_nsec: next.saturating_sub(now).min(TICK).subsec_nanos().into() };
            match epoll::wait(&self.poll, spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.handle_event(*event)?;
            }
        }
        self.fail_outstanding()?;
        let took = self.clock.elapsed();
        progress.end(took, self.recorder, self.monitor);
        Ok(RunSummary { took, was_stopped })
    }

    /// Ends the arrivals. Buyers whose first request has not been sent leave and are counted as "not asked". Buyers who
    /// have started may finish.
    fn stop_arrivals(&mut self, now: Duration) {
        self.admit_arrivals(now.min(self.schedule.end()));
        self.is_open = false;
        self.recorder.buyers.end();
        let (new, begun): (VecDeque<_>, _) =
            self.waiting.drain(..).partition(|pending: &PendingRequest| pending.step.action.operation() == "checkout");
        self.waiting = begun;
        for pending in new {
            self.recorder.statistics.count(pending.step.action.operation(), "not asked", now);
        }
    }

    /// Sends due requests, in this order, while there are idle slots: waiting ones, paused ones, those of new buyers.
    fn fill_idle_slots(&mut self, now: Duration) -> io::Result<()> {
        while let Some(entry) = self.paused.first_entry() {
            let due_at = entry.key().0;
            if due_at > now {
                break;
            }
            self.waiting.push_back(PendingRequest::new(entry.remove(), due_at));
        }
        if self.schedule.is_crowd() && self.recorder.is_served() {
            self.schedule.rush();
        }
        self.admit_arrivals(now);
        let mut sent = 0;
        self.has_unsent = false;
        while let Some(slot) = self.take_idle() {
            if self.waiting.is_empty()
                && self.is_open
                && self.schedule.next().is_none()
                && let Some(due_at) = self.schedule.arrival(now)
            {
                self.arrive(due_at, now);
            }
            self.has_unsent = sent == SENDS_MAX && !self.waiting.is_empty();
            let next = if self.has_unsent { None } else { self.waiting.pop_front() };
            let Some(pending) = next else {
                // The slot keeps its turn.
                if self.schedule.is_crowd() {
                    self.idle.push_back(slot)
                } else {
                    self.idle.push_front(slot)
                }
                break;
            };
            self.send(slot, pending)?;
            sent += 1;
        }
        Ok(())
    }

    /// Takes the slot that has been idle for longest, so that each connection of a crowd takes its turn. Otherwise takes the
    /// one that was used last, which is the fastest.
    fn take_idle(&mut self) -> Option<usize> {
        loop {
            let slot = if self.schedule.is_crowd() { self.idle.pop_back()? } else { self.idle.pop_front()? };
            if matches!(self.slots[slot], ConnectionSlot::Idle(_)) {
                return Some(slot);
            }
        }
    }

    /// Admits the buyers of an open loop who were due by `now`.
    fn admit_arrivals(&mut self, now: Duration) {
        while self.is_open && self.schedule.next().is_some() {
            let Some(due_at) = self.schedule.arrival(now) else { break };
            self.arrive(due_at, now);
        }
    }

    fn arrive(&mut self, due_at: Duration, now: Duration) {
        match self.recorder.arrive(now) {
            Arrival::Buyer(step) => self.waiting.push_back(PendingRequest::new(step, due_at)),
            Arrival::Later => {}
            Arrival::Never => self.is_open = false,
        }
    }

    fn send(&mut self, slot: usize, mut pending: PendingRequest) -> io::Result<()> {
        let now = self.clock.elapsed();
        let ConnectionSlot::Idle(mut connection) =
            std::mem::replace(&mut self.slots[slot], ConnectionSlot::Closed(now))
        else {
            unreachable!("only idle slots send");
        };
        self.request.clear();
        self.recorder.write_request(pending.step, &mut self.request);
        if let Err(error) = connection.send(&self.request) {
            return self.record_failure(now, pending, RequestFailure::Broken(&error, &[]));
        }
        self.recorder.sent(pending.step, now);
        pending.asked_s = self.recorder.server_s();
        if self.recorder.buyers.hangs_up() {
            drop(connection);
            self.connect(slot, now);
            return self.record_failure(now, pending, RequestFailure::HungUp);
        }
        self.slots[slot] = ConnectionSlot::Busy(connection, pending, now);
        self.busy += 1;
        Ok(())
    }

    fn record_failure(&mut self, now: Duration, pending: PendingRequest, why: RequestFailure<'_>) -> io::Result<()> {
        let next = self.recorder.failed(pending.step, why, now, now.saturating_sub(pending.due_at))?;
        self.enqueue_next(now, next);
        Ok(())
    }

    /// Queues the buyer's next request, for any slot.
    fn enqueue_next(&mut self, now: Duration, next: NextStep) {
        match next {
            NextStep::Leave => {}
            NextStep::Send(step) => self.waiting.push_back(PendingRequest::new(step, now)),
            NextStep::SendLater(step) => {
                self.pauses += 1;
                self.paused.insert((now + PAUSE, self.pauses), step);
            }
        }
    }

    fn handle_event(&mut self, event: Event) -> io::Result<()> {
        let now = self.clock.elapsed();
        let (key, flags) = (event.data.u64(), event.flags);
        let has_ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if key == MONITOR_KEY {
            self.monitor.receive(now, has_ended);
            return Ok(());
        }
        let slot = key as usize;
        let state = &mut self.slots[slot];
        match state {
            ConnectionSlot::Connecting(connection) => {
                match connection.is_connected() {
                    Ok(false) => return Ok(()),
                    Ok(true) => {
                        let ConnectionSlot::Connecting(connection) =
                            std::mem::replace(state, ConnectionSlot::Closed(now))
                        else {
                            return Ok(());
                        };
                        *state = ConnectionSlot::Idle(connection);
                        self.idle.push_front(slot);
                    }
                    Err(_) => self.fail_to_connect(slot, now),
                }
                self.fill_idle_slots(now)
            }
            // Without a request in flight, the only event that matters is the end of the connection.
            ConnectionSlot::Idle(_) if has_ended => {
                *state = ConnectionSlot::Closed(now);
                Ok(())
            }
            ConnectionSlot::Closed(_) | ConnectionSlot::Idle(_) => Ok(()),
            ConnectionSlot::Busy(connection, pending, _) => {
                let pending = *pending;
                let (next, is_last) = match connection.receive(has_ended) {
                    Ok(None) => return Ok(()),
                    Ok(Some(response)) => {
                        let (latency, asked_s) = (now.saturating_sub(pending.due_at), pending.asked_s);
                        let time = ResponseTime { at: now, latency, asked_s };
                        (self.recorder.answered(pending.step, &response, time)?, response.is_last)
                    }
                    Err(error) => {
                        let why = RequestFailure::Broken(&error, connection.received());
                        (self.recorder.failed(pending.step, why, now, now.saturating_sub(pending.due_at))?, true)
                    }
                };
                self.busy -= 1;
                if is_last {
                    self.connect(slot, now);
                } else if let ConnectionSlot::Busy(connection, ..) =
                    std::mem::replace(state, ConnectionSlot::Closed(now))
                {
                    *state = ConnectionSlot::Idle(connection);
                    // A buyer who sends another request keeps the connection.
                    if let NextStep::Send(step) = next {
                        return self.send(slot, PendingRequest::new(step, now));
                    }
                    self.idle.push_front(slot);
                }
                self.enqueue_next(now, next);
                self.fill_idle_slots(now)
            }
        }
    }

    /// Does the timed work: request timeouts, reconnects and the stock monitor.
    fn tick(&mut self, now: Duration) -> io::Result<()> {
        for slot in 0..self.slots.len() {
            match &self.slots[slot] {
                ConnectionSlot::Closed(until) if *until <= now => self.connect(slot, now),
                ConnectionSlot::Busy(_, pending, sent) if now.saturating_sub(*sent) > self.timeout => {
                    let pending = *pending;
                    self.slots[slot] = ConnectionSlot::Closed(now);
                    self.busy -= 1;
                    self.record_failure(now, pending, RequestFailure::TimedOut)?;
                }
                _ => {}
            }
        }
        if let Some(connection) = self.monitor.poll(now) {
            let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&self.poll, connection.socket(), EventData::new_u64(MONITOR_KEY), flags)?;
        }
        Ok(())
    }

    fn connect(&mut self, slot: usize, now: Duration) {
        // Edge-triggered: the socket reports once that it is writable, that is, connected.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let opened = BuyerSocket::open(self.address).and_then(|connection| {
            epoll::add(&self.poll, connection.socket(), EventData::new_u64(slot as u64), flags)?;
            Ok(connection)
        });
        match opened {
            Ok(connection) => self.slots[slot] = ConnectionSlot::Connecting(connection),
            Err(_) => self.fail_to_connect(slot, now),
        }
    }

    /// Counts a failed connection and schedules a reconnect. The server may be restarting, so reconnects continue until
    /// the end of the run.
    fn fail_to_connect(&mut self, slot: usize, now: Duration) {
        self.recorder.statistics.count("connect", "failed", now);
        self.slots[slot] = ConnectionSlot::Closed(now + PAUSE);
    }

    /// Records the requests that are still in flight as timed out.
    fn fail_outstanding(&mut self) -> io::Result<()> {
        let now = self.clock.elapsed();
        for slot in std::mem::take(&mut self.slots) {
            if let ConnectionSlot::Busy(_, pending, _) = slot {
                self.recorder.failed(
                    pending.step,
                    RequestFailure::TimedOut,
                    now,
                    now.saturating_sub(pending.due_at),
                )?;
            }
        }
        Ok(())
    }
}
