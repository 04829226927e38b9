//! Listening sockets: one for each shard on the same address, connections spread by the kernel.

use crate::fatal::Fatal;
use rustix::fd::OwnedFd;
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
