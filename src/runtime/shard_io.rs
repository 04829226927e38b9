//! What a shard's thread works with besides its state machine and its logs: sockets, lanes, clock, and channels to and
//! from the main thread. Here a shard answers clients until recovery has ended, waits for work, and sends its sockets
//! to the new process of an upgrade. The turn itself is in `turn`.

use crate::http::connection::ConnectionSnapshot;
use crate::http::head::Head;
use crate::http::response::Responder;
use crate::http::route::{Route, route};
use crate::operate::shard_status::ShardStatus;
use crate::operate::status::Status;
use crate::runtime::control::{Notice, Order};
use crate::runtime::mesh::{Endpoint, Traffic};
use crate::sale::ids::ShardId;
use crate::server::sockets::{Handled, Server};
use crate::server::status_pages::{self, Facts};
use crate::system::clock::Clock;
use crate::upgrade::protocol::{DESCRIPTORS_MAX, FromOld, SNAPSHOT_BYTES_MAX, UpgradeSocket};
use crossbeam_channel::{Receiver, Sender};
use glommio::io::{PollState, PollableFd};
use glommio::timer::Timer;
use rustix::fd::{AsFd, OwnedFd};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, atomic::Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// Milliseconds between checks whether recovery has ended.
const RECOVERY_POLL_MS: u64 = 5;

/// A shard's sockets, lanes and clock, and its channels to and from the main thread.
pub struct ShardIo {
    /// Id of the shard.
    pub id: ShardId,
    /// Listeners and clients of the shard.
    pub server: Server,
    /// Lanes to and from the other shards.
    pub mesh: Endpoint,
    /// Clock of the turns.
    pub clock: Clock,
    /// Published numbers of all shards.
    pub status: Arc<Status>,
    /// Notices to the main thread.
    pub notices: Sender<Notice>,
    /// Orders from the main thread.
    pub orders: Receiver<Order>,
    /// A descriptor that is always readable. A wait for it makes the executor process its io_uring rings once.
    pub always_ready: PollableFd<OwnedFd>,
}

impl ShardIo {
    /// Answers clients until `is_over` returns true, which means that recovery has ended. Commands get 503.
    pub fn wait_for_recovery(&mut self, mut is_over: impl FnMut() -> bool) {
        loop {
            self.mesh.doorbell().fall_asleep();
            if is_over() {
                return self.mesh.doorbell().wake_up();
            }
            self.server.poll(if self.server.has_work() { 0 } else { RECOVERY_POLL_MS });
            let now = self.clock.now();
            let status = self.status.clone();
            let facts = Facts { status: &status, sale: None, known: None };
            self.server.serve(now, &mut |_, head: &Head<'_>, style, responder: &mut Responder, out: &mut Vec<u8>| {
                let (operation, route) = route(head, responder.origins(), responder.site());
                let answer = match route {
                    Route::Page(page) => status_pages::write(page, &facts, style, responder, out),
                    Route::Options(methods) => responder.options(methods, head, style, out),
                    Route::Refused(problem) => responder.problem(problem, style, out),
                    Route::Command(..) | Route::Events => responder.problem(status.phase().refusal(), style, out),
                };
                Handled::Answered(operation, answer)
            });
            self.server.write_replies(now);
        }
    }

    /// Sends the waiting messages to the other shards, and publishes the counters of the lanes.
    pub fn dispatch(&mut self) {
        self.mesh.dispatch();
        let Traffic { batches, messages, waiting } = self.mesh.traffic();
        let ShardStatus { lane_batches, lane_messages, lane_waiting, .. } = self.status.shard(self.id);
        lane_batches.store(batches, Ordering::Relaxed);
        lane_messages.store(messages, Ordering::Relaxed);
        lane_waiting.store(waiting, Ordering::Relaxed);
    }

    /// Waits for a socket, the doorbell, the end of a write, `other`, or `timeout_ms` milliseconds. In any case the executor
    /// processes its io_uring rings at least once, because `other` begins and ends only then.
    pub async fn wait_with_executor(&mut self, timeout_ms: u64, mut other: impl FnMut(&mut Context<'_>) -> Poll<()>) {
        if timeout_ms == 0 {
            let mut pass = PollState::new();
            let pass_over = |cx: &mut Context<'_>| {
                let _ = other(cx);
                self.always_ready.poll_readable(cx, &mut pass).map(drop)
            };
            return poll_fn(pass_over).await;
        }
        let mut timer = Timer::new(Duration::from_millis(timeout_ms));
        poll_fn(|cx| {
            let is_over = other(cx).is_ready() | self.server.poll_ready(cx).is_ready();
            if is_over | Pin::new(&mut timer).poll(cx).is_ready() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Sends `written` and every listener and client to the new process of an upgrade. Afterwards both processes have
    /// these sockets.
    ///
    /// # Errors
    /// The new process has ended, or does not receive in time.
    pub fn hand_over(&self, line: &UpgradeSocket, written: FromOld) -> io::Result<()> {
        line.send(&written, &[])?;
        self.server.pause_listening();
        let shard = self.id.0;
        // The listeners were distributed round-robin, so the places of this shard differ by the number of shards.
        let places = (usize::from(shard)..).step_by(self.status.shards.len());
        for (listener, place) in self.server.listeners().iter().zip(places) {
            line.send(&FromOld::Listener { place }, &[listener.as_fd()])?;
        }
        let (mut sockets, mut midway, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (socket, client) in self.server.clients() {
            let more = client.as_ref().map_or(0, ConnectionSnapshot::bytes);
            if sockets.len() == DESCRIPTORS_MAX || bytes + more > SNAPSHOT_BYTES_MAX {
                line.send(&FromOld::Clients { shard, midway: std::mem::take(&mut midway) }, &sockets)?;
                sockets.clear();
                bytes = 0;
            }
            sockets.push(socket.as_fd());
            midway.push(client);
            bytes += more;
        }
        line.send(&FromOld::Clients { shard, midway }, &sockets)
    }

    /// Sends a notice to the main thread.
    pub fn notify(&self, notice: Notice) {
        // The main thread receives until it has joined this thread.
        let _ = self.notices.send(notice);
    }
}
