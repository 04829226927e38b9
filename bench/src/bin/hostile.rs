//! Hostile clients, all kinds at once, for the measurement `hostile_mix` of `bench/run`:
//!
//! - connections that never send anything, as many as `--silent` says, with 1,000 new ones a second;
//! - connections that send `HEAD /items?limit=200` without a pause, 64 in a row;
//! - clients that check an item out and disconnect at once, before or after the answer is written;
//! - connections that are closed as soon as they are open.
//!
//! `hostile 127.0.0.1:8080 --silent 16384 --duration 20`. Prints how often each kind succeeded. Connections come from
//! 127.0.0.2 to 127.0.0.201, because one address does not have enough ports.

use clap::Parser;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Addresses from which connections come.
const ADDRESSES: u32 = 200;
/// Connections that send HEAD requests.
const HEAD_CONNECTIONS: usize = 8;
/// Requests in one write.
const HEADS_IN_A_ROW: usize = 64;
/// Silent connections that are replaced in a second.
const RECONNECTS_PER_SECOND: u64 = 1_000;

#[derive(Parser)]
struct Flags {
    /// Address of the server, on the loopback interface
    address: SocketAddr,
    /// Number of connections that never send anything
    #[arg(long, default_value_t = 16_384)]
    silent: usize,
    /// Seconds until the end
    #[arg(long, default_value_t = 20)]
    duration: u64,
}

fn main() {
    let Flags { address, silent, duration } = Flags::parse();
    let end = Instant::now() + Duration::from_secs(duration);
    let [mut heads, mut silents, mut withdrawn, mut floods] = [0u64; 4];
    thread::scope(|scope| {
        scope.spawn(|| silents = keep_silent(address, silent, end));
        scope.spawn(|| heads = send_heads(address, end));
        scope.spawn(|| withdrawn = check_out_and_leave(address, end));
        scope.spawn(|| floods = flood(address, end));
    });
    println!("silent={silents} heads={heads} withdrawn={withdrawn} floods={floods}");
}

/// Connects from the next address.
fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % ADDRESSES;
    let source = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + 1 + number);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&address.into(), Duration::from_secs(1))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket.into())
}

/// Makes closing reset the connection, so that its port is free at once.
fn reset(stream: TcpStream) {
    let _ = Socket::from(stream).set_linger(Some(Duration::ZERO));
}

/// Keeps `count` connections open, and replaces the oldest ones. Returns the number of connections.
fn keep_silent(address: SocketAddr, count: usize, end: Instant) -> u64 {
    let (mut open, mut connected) = (VecDeque::with_capacity(count), 0);
    while Instant::now() < end {
        if open.len() >= count {
            open.pop_front().into_iter().for_each(reset);
            thread::sleep(Duration::from_micros(1_000_000 / RECONNECTS_PER_SECOND));
        }
        if let Ok(stream) = connect(address) {
            open.push_back(stream);
            connected += 1;
        }
    }
    open.into_iter().for_each(reset);
    connected
}

/// Sends HEAD requests on each connection in turn. Returns the number of answers.
fn send_heads(address: SocketAddr, end: Instant) -> u64 {
    let request = b"HEAD /items?limit=200 HTTP/1.1\r\nHost: x\r\n\r\n".repeat(HEADS_IN_A_ROW);
    let mut streams: Vec<Option<TcpStream>> = (0..HEAD_CONNECTIONS).map(|_| None).collect();
    let mut answers = 0;
    while Instant::now() < end {
        for place in &mut streams {
            let sent = place.take().or_else(|| connect(address).ok()).and_then(|mut stream| {
                stream.write_all(&request).ok()?;
                Some(stream)
            });
            *place = sent;
        }
        for place in &mut streams {
            let read = place.as_mut().map_or(Ok(0), read_heads);
            answers += read.as_ref().copied().unwrap_or(0);
            if read.is_err() {
                *place = None;
            }
        }
    }
    answers
}

/// Reads the answers to one write. Returns their number.
fn read_heads(stream: &mut TcpStream) -> io::Result<u64> {
    let (mut bytes, mut ends, mut last) = ([0; 64 * 1024], 0, [0; 4]);
    while ends < HEADS_IN_A_ROW {
        let read = stream.read(&mut bytes)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for byte in &bytes[..read] {
            last = [last[1], last[2], last[3], *byte];
            ends += usize::from(last == *b"\r\n\r\n");
        }
    }
    Ok(ends as u64)
}

/// Checks items out and disconnects: half of the clients at once, the others after the answer. Returns the number of
/// checkouts.
fn check_out_and_leave(address: SocketAddr, end: Instant) -> u64 {
    let mut sent = 0;
    while Instant::now() < end {
        let Ok(mut stream) = connect(address) else { continue };
        let item = 400_000 + sent % 100_000;
        let request = format!("POST /checkout?user_id={sent}&item_id={item} HTTP/1.1\r\nHost: x\r\n\r\n");
        if stream.write_all(request.as_bytes()).is_ok() {
            sent += 1;
        }
        if sent % 2 == 0 {
            let _ = stream.read(&mut [0; 1024]);
        }
        reset(stream);
    }
    sent
}

/// Opens and closes connections. Returns their number.
fn flood(address: SocketAddr, end: Instant) -> u64 {
    let mut connected = 0;
    while Instant::now() < end {
        if let Ok(stream) = connect(address) {
            connected += 1;
            reset(stream);
        }
    }
    connected
}
