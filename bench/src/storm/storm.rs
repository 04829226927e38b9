//! The storm itself: one thread, one epoll set, and a lane for each connection.

use crate::books::{Books, Lost};
use crate::connection::Connection;
use crate::progress::Progress;
use crate::scenario::{Next, Step};
use crate::schedule::{Pace, Schedule};
use crate::settings::Settings;
use crate::watch::Watch;
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
use std::time::{Duration, Instant};

/// How often timeouts and broken lanes are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long a buyer rests before asking again, and a lane before connecting again.
const REST: Duration = Duration::from_millis(100);
/// The watcher's key in the epoll set.
const WATCH: u64 = u64::MAX;

/// A request that somebody wants answered.
#[derive(Clone, Copy)]
struct Wanted {
    step: Step,
    /// Since when: latency counts from here.
    since: Duration,
}

/// A place for a connection.
enum Lane {
    /// Not before this.
    Closed(Duration),
    Connecting(Connection),
    Idle(Connection),
    /// And when the request was sent.
    Busy(Connection, Wanted, Duration),
}

/// How it ended.
pub struct Ended {
    /// When, since the start.
    pub took: Duration,
    /// Somebody asked it to.
    pub was_stopped: bool,
}

/// A crowd in front of a server.
pub struct Storm<'a> {
    address: SocketAddr,
    timeout: Duration,
    duration: Duration,
    is_closed_loop: bool,
    books: &'a mut Books,
    watch: &'a mut Watch,
    schedule: Schedule,
    poll: OwnedFd,
    lanes: Vec<Lane>,
    /// Lanes that are idle, and some that were.
    idle: Vec<usize>,
    busy: usize,
    /// Buyers who have come, and wait for a lane.
    waiting: VecDeque<Wanted>,
    /// Buyers who rest, by when they go on.
    resting: BTreeMap<(Duration, u64), Step>,
    rests: u64,
    /// More buyers may come.
    is_open: bool,
    started: Instant,
    request: Vec<u8>,
}

impl<'a> Storm<'a> {
    /// Draws up.
    ///
    /// # Errors
    /// The kernel gives no epoll set.
    pub fn new(
        settings: &Settings,
        address: SocketAddr,
        books: &'a mut Books,
        watch: &'a mut Watch,
    ) -> io::Result<Storm<'a>> {
        Ok(Storm {
            address,
            timeout: settings.timeout(),
            duration: settings.duration(),
            is_closed_loop: settings.pace() == Pace::Closed,
            books,
            watch,
            schedule: Schedule::new(settings.pace()),
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            lanes: (0..settings.connections).map(|_| Lane::Closed(Duration::ZERO)).collect(),
            idle: Vec::new(),
            busy: 0,
            waiting: VecDeque::new(),
            resting: BTreeMap::new(),
            rests: 0,
            is_open: true,
            started: Instant::now(),
            request: Vec::with_capacity(512),
        })
    }

    /// Runs until everybody is done, time is up, or `stop` is set.
    ///
    /// # Errors
    /// An unexpected answer cannot be saved; the kernel refuses to poll.
    pub fn run(mut self, progress: &mut Progress, stop: &AtomicBool) -> io::Result<Ended> {
        // Buyers come when they come: the kernel may not gather them, as it does with sleepers that have time.
        set_current_timer_slack(NonZeroU64::new(1))?;
        let mut events: Vec<Event> = Vec::with_capacity(512);
        let mut next_tick = Duration::ZERO;
        let mut time_was_up = None;
        let mut was_stopped = false;
        loop {
            let now = self.started.elapsed();
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick(now)?;
                progress.show(now, self.books, self.watch.latest());
                was_stopped |= stop.load(Ordering::Relaxed);
            }
            if time_was_up.is_none() && (now >= self.duration || was_stopped) {
                time_was_up = Some(now);
                self.close(now);
            }
            self.serve(now)?;
            let is_done = self.busy == 0 && self.waiting.is_empty() && self.resting.is_empty();
            if !self.is_open && is_done || time_was_up.is_some_and(|at| now > at + self.timeout + REST) {
                break;
            }
            events.clear();
            let arrival = if self.is_open { self.schedule.next() } else { None };
            let rested = self.resting.keys().next().map(|(at, _)| *at);
            let next = [arrival, rested].into_iter().flatten().fold(next_tick, Duration::min);
            let wait = Timespec { tv_sec: 0, tv_nsec: next.saturating_sub(now).min(TICK).subsec_nanos().into() };
            match epoll::wait(&self.poll, spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.hear(*event)?;
            }
        }
        self.give_up()?;
        Ok(Ended { took: self.started.elapsed(), was_stopped })
    }

    /// Nobody comes any more. Who has not been served yet goes away, and is counted; who has begun may finish.
    fn close(&mut self, now: Duration) {
        self.let_in(now.min(self.duration));
        self.is_open = false;
        let (new, begun): (VecDeque<_>, _) =
            self.waiting.drain(..).partition(|wanted: &Wanted| wanted.step.ask.operation() == "checkout");
        self.waiting = begun;
        for wanted in new {
            self.books.tally.count(wanted.step.ask.operation(), "not asked", now);
        }
    }

    /// Gives everybody who has waited, rested or come a lane, as long as there are any.
    fn serve(&mut self, now: Duration) -> io::Result<()> {
        while let Some(entry) = self.resting.first_entry() {
            let since = entry.key().0;
            if since > now {
                break;
            }
            self.waiting.push_back(Wanted { step: entry.remove(), since });
        }
        self.let_in(now);
        while let Some(lane) = self.idle.pop() {
            if !matches!(self.lanes[lane], Lane::Idle(_)) {
                continue;
            }
            if self.waiting.is_empty()
                && self.is_open
                && self.is_closed_loop
                && let Some(since) = self.schedule.arrival(now)
            {
                self.arrive(since);
            }
            let Some(wanted) = self.waiting.pop_front() else {
                self.idle.push(lane);
                break;
            };
            self.send(lane, wanted)?;
        }
        Ok(())
    }

    /// In an open loop, everybody who has come by now.
    fn let_in(&mut self, now: Duration) {
        while self.is_open && !self.is_closed_loop {
            let Some(since) = self.schedule.arrival(now) else { break };
            self.arrive(since);
        }
    }

    fn arrive(&mut self, since: Duration) {
        match self.books.buyers.arrive() {
            Some(step) => self.waiting.push_back(Wanted { step, since }),
            None => self.is_open = false,
        }
    }

    fn send(&mut self, lane: usize, wanted: Wanted) -> io::Result<()> {
        let now = self.started.elapsed();
        let Lane::Idle(mut connection) = std::mem::replace(&mut self.lanes[lane], Lane::Closed(now)) else {
            unreachable!("only idle lanes send");
        };
        self.request.clear();
        self.books.write_request(wanted.step, &mut self.request);
        if let Err(error) = connection.send(&self.request) {
            return self.lose(now, wanted, Lost::Broken(&error, &[]));
        }
        if self.books.buyers.hangs_up() {
            drop(connection);
            self.connect(lane, now);
            return self.lose(now, wanted, Lost::HungUp);
        }
        self.lanes[lane] = Lane::Busy(connection, wanted, now);
        self.busy += 1;
        Ok(())
    }

    fn lose(&mut self, now: Duration, wanted: Wanted, why: Lost<'_>) -> io::Result<()> {
        let next = self.books.lost(wanted.step, why, now, now.saturating_sub(wanted.since))?;
        self.go_on(now, next);
        Ok(())
    }

    /// What a buyer does next, on whatever lane is free then.
    fn go_on(&mut self, now: Duration, next: Next) {
        match next {
            Next::Leaves => {}
            Next::Asks(step) => self.waiting.push_back(Wanted { step, since: now }),
            Next::AsksLater(step) => {
                self.rests += 1;
                self.resting.insert((now + REST, self.rests), step);
            }
        }
    }

    fn hear(&mut self, event: Event) -> io::Result<()> {
        let now = self.started.elapsed();
        let (key, flags) = (event.data.u64(), event.flags);
        let has_ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if key == WATCH {
            self.watch.receive(now, has_ended);
            return Ok(());
        }
        let lane = key as usize;
        let place = &mut self.lanes[lane];
        match place {
            Lane::Connecting(connection) => {
                match connection.finish() {
                    Ok(false) => return Ok(()),
                    Ok(true) => {
                        let Lane::Connecting(connection) = std::mem::replace(place, Lane::Closed(now)) else {
                            return Ok(());
                        };
                        *place = Lane::Idle(connection);
                        self.idle.push(lane);
                    }
                    Err(_) => self.fail_to_connect(lane, now),
                }
                self.serve(now)
            }
            // Between requests there is nothing to hear but the end.
            Lane::Idle(_) if has_ended => {
                *place = Lane::Closed(now);
                Ok(())
            }
            Lane::Closed(_) | Lane::Idle(_) => Ok(()),
            Lane::Busy(connection, wanted, _) => {
                let wanted = *wanted;
                let (next, is_last) = match connection.receive(has_ended) {
                    Ok(None) => return Ok(()),
                    Ok(Some(response)) => {
                        let latency = now.saturating_sub(wanted.since);
                        (self.books.answered(wanted.step, &response, now, latency)?, response.is_last)
                    }
                    Err(error) => {
                        let why = Lost::Broken(&error, connection.received());
                        (self.books.lost(wanted.step, why, now, now.saturating_sub(wanted.since))?, true)
                    }
                };
                self.busy -= 1;
                if is_last {
                    self.connect(lane, now);
                } else if let Lane::Busy(connection, ..) = std::mem::replace(place, Lane::Closed(now)) {
                    *place = Lane::Idle(connection);
                    // A buyer who goes on keeps the lane.
                    if let Next::Asks(step) = next {
                        return self.send(lane, Wanted { step, since: now });
                    }
                    self.idle.push(lane);
                }
                self.go_on(now, next);
                self.serve(now)
            }
        }
    }

    /// Whatever goes by time: hanging up, connecting again, watching.
    fn tick(&mut self, now: Duration) -> io::Result<()> {
        for lane in 0..self.lanes.len() {
            match &self.lanes[lane] {
                Lane::Closed(until) if *until <= now => self.connect(lane, now),
                Lane::Busy(_, wanted, sent) if now.saturating_sub(*sent) > self.timeout => {
                    let wanted = *wanted;
                    self.lanes[lane] = Lane::Closed(now);
                    self.busy -= 1;
                    self.lose(now, wanted, Lost::TimedOut)?;
                }
                _ => {}
            }
        }
        if let Some(connection) = self.watch.ask(now) {
            let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&self.poll, connection.socket(), EventData::new_u64(WATCH), flags)?;
        }
        Ok(())
    }

    fn connect(&mut self, lane: usize, now: Duration) {
        // Edges: a socket says once that it is writable, that is, connected.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let opened = Connection::open(self.address).and_then(|connection| {
            epoll::add(&self.poll, connection.socket(), EventData::new_u64(lane as u64), flags)?;
            Ok(connection)
        });
        match opened {
            Ok(connection) => self.lanes[lane] = Lane::Connecting(connection),
            Err(_) => self.fail_to_connect(lane, now),
        }
    }

    /// A server may be starting again: this is tried until time is up.
    fn fail_to_connect(&mut self, lane: usize, now: Duration) {
        self.books.tally.count("connect", "failed", now);
        self.lanes[lane] = Lane::Closed(now + REST);
    }

    /// Who still has no answer gets none.
    fn give_up(&mut self) -> io::Result<()> {
        let now = self.started.elapsed();
        for lane in std::mem::take(&mut self.lanes) {
            if let Lane::Busy(_, wanted, _) = lane {
                self.books.lost(wanted.step, Lost::TimedOut, now, now.saturating_sub(wanted.since))?;
            }
        }
        Ok(())
    }
}
