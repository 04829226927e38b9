//! What the kernel counts for this process: CPU time, memory, descriptors (proc(5)).

use procfs::process::{LimitValue, Process as Entry};
use procfs::{ProcResult, boot_time_secs, page_size, ticks_per_second};

/// How the process is.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// CPU time of all threads, in user and system mode, in seconds.
    pub cpu_s: f64,
    /// CPU time of each shard's thread, in seconds.
    pub shards_cpu_s: Vec<f64>,
    /// Bytes of its memory that are in RAM.
    pub resident_bytes: u64,
    /// Bytes of its address space.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Descriptors that are open.
    pub open_fds: u64,
    /// Descriptors that may be open.
    pub max_fds: u64,
    /// When it began, in seconds since the Unix epoch.
    pub started_s: f64,
}

impl Process {
    /// How this process is now, with `shards` shards; nothing but zeros where /proc cannot be read.
    pub fn read(shards: usize) -> Self {
        let read = || -> ProcResult<Process> {
            let entry = Entry::myself()?;
            let seconds = |ticks: u64| ticks as f64 / ticks_per_second() as f64;
            let mut shards_cpu_s = vec![0.0; shards];
            for task in entry.tasks()?.flatten() {
                // A thread may have ended meanwhile.
                let Ok(task) = task.stat() else { continue };
                let shard = task.comm.strip_prefix("shard-").and_then(|shard| shard.parse::<usize>().ok());
                if let Some(cpu_s) = shard.and_then(|shard| shards_cpu_s.get_mut(shard)) {
                    *cpu_s = seconds(task.utime + task.stime);
                }
            }
            // After its threads: the whole is never less than its parts.
            let stat = entry.stat()?;
            let max_fds = match entry.limits()?.max_open_files.soft_limit {
                LimitValue::Value(descriptors) => descriptors,
                LimitValue::Unlimited => u64::MAX,
            };
            Ok(Process {
                cpu_s: seconds(stat.utime + stat.stime),
                shards_cpu_s,
                resident_bytes: stat.rss * page_size(),
                virtual_bytes: stat.vsize,
                threads: stat.num_threads as u64,
                open_fds: entry.fd_count()? as u64,
                max_fds,
                started_s: boot_time_secs()? as f64 + seconds(stat.starttime),
            })
        };
        read().unwrap_or_else(|_| Process { shards_cpu_s: vec![0.0; shards], ..Process::default() })
    }
}
