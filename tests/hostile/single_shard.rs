//! The sockets of one shard without the shard: the test makes the turns, and answers each request with a short text.

use glommio::{LocalExecutorBuilder, Placement};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::sockopt::set_socket_send_buffer_size;
use stampede::http::connection::ConnectionSnapshot;
use stampede::http::operation::{Answer, Operation};
use stampede::http::origin::Origins;
use stampede::operate::request_timer::RequestTimer;
use stampede::operate::status::{Phase, Status};
use stampede::sale::ids::{Moment, ShardId};
use stampede::server::sockets::{Handled, Server};
use stampede::system::clock::Clock;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

pub struct SingleShard {
    pub server: Server,
}

impl SingleShard {
    /// Runs `test` on an executor, which the sockets of a shard need.
    pub fn run<T: Send + 'static>(test: impl FnOnce(SingleShard) -> T + Send + 'static) -> T {
        let run = async move {
            let status = Arc::new(Status::new(Phase::Serving, 1, 0, false));
            let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            let request_timer = RequestTimer::new(status, ShardId(0), Clock::start());
            test(SingleShard {
                server: Server::new(&bell, 4, request_timer, Origins::None, Duration::from_secs(75)).unwrap(),
            })
        };
        let executor = LocalExecutorBuilder::new(Placement::Unbound).spawn(|| run).unwrap();
        executor.join().unwrap()
    }

    pub fn connect(&mut self) -> UnixStream {
        self.adopt(None)
    }

    /// Adds a client whose connection continues at `midway`. The kernel holds few bytes for it.
    pub fn adopt(&mut self, midway: Option<ConnectionSnapshot>) -> UnixStream {
        let (client, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        if midway.is_some() {
            set_socket_send_buffer_size(&socket, 1).unwrap();
        }
        self.server.adopt(socket.into(), midway, at(0)).unwrap();
        client
    }

    /// Makes a turn, and returns the number of requests that it has processed.
    pub fn turn(&mut self, ms: u64) -> usize {
        let mut requests = 0;
        self.server.poll(0);
        self.server.serve(at(ms), &mut |_, _, style, responder, out| {
            requests += 1;
            Handled::Answered(Operation::Live, responder.text(Answer::Ok, "yes", style, out))
        });
        self.server.write_replies(at(ms));
        self.server.sweep(at(ms));
        requests
    }
}

fn at(ms: u64) -> Moment {
    Moment { monotonic_ms: 1 + ms, unix_ms: 1 + ms }
}

/// Returns whether the server has not closed its sending direction, after all its bytes have been read.
pub fn is_open(mut client: &UnixStream) -> bool {
    client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}
