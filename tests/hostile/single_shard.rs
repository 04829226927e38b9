//! The sockets of one shard without the shard: the test makes the turns, and answers each request with a short text.

use glommio::{LocalExecutorBuilder, Placement};
use rustix::net::sockopt::set_socket_send_buffer_size;
use stampede::http::connection::ConnectionSnapshot;
use stampede::http::operation::{Answer, Operation};
use stampede::http::origin::Origins;
use stampede::http::site::Site;
use stampede::operate::request_timer::RequestTimer;
use stampede::operate::status::{Phase, Status};
use stampede::sale::ids::{Moment, ShardId};
use stampede::server::admission::Admission;
use stampede::server::sockets::{Handled, Server};
use stampede::system::clock::Clock;
use stampede::system::doorbell::Doorbell;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// Returns the sockets of the only shard of `status`, for at most `connections_max` connections. Call it on an executor.
pub fn server(status: &Arc<Status>, connections_max: usize) -> Server {
    let admission =
        Admission::new(ShardId(0), status.clone(), [Doorbell::new().unwrap()].into(), connections_max, None);
    let request_timer = RequestTimer::new(status.clone(), ShardId(0), Clock::start());
    Server::new(admission, request_timer, Origins::None, Site::default(), Duration::from_secs(75)).unwrap()
}

pub struct SingleShard {
    pub server: Server,
}

impl SingleShard {
    /// Runs `test` on an executor, which the sockets of a shard need.
    pub fn run<T: Send + 'static>(test: impl FnOnce(SingleShard) -> T + Send + 'static) -> T {
        Self::run_with(4, test)
    }

    /// Runs `test` with sockets for at most `connections_max` connections.
    pub fn run_with<T: Send + 'static>(
        connections_max: usize,
        test: impl FnOnce(SingleShard) -> T + Send + 'static,
    ) -> T {
        let run = async move {
            let status = Arc::new(Status::new(Phase::Serving, 1, 0, false));
            test(SingleShard { server: server(&status, connections_max) })
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
        self.server.adopt(socket.into(), midway, at(0));
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

/// Returns the moment that is `ms` after the start of the test.
pub fn at(ms: u64) -> Moment {
    Moment { monotonic_ms: 1 + ms, unix_ms: 1 + ms }
}

/// Returns whether the server has not closed its sending direction, after all its bytes have been read.
pub fn is_open(mut client: &UnixStream) -> bool {
    client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}
