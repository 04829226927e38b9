//! The resources that the machine gives this process: CPUs, file descriptors, random bytes, io_uring. An error names
//! the limit and the remedy.

use crate::config::fatal::Fatal;
use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};
use std::io;
use uuid::Uuid;

/// Bytes of memory that each executor registers with io_uring: the least that glommio takes. The log has its own memory.
const IO_MEMORY: usize = 64 * 1024;
/// Entries of each of an executor's rings. It polls few descriptors, and only while a segment is made.
const RING_DEPTH: usize = 16;
/// Connections above the limit, for each shard, that there can be for a moment: see `server/admission.rs`.
pub const CONNECTIONS_AHEAD_PER_SHARD: u64 = 32;
/// File descriptors that a shard needs besides its connections within the limit: rings, segments, epoll set, doorbell,
/// of which it has about 14, and connections above the limit.
const DESCRIPTORS_PER_SHARD: u64 = 32 + CONNECTIONS_AHEAD_PER_SHARD;
/// File descriptors that the process needs besides its shards and the connections of the admin port.
const DESCRIPTORS_BESIDES: u64 = 64;
/// Maximum number of connections of the admin port. Their descriptors are set aside.
pub const ADMIN_CONNECTIONS_MAX: usize = 96;
/// Bytes of address space that a process needs, without and for each shard: threads, rings, and room for a small sale.
const ADDRESS_SPACE_MIN: u64 = 256 << 20;
const SHARD_ADDRESS_SPACE: u64 = 32 << 20;
/// Bytes of writable memory that a process needs, without and for each shard.
const DATA_MIN: u64 = 64 << 20;
const SHARD_DATA: u64 = 16 << 20;
/// Connections served at once, unless a setting or the descriptor limit gives another number.
const CONNECTIONS_DEFAULT: u32 = 16 * 1024;

/// Returns the CPUs that this process may use, by its affinity mask.
pub fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

/// Returns the default number of shards: the CPUs that this process may use, or fewer if a container's quota is lower.
pub fn default_shards() -> u16 {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    cpus.min(usize::from(crate::config::settings::SHARDS_MAX)) as u16
}

/// Returns where each shard runs: on its own CPU if there are enough CPUs, otherwise where the kernel schedules it.
pub fn placements(shards: u16) -> Vec<Placement> {
    let cpus = cpus();
    if usize::from(shards) <= cpus.len() {
        cpus.into_iter().take(shards.into()).map(Placement::Fixed).collect()
    } else {
        vec![Placement::Unbound; shards.into()]
    }
}

/// Raises the limit on file descriptors as far as allowed, and returns the number of connections that fit below it.
///
/// # Errors
/// [`Fatal::Host`]: the limit is too low for the wanted connections, or for any connection.
pub fn connections_max(wanted: Option<u32>, shards: u16) -> Result<u32, Fatal> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // If the limit cannot be raised, the check below uses the present one.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = getrlimit(Resource::Nofile).current.or(current).unwrap_or(u64::MAX);
    let besides = DESCRIPTORS_BESIDES + ADMIN_CONNECTIONS_MAX as u64 + DESCRIPTORS_PER_SHARD * u64::from(shards);
    // A parent process may have left descriptors open. Those of sockets that are meant for this process count twice.
    let besides = besides + std::fs::read_dir("/proc/self/fd").map_or(0, |open| open.count() as u64);
    let available = limit.saturating_sub(besides).min(u64::from(u32::MAX)) as u32;
    let wanted_at_least = wanted.unwrap_or(1);
    if available < wanted_at_least {
        let needed = besides + u64::from(wanted_at_least);
        return Err(Fatal::Host(format!(
            "the limit of {limit} file descriptors is below the {needed} that are needed; raise LimitNOFILE or \
             ulimit -n, or lower --max-connections"
        )));
    }
    Ok(wanted.unwrap_or(CONNECTIONS_DEFAULT.min(available)))
}

/// Checks the limits that would end the process while it serves: on its memory, and on the size of a file, which must
/// have room for a segment of `segment_bytes`.
///
/// # Errors
/// [`Fatal::Host`]: a limit is too low.
pub fn check_limits(shards: u16, segment_bytes: u64) -> Result<(), Fatal> {
    let shards = u64::from(shards);
    let checks = [
        (Resource::Fsize, segment_bytes, "the size of a file", "LimitFSIZE or ulimit -f"),
        (Resource::As, ADDRESS_SPACE_MIN + shards * SHARD_ADDRESS_SPACE, "address space", "LimitAS or ulimit -v"),
        (Resource::Data, DATA_MIN + shards * SHARD_DATA, "memory for data", "LimitDATA or ulimit -d"),
    ];
    for (resource, needed, what, remedy) in checks {
        if let Some(limit) = getrlimit(resource).current.filter(|limit| *limit < needed) {
            return Err(Fatal::Host(format!(
                "the limit of {limit} bytes on {what} is below the {needed} that are needed; raise {remedy}"
            )));
        }
    }
    Ok(())
}

/// Returns random bytes from the operating system.
///
/// # Errors
/// [`Fatal::Host`]: the operating system returns none.
pub fn random<const N: usize>() -> Result<[u8; N], Fatal> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Fatal::Host(format!("cannot read random bytes: {error}")))?;
    Ok(bytes)
}

/// Creates a random id for an installation or a run.
///
/// # Errors
/// As for [`random`].
pub fn new_id() -> Result<Uuid, Fatal> {
    Ok(uuid::Builder::from_random_bytes(random()?).into_uuid())
}

/// Checks that an executor with io_uring can be created.
///
/// # Errors
/// [`Fatal::Host`]: io_uring cannot be used, or too little memory may be locked.
pub fn check_io_uring() -> Result<(), Fatal> {
    executor(Placement::Unbound).map(drop).map_err(refusal)
}

/// Creates an executor for this thread.
///
/// # Errors
/// For [`refusal`].
pub fn executor(placement: Placement) -> Result<LocalExecutor, GlommioError<()>> {
    LocalExecutorBuilder::new(placement).io_memory(IO_MEMORY).ring_depth(RING_DEPTH).make()
}

/// Converts the error of an executor that could not be created to the reason to end, with the remedy.
pub fn refusal(error: GlommioError<()>) -> Fatal {
    no_io_uring(&error.to_string())
}

/// Converts the error of a ring that could not be created to the reason to end, with the remedy.
pub fn no_ring(error: io::Error) -> Fatal {
    if lacks_descriptors(&error) { no_descriptors(error) } else { no_io_uring(&error.to_string()) }
}

/// Returns the reason to end if io_uring cannot be used, with the remedy.
fn no_io_uring(text: &str) -> Fatal {
    if text.contains("MemLockLimit") || text.contains("memlock") || text.contains("Cannot allocate memory") {
        return Fatal::Host(format!(
            "the limit on locked memory is too low: {text}; raise LimitMEMLOCK or ulimit -l to 8 MiB plus 2 MiB per shard"
        ));
    }
    // Of an io_uring that a seccomp profile refuses, Docker answers "not permitted", and podman "not implemented".
    Fatal::Host(format!(
        "io_uring cannot be used: {text}; allow io_uring in the container's seccomp profile, set \
         kernel.io_uring_disabled to 0, and use Linux 5.11 or newer"
    ))
}

/// Converts the error of a file descriptor that could not be created to the reason to end, with the remedy.
pub fn no_descriptors(error: io::Error) -> Fatal {
    Fatal::Host(format!("no file descriptors are left: {error}; raise LimitNOFILE or ulimit -n"))
}

/// Returns whether an error means that the process or the system has no file descriptors left.
pub fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_cannot_be_created_has_a_remedy() {
        let reason = |errno: Errno| no_ring(errno.into()).to_string();
        for (errno, remedy) in [
            (Errno::MFILE, "LimitNOFILE"),
            (Errno::NFILE, "LimitNOFILE"),
            (Errno::NOMEM, "LimitMEMLOCK"),
            (Errno::PERM, "seccomp"),
            (Errno::NOSYS, "seccomp"),
        ] {
            assert!(reason(errno).contains(remedy), "{}", reason(errno));
        }
    }
}
