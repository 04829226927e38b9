//! A proxy in front of Postgres that counts protocol messages and cuts the connection at a chosen message.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::thread;

/// Position of the cut, relative to the chosen message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The message is not forwarded.
    Before,
    /// The first half of the message is forwarded.
    Within,
    /// The message is forwarded, and nothing after it.
    After,
}

/// A proxy that runs until the test process exits.
#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// Number of messages to forward before the cut, in both directions together. A negative number disables the cut.
    left: AtomicI64,
    seen: AtomicU64,
    cut: Cut,
}

impl Proxy {
    /// Starts a proxy in front of 127.0.0.1:`port`.
    pub fn start(port: u16, cut: Cut) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let state = Arc::new(State { left: AtomicI64::new(-1), seen: AtomicU64::new(0), cut });
        let proxy = Proxy { address: listener.local_addr().unwrap(), state };
        let state = proxy.state.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                // Messages are small and wait for responses, so Nagle's algorithm would delay them.
                [&client, &server].iter().for_each(|side| side.set_nodelay(true).unwrap());
                for (from, to, is_client) in [(&client, &server, true), (&server, &client, false)] {
                    let (from, to, state) = (from.try_clone().unwrap(), to.try_clone().unwrap(), state.clone());
                    thread::spawn(move || forward(from, to, is_client, &state));
                }
            }
        });
        proxy
    }

    /// Cuts the connection at the message that follows the next `messages` messages.
    pub fn cut_after(&self, messages: u32) {
        self.state.left.store(messages.into(), Ordering::SeqCst);
    }

    /// Disables the cut. Returns whether a connection has been cut since `cut_after`.
    pub fn disarm(&self) -> bool {
        self.state.left.swap(-1, Ordering::SeqCst) < 0
    }

    /// Returns the number of messages seen so far.
    pub fn seen(&self) -> u64 {
        self.state.seen.load(Ordering::SeqCst)
    }
}

/// Forwards messages until one is cut or a side disconnects. A message is a type byte, which a client's first message
/// lacks, a length that includes itself, and the contents.
fn forward(mut from: TcpStream, mut to: TcpStream, is_client: bool, state: &State) {
    let mut has_type = !is_client;
    let mut pass = || -> std::io::Result<bool> {
        let mut message = vec![0; if has_type { 5 } else { 4 }];
        has_type = true;
        from.read_exact(&mut message)?;
        let length = u32::from_be_bytes(*message.last_chunk().unwrap()) as usize;
        let head = message.len();
        message.resize(head + length - 4, 0);
        from.read_exact(&mut message[head..])?;
        state.seen.fetch_add(1, Ordering::SeqCst);
        let is_cut = state.left.load(Ordering::SeqCst) >= 0 && state.left.fetch_sub(1, Ordering::SeqCst) == 0;
        let passed = match state.cut {
            Cut::Before if is_cut => 0,
            Cut::Within if is_cut => message.len() / 2,
            _ => message.len(),
        };
        to.write_all(&message[..passed])?;
        Ok(!is_cut)
    };
    while pass().unwrap_or(false) {}
    for side in [from, to] {
        let _ = side.shutdown(Shutdown::Both); // The side may have disconnected already.
    }
}
