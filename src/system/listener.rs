//! Listening sockets: one for each shard on the same address (SO_REUSEPORT), among which the kernel distributes
//! connections; or sockets that a service manager has opened, which outlive this process; or, in an upgrade, the
//! sockets of the old process. Accepting connections is in the folder `server`.

use crate::config::fatal::Fatal;
use crate::system::host;
use listenfd::ListenFd;
use nix::libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SKF_AD_CPU, SKF_AD_OFF, sock_filter, sock_fprog,
};
use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{FdFlags, fcntl_setfd};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Sockets of the service manager that stay open when this process executes itself again.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Connections that may wait in the accept queue of one shard. The kernel limits the queue to net.core.somaxconn.
const BACKLOG: i32 = 16 * 1024;

/// Listens on `address`, once for each shard, or takes the sockets of the service manager. Returns the sockets and
/// their address, which has the actual port if `address` has port 0. With `keeps_inherited`, the sockets of the service
/// manager stay open when this process executes itself again.
///
/// # Errors
/// [`Fatal::Listen`]: the address cannot be used, or the service manager passed more sockets than there are shards.
pub fn listen(address: SocketAddr, shards: u16, keeps_inherited: bool) -> Result<(SocketAddr, Vec<OwnedFd>), Fatal> {
    if let Some(inherited) = inherit(shards, keeps_inherited)? {
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
                format!("{address} is not an address of this machine; set --listen to one, or to 0.0.0.0")
            }
            _ => format!("{address}: {error}; set --listen to another address"),
        })
    };
    // With SO_REUSEPORT, the sockets would also share the port with another server of the same user, unnoticed. So
    // first bind a socket without this option, which fails if the port is in use.
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

/// Takes the sockets that the service manager has opened for this process (sd_listen_fds(3)), one for each shard. If
/// there are fewer sockets than shards, shards share them.
fn inherit(shards: u16, stay_open: bool) -> Result<Option<(SocketAddr, Vec<OwnedFd>)>, Fatal> {
    let mut manager = ListenFd::from_env();
    let (sockets, shards) = (manager.len(), usize::from(shards));
    if sockets > shards {
        return Err(Fatal::Listen(format!(
            "the service manager passed {sockets} sockets for {shards} shards, and no shard would accept on some of \
             them; set --shards to {sockets}, or configure fewer ListenStream lines"
        )));
    }
    let adopt = |error: io::Error| Fatal::Listen(format!("a socket from the service manager cannot be used: {error}"));
    let mut address = None;
    let mut listeners = Vec::new();
    for shard in 0..if sockets == 0 { 0 } else { shards } {
        let Some(first) = listeners.get(shard % sockets.max(1)) else {
            let socket =
                manager.take_tcp_listener(shard).map_err(adopt)?.expect("the index is below the number of sockets");
            let socket = Socket::from(socket);
            socket.set_nonblocking(true).and_then(|()| socket.set_tcp_nodelay(true)).map_err(adopt)?;
            address = address.or(socket.local_addr().map_err(adopt)?.as_socket());
            let listener = OwnedFd::from(socket);
            if stay_open {
                // The descriptor has the number that the service manager has given it, also for the next program.
                fcntl_setfd(&listener, FdFlags::empty()).map_err(|error| adopt(error.into()))?;
                KEPT.store(listeners.len() + 1, Ordering::Relaxed);
            }
            listeners.push(listener);
            continue;
        };
        let shared = OwnedFd::try_clone(first).map_err(adopt)?;
        listeners.push(shared);
    }
    Ok(address.map(|address| (address, listeners)))
}

/// Returns the number of sockets of the service manager that stay open when this process executes itself again.
pub fn kept() -> usize {
    KEPT.load(Ordering::Relaxed)
}

/// Adds sockets to the `listeners` of the old process of an upgrade until each shard has one, and returns their
/// address. A new socket gets no connections before [`open`]. No socket is ever closed, because that would reset the
/// connections in its accept queue.
///
/// # Errors
/// [`Fatal::Listen`]: a socket of the old process cannot be used, or is missing.
pub fn extend(listeners: &mut Vec<OwnedFd>, shards: u16) -> Result<SocketAddr, Fatal> {
    let failed = |error: io::Error| Fatal::Listen(format!("the sockets of the old process cannot be used: {error}"));
    let first = listeners.first().ok_or_else(|| Fatal::Listen("the old process passed no sockets".into()))?;
    let address = Socket::from(first.try_clone().map_err(failed)?).local_addr().map_err(failed)?;
    let address = address.as_socket().ok_or_else(|| Fatal::Listen("the old process passed no TCP sockets".into()))?;
    for place in listeners.len()..usize::from(shards) {
        let another = socket(address, true).map(OwnedFd::from);
        // Sockets of a service manager may lack SO_REUSEPORT. Then shards share the sockets.
        let another = another.or_else(|_| listeners[place % listeners.len()].try_clone());
        listeners.push(another.map_err(failed)?);
    }
    Ok(address)
}

/// Starts to listen on `listeners`, including those that listen already, and distributes connections to `shards`
/// shards.
///
/// # Errors
/// [`Fatal::Listen`]: a socket of the old process cannot be used.
pub fn open(listeners: &[OwnedFd], steers_by_cpu: bool, shards: u16) -> Result<(), Fatal> {
    let listened = listeners.iter().try_for_each(|listener| rustix::net::listen(listener, BACKLOG));
    listened.map_err(|error| Fatal::Listen(format!("the sockets of the old process cannot be used: {error}")))?;
    steer(listeners, steers_by_cpu, shards);
    Ok(())
}

/// Steers each connection to the shard on the CPU where it arrives, if `by_cpu` is set and the kernel supports it.
pub fn steer(listeners: &[OwnedFd], by_cpu: bool, shards: u16) {
    if !by_cpu {
        // Sockets of the old process may still be steered. For other sockets this changes nothing.
        let _ = steer_by_cpu(&listeners[0], &[]);
        return;
    }
    let cpus = host::cpus();
    let steered = match cpus.get(..usize::from(shards)) {
        Some(cpus) => steer_by_cpu(&listeners[0], cpus).map_err(|error| error.to_string()),
        None => Err(format!("{} CPUs are too few for {shards} shards", cpus.len())),
    };
    if let Err(why) = steered {
        tracing::warn!(why, "connections cannot be steered by CPU: the kernel distributes them by hash");
    }
}

/// Makes the kernel give each new connection to the shard that runs on the CPU where the connection arrives. `cpus` are
/// the CPUs of the shards, in the order of their listeners; `listener` is any listener of the group. Connections that
/// arrive on other CPUs are distributed by hash. If `cpus` is empty, all are.
///
/// # Errors
/// The kernel does not support it for this socket.
fn steer_by_cpu(listener: &impl AsFd, cpus: &[usize]) -> io::Result<()> {
    // Classic BPF (Linux, "Linux Socket Filtering"): the program returns the index of a socket in its group.
    let step = |code: u32, k: u32, jf: u8| sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = vec![step(BPF_LD | BPF_W | BPF_ABS, (SKF_AD_OFF + SKF_AD_CPU) as u32, 0)];
    for (place, cpu) in (0..).zip(cpus) {
        program.push(step(BPF_JMP | BPF_JEQ | BPF_K, *cpu as u32, 1));
        program.push(step(BPF_RET | BPF_K, place, 0));
    }
    // No socket has this index, so the kernel chooses by hash.
    program.push(step(BPF_RET | BPF_K, u32::MAX, 0));
    let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    setsockopt(listener, AttachReusePortCbpf, &program).map_err(io::Error::from)
}

fn socket(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    // Accepted sockets inherit this option, so answers leave at once.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
