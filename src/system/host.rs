//! What the machine gives this process: CPUs, descriptors, io_uring.

use crate::config::fatal::Fatal;
use glommio::{GlommioError, LocalExecutorBuilder, Placement};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};
use std::io;
use uuid::Uuid;

/// Bytes of registered memory that each executor asks for: what its flushes need.
pub const IO_MEMORY: usize = 512 * 1024;
/// Descriptors that a shard needs besides its connections: rings, segments, epoll, doorbell.
const DESCRIPTORS_PER_SHARD: u64 = 64;
/// Descriptors that the process needs besides its shards.
const DESCRIPTORS_BESIDES: u64 = 64;
/// Connections served at once, unless a setting or the descriptor limit says otherwise.
const CONNECTIONS_DEFAULT: u32 = 16 * 1024;

/// The CPUs that this process may use, by its affinity mask.
pub fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

/// How many shards suit this process: CPUs it may use, less where a container's quota says so.
pub fn default_shards() -> u16 {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    cpus.min(usize::from(crate::config::settings::SHARDS_MAX)) as u16
}

/// Where each shard runs: on a CPU of its own if there are enough, else wherever the kernel likes.
pub fn placements(shards: u16) -> Vec<Placement> {
    let cpus = cpus();
    if usize::from(shards) <= cpus.len() {
        cpus.into_iter().take(shards.into()).map(Placement::Fixed).collect()
    } else {
        vec![Placement::Unbound; shards.into()]
    }
}

/// Raises the limit on descriptors as far as allowed, and says how many connections fit below it.
///
/// # Errors
/// [`Fatal::Host`]: fewer than asked for, or not even enough to start.
pub fn connections_max(wanted: Option<u32>, shards: u16) -> Result<u32, Fatal> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Failing to raise it leaves what there is, which is judged below.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = getrlimit(Resource::Nofile).current.or(current).unwrap_or(u64::MAX);
    let besides = DESCRIPTORS_BESIDES + DESCRIPTORS_PER_SHARD * u64::from(shards);
    let available = limit.saturating_sub(besides).min(u64::from(u32::MAX)) as u32;
    let wanted_at_least = wanted.unwrap_or(1);
    if available < wanted_at_least {
        let needed = besides + u64::from(wanted_at_least);
        return Err(Fatal::Host(format!(
            "{limit} descriptors are allowed and {needed} are needed; raise LimitNOFILE or ulimit -n, or lower --max-connections"
        )));
    }
    Ok(wanted.unwrap_or(CONNECTIONS_DEFAULT.min(available)))
}

/// Random bytes from the operating system.
///
/// # Errors
/// [`Fatal::Host`]: it has none.
pub fn random<const N: usize>() -> Result<[u8; N], Fatal> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Fatal::Host(format!("no random numbers: {error}")))?;
    Ok(bytes)
}

/// A new id for an installation or a run.
///
/// # Errors
/// As for [`random`].
pub fn new_id() -> Result<Uuid, Fatal> {
    Ok(uuid::Builder::from_random_bytes(random()?).into_uuid())
}

/// Tries whether an executor can be had at all.
///
/// # Errors
/// [`Fatal::Host`], with what to do.
pub fn check_io_uring() -> Result<(), Fatal> {
    LocalExecutorBuilder::new(Placement::Unbound).io_memory(IO_MEMORY).make().map(drop).map_err(refusal)
}

/// Why an executor could not be had.
pub fn refusal(error: GlommioError<()>) -> Fatal {
    let text = error.to_string();
    Fatal::Host(
        if text.contains("MemLockLimit") || text.contains("memlock") || text.contains("Cannot allocate memory") {
            format!(
                "too little memory may be locked: {text}; raise LimitMEMLOCK or ulimit -l to 8 MiB and 2 MiB for each shard"
            )
        } else if text.contains("not permitted") {
            format!("{text}; allow io_uring in the container's seccomp profile, and set kernel.io_uring_disabled to 0")
        } else {
            format!("io_uring cannot be used: {text}; Linux 5.11 or newer is needed")
        },
    )
}

/// Returns the reason to end for a descriptor that could not be made.
pub fn no_descriptors(error: io::Error) -> Fatal {
    Fatal::Host(format!("no descriptors are left: {error}; raise LimitNOFILE or ulimit -n"))
}
