//! CPU time and memory of this process, as the kernel counts them.
//! Promise: all threads are in it, also those of the Kafka client. Never: wall time, which others on the machine spoil.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time that this process has used, user and system.
pub fn cpu_now() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or_default())
}

/// Adds up the CPU time of chosen stretches.
#[derive(Debug, Default)]
pub struct Meter {
    spent: Duration,
}

impl Meter {
    /// Runs `work` and counts it.
    pub fn count<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let before = cpu_now();
        let answer = work();
        self.spent += cpu_now().saturating_sub(before);
        answer
    }

    /// What was counted.
    pub fn spent(&self) -> Duration {
        self.spent
    }
}

/// Bytes of memory that this process has resident now.
pub fn resident_bytes() -> u64 {
    of_status("VmRSS:")
}

/// The highest that ever was.
pub fn resident_peak_bytes() -> u64 {
    of_status("VmHWM:")
}

fn of_status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// What a reader must know about the machine to judge figures: CPU, cores, and how busy it was when the run began.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": ")).map_or("?", |(_, text)| text).to_owned()
    };
    let flags = field("flags");
    let known = ["avx2", "avx512f", "sha_ni", "vpclmulqdq"];
    let flags: Vec<_> = known.into_iter().filter(|flag| flags.split(' ').any(|other| other == *flag)).collect();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg").split(' ').take(2).collect::<Vec<_>>().join(" ");
    format!("{} ({}), {cores} cores, load {load}", field("model name"), flags.join(" "))
}
