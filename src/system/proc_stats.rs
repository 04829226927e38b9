//! What the kernel counts for this process: CPU time, memory, descriptors (proc(5)).

use crate::system::clock::boot_s;
use procfs::process::{LimitValue, Process as Entry};
use procfs::{ProcResult, page_size, ticks_per_second};

/// How the process is.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// CPU time of all threads, in user and system mode, in seconds.
    pub cpu_s: f64,
    /// CPU time of each shard's threads, in seconds.
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
            let shards_cpu_s = Self::shards_cpu_s(shards);
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
                started_s: boot_s() + seconds(stat.starttime),
            })
        };
        read().unwrap_or_else(|_| Process { shards_cpu_s: vec![0.0; shards], ..Process::default() })
    }

    /// CPU time of each of `shards` shards' threads, in seconds; zeros where /proc cannot be read. The executor starts one
    /// more beside a shard's, which has its name.
    pub fn shards_cpu_s(shards: usize) -> Vec<f64> {
        let mut shards_cpu_s = vec![0.0; shards];
        // A thread may have ended meanwhile.
        let tasks = Entry::myself().and_then(|entry| entry.tasks()).into_iter().flatten().flatten();
        for task in tasks.filter_map(|task| task.stat().ok()) {
            let shard = task.comm.strip_prefix("shard-").and_then(|shard| shard.parse::<usize>().ok());
            if let Some(cpu_s) = shard.and_then(|shard| shards_cpu_s.get_mut(shard)) {
                *cpu_s += seconds(task.utime + task.stime);
            }
        }
        shards_cpu_s
    }
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::{Builder, scope, sleep};
    use std::time::{Duration, Instant};

    #[test]
    fn threads_of_one_shard_count_together() {
        let is_over = AtomicBool::new(false);
        let begun = Instant::now();
        let counted = scope(|scope| {
            let spawn = |work: fn()| {
                let is_over = &is_over;
                let run = move || {
                    while !is_over.load(Ordering::Relaxed) {
                        work();
                    }
                };
                Builder::new().name("shard-1".into()).spawn_scoped(scope, run).unwrap();
            };
            spawn(|| {});
            // Such as the one that the executor starts beside a shard's.
            spawn(|| sleep(Duration::from_millis(200)));
            while Process::shards_cpu_s(2)[1] < 0.1 && begun.elapsed() < Duration::from_secs(20) {}
            let counted = Process::shards_cpu_s(2);
            is_over.store(true, Ordering::Relaxed);
            counted
        });
        assert!(counted[0] == 0.0 && counted[1] >= 0.1, "{counted:?}");
    }
}
