//! Listening sockets: one for each shard on the same address, connections spread by the kernel; or those that a service
//! manager has opened, which outlive this process.

use crate::config::fatal::Fatal;
use crate::system::host;
use listenfd::ListenFd;
use nix::libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SKF_AD_CPU, SKF_AD_OFF, sock_filter, sock_fprog,
};
use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use rustix::fd::{AsFd, OwnedFd};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;

/// Connections that may wait to be accepted, at each shard; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 16 * 1024;

/// Listens on `address`, once for each shard. Says which port it got, if it asked for port 0.
///
/// # Errors
/// [`Fatal::Listen`].
pub fn listen(address: SocketAddr, shards: u16) -> Result<(SocketAddr, Vec<OwnedFd>), Fatal> {
    if let Some(inherited) = inherit(shards)? {
        return Ok(inherited);
    }
    let refused = |error: io::Error| {
        Fatal::Listen(match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("{address} is in use by another program; stop it, or set --listen to another port")
            }
            io::ErrorKind::PermissionDenied => {
                format!("{address} needs privileges; set --listen to a port above 1023, or grant CAP_NET_BIND_SERVICE")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("{address} is no address of this machine; set --listen to one, or to 0.0.0.0")
            }
            _ => format!("{address}: {error}; set --listen to another address"),
        })
    };
    // Sockets that share a port would share it with another server of this user too, and nobody would notice.
    socket(address, false).and_then(|probe| probe.listen(1)).map_err(refused)?;
    let first = socket(address, true).map_err(refused)?;
    let address = first.local_addr().map_err(refused)?.as_socket().unwrap_or(address);
    let others = (1..shards).map(|_| socket(address, true));
    let listeners = std::iter::once(Ok(first)).chain(others).map(|socket| {
        let socket = socket?;
        socket.listen(BACKLOG)?;
        Ok(OwnedFd::from(socket))
    });
    Ok((address, listeners.collect::<io::Result<_>>().map_err(refused)?))
}

/// The sockets that the service manager has opened for this process (sd_listen_fds(3)), one for each shard; shards share
/// them where there are fewer.
fn inherit(shards: u16) -> Result<Option<(SocketAddr, Vec<OwnedFd>)>, Fatal> {
    let mut manager = ListenFd::from_env();
    let (sockets, shards) = (manager.len(), usize::from(shards));
    if sockets > shards {
        return Err(Fatal::Listen(format!(
            "{sockets} sockets are inherited for {shards} shards, and nobody would accept from some of them; \
             set --shards to {sockets}, or give fewer ListenStream"
        )));
    }
    let adopt = |error: io::Error| Fatal::Listen(format!("an inherited socket cannot be used: {error}"));
    let mut address = None;
    let mut listeners = Vec::new();
    for shard in 0..if sockets == 0 { 0 } else { shards } {
        let Some(first) = listeners.get(shard % sockets.max(1)) else {
            let socket = manager.take_tcp_listener(shard).map_err(adopt)?.expect("there are so many");
            let socket = Socket::from(socket);
            socket.set_nonblocking(true).and_then(|()| socket.set_tcp_nodelay(true)).map_err(adopt)?;
            address = address.or(socket.local_addr().map_err(adopt)?.as_socket());
            listeners.push(OwnedFd::from(socket));
            continue;
        };
        let shared = OwnedFd::try_clone(first).map_err(adopt)?;
        listeners.push(shared);
    }
    Ok(address.map(|address| (address, listeners)))
}

/// Adds to the `listeners` of a server whose place this one takes, until each shard has one; nobody comes to those before
/// they are opened. None is ever closed, because that would reset whoever waits in its queue.
///
/// # Errors
/// [`Fatal::Listen`].
pub fn extend(listeners: &mut Vec<OwnedFd>, shards: u16) -> Result<SocketAddr, Fatal> {
    let failed = |error: io::Error| Fatal::Listen(format!("the sockets of the server before cannot be used: {error}"));
    let first = listeners.first().ok_or_else(|| Fatal::Listen("the server before had no sockets".into()))?;
    let address = Socket::from(first.try_clone().map_err(failed)?).local_addr().map_err(failed)?;
    let address = address.as_socket().ok_or_else(|| Fatal::Listen("they are no TCP sockets".into()))?;
    for place in listeners.len()..usize::from(shards) {
        let another = socket(address, true).map(OwnedFd::from);
        // Those of a service manager may not let others share their port: shards share the sockets then.
        let another = another.or_else(|_| listeners[place % listeners.len()].try_clone());
        listeners.push(another.map_err(failed)?);
    }
    Ok(address)
}

/// Lets clients come to `listeners`, those that are open already included, and has them spread over `shards` shards.
///
/// # Errors
/// [`Fatal::Listen`].
pub fn open(listeners: &[OwnedFd], steers_by_cpu: bool, shards: u16) -> Result<(), Fatal> {
    let listened = listeners.iter().try_for_each(|listener| rustix::net::listen(listener, BACKLOG));
    listened.map_err(|error| Fatal::Listen(format!("the sockets of the server before cannot be used: {error}")))?;
    steer(listeners, steers_by_cpu, shards);
    Ok(())
}

/// Has connections stay on the CPU where they arrive, if that is wanted and can be done.
pub fn steer(listeners: &[OwnedFd], by_cpu: bool, shards: u16) {
    if !by_cpu {
        // Those of a server before this one may still be steered; others never were.
        let _ = steer_by_cpu(&listeners[0], &[]);
        return;
    }
    let cpus = host::cpus();
    let steered = match cpus.get(..usize::from(shards)) {
        Some(cpus) => steer_by_cpu(&listeners[0], cpus).map_err(|error| error.to_string()),
        None => Err(format!("there are {} CPUs for {shards} shards", cpus.len())),
    };
    if let Err(why) = steered {
        tracing::warn!(why, "connections cannot be steered by CPU: they are spread by hash");
    }
}

/// Has the kernel give each new connection to the shard that runs on the CPU where it arrived: `cpus` are those of the
/// shards, in the order of their listeners, and one of these is enough. From other CPUs, connections are spread as usual.
/// Without any `cpus`, all are.
///
/// # Errors
/// The kernel cannot do that.
fn steer_by_cpu(listener: &impl AsFd, cpus: &[usize]) -> io::Result<()> {
    // Classic BPF (Linux, "Linux Socket Filtering"): the answer is the place of a socket in its group.
    let step = |code: u32, k: u32, jf: u8| sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = vec![step(BPF_LD | BPF_W | BPF_ABS, (SKF_AD_OFF + SKF_AD_CPU) as u32, 0)];
    for (place, cpu) in (0..).zip(cpus) {
        program.push(step(BPF_JMP | BPF_JEQ | BPF_K, *cpu as u32, 1));
        program.push(step(BPF_RET | BPF_K, place, 0));
    }
    // No such place: the kernel chooses.
    program.push(step(BPF_RET | BPF_K, u32::MAX, 0));
    let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    setsockopt(listener, AttachReusePortCbpf, &program).map_err(io::Error::from)
}

fn socket(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    // Accepted sockets inherit it: answers leave at once.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
