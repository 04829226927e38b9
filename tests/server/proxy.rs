//! A proxy before Postgres that counts protocol messages and cuts the connection at a chosen one.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::thread;

/// Where in the message that is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It does not arrive.
    Before,
    /// It arrives in part.
    Within,
    /// It arrives, and nothing after it.
    After,
}

/// A proxy, for as long as the test runs.
#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// Messages to let through, in both directions together; cuts nothing below zero.
    left: AtomicI64,
    seen: AtomicU64,
    cut: Cut,
}

impl Proxy {
    /// Starts one before 127.0.0.1:`port`.
    pub fn start(port: u16, cut: Cut) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let state = Arc::new(State { left: AtomicI64::new(-1), seen: AtomicU64::new(0), cut });
        let proxy = Proxy { address: listener.local_addr().unwrap(), state };
        let state = proxy.state.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                // Messages are small and answers are waited for.
                [&client, &server].iter().for_each(|side| side.set_nodelay(true).unwrap());
                for (from, to, is_client) in [(&client, &server, true), (&server, &client, false)] {
                    let (from, to, state) = (from.try_clone().unwrap(), to.try_clone().unwrap(), state.clone());
                    thread::spawn(move || forward(from, to, is_client, &state));
                }
            }
        });
        proxy
    }

    /// Cuts at the message after `messages` more.
    pub fn cut_after(&self, messages: u32) {
        self.state.left.store(messages.into(), Ordering::SeqCst);
    }

    /// Stops cutting. Returns whether anything has been cut since `cut_after`.
    pub fn disarm(&self) -> bool {
        self.state.left.swap(-1, Ordering::SeqCst) < 0
    }

    /// Messages seen so far.
    pub fn seen(&self) -> u64 {
        self.state.seen.load(Ordering::SeqCst)
    }
}

/// Passes messages on until one is cut or a side is gone. Messages: a type byte, except for a client's first one, and
/// a length that counts itself.
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
        let _ = side.shutdown(Shutdown::Both); // It may be gone already.
    }
}
