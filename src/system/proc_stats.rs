//! What the kernel counts for this process, read from /proc: CPU time, memory, file descriptors (proc(5)).

use crate::system::clock::boot_s;
use procfs::process::{LimitValue, Process as Entry};
use procfs::{ProcResult, page_size, ticks_per_second};

/// Resource usage of this process. All zeros if /proc cannot be read.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// CPU time of all threads, in user and system mode, in seconds.
    pub cpu_s: f64,
    /// CPU time of each shard's threads, in seconds.
    pub shards_cpu_s: Vec<f64>,
    /// Bytes of memory in RAM (resident set size).
    pub resident_bytes: u64,
    /// Bytes of the address space.
    pub virtual_bytes: u64,
    /// Number of threads.
    pub threads: u64,
    /// Number of open file descriptors.
    pub open_fds: u64,
    /// Number of file descriptors that may be open (soft limit).
    pub max_fds: u64,
    /// Start time of the process, in seconds since the Unix epoch.
    pub started_s: f64,
}

impl Process {
    /// Reads the usage of this process, which has `shards` shards. Returns zeros if /proc cannot be read.
    pub fn read(shards: usize) -> Self {
        let read = || -> ProcResult<Process> {
            let entry = Entry::myself()?;
            let shards_cpu_s = Self::shards_cpu_s(shards);
            // Read after the threads, so that the total is never less than the sum of the shards.
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

    /// Returns the CPU time of each shard's threads, in seconds; zeros if /proc cannot be read. A shard has a second
    /// thread with the same name, which the executor starts.
    pub fn shards_cpu_s(shards: usize) -> Vec<f64> {
        let mut shards_cpu_s = vec![0.0; shards];
        // A thread can end while the list is read.
        for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            if let Some((shard, ticks)) = shard_ticks(&stat)
                && let Some(cpu_s) = shards_cpu_s.get_mut(shard)
            {
                *cpu_s += seconds(ticks);
            }
        }
        shards_cpu_s
    }
}

/// Returns the shard of a thread and its CPU time in ticks, from the text of its `stat` (proc(5)): the name is in
/// parentheses, and of the fields behind it, the 12th and the 13th are the times in user and system mode. procfs parses all
/// 52 fields: with 64 shards, that was most of the CPU time that an idle server used.
fn shard_ticks(stat: &str) -> Option<(usize, u64)> {
    let (_, named) = stat.split_once("(shard-")?;
    let (shard, numbers) = named.split_once(") ")?;
    let mut times = numbers.split(' ').skip(11).map_while(|ticks| ticks.parse::<u64>().ok());
    Some((shard.parse().ok()?, times.next()? + times.next()?))
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
    fn the_times_of_a_shard_are_found_behind_its_name() {
        let stat = |name: &str| format!("7 ({name}) S 1 2 3 4 5 6 7 8 9 10 400 50 13 14\n");
        assert_eq!(shard_ticks(&stat("shard-3")), Some((3, 450)));
        for other in ["shard-", "shard-3 x", "shard-x", "admin", "a) (shard"] {
            assert_eq!(shard_ticks(&stat(other)), None, "{other}");
        }
        assert_eq!(shard_ticks("7 (shard-3) S 1 2 3 4 5 6 7 8 9 10 400"), None);
    }

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
            // Like the second thread of a shard, which the executor starts.
            spawn(|| sleep(Duration::from_millis(200)));
            while Process::shards_cpu_s(2)[1] < 0.1 && begun.elapsed() < Duration::from_secs(20) {}
            let counted = Process::shards_cpu_s(2);
            is_over.store(true, Ordering::Relaxed);
            counted
        });
        assert!(counted[0] == 0.0 && counted[1] >= 0.1, "{counted:?}");
    }
}
