//! A wall clock that a test may move, for programs that it starts: the machine's clock stays as it is.
//!
//! A small C library (`preload/wall_clock.c`, built here by the C compiler that the build needs anyhow) is loaded before the
//! program's libc. It promises that monotonic time is never touched, and counts the answers that were not the machine's time.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

/// A clock; programs that were given its [`WallClock::environment`] go by it.
#[derive(Debug)]
pub struct WallClock {
    folder: PathBuf,
    /// Eight bytes of offset, eight bytes of count, as the machine writes them.
    file: File,
}

impl WallClock {
    /// A clock that shows the machine's time.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("tapedeck-clock-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        build(&folder.join("wall_clock.so"))?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(folder.join("offset"))?;
        file.write_all_at(&[0; 16], 0)?;
        Ok(Self { folder, file })
    }

    /// What a program needs in its environment to go by this clock.
    pub fn environment(&self) -> [(&'static str, OsString); 2] {
        [("LD_PRELOAD", self.folder.join("wall_clock.so").into()), ("TAPEDECK_WALL_CLOCK", self.folder.join("offset").into())]
    }

    /// From this moment on the clock is so many milliseconds ahead of the machine's, or behind it.
    pub fn set(&self, ahead_ms: i64) -> Result<()> {
        Ok(self.file.write_all_at(&(ahead_ms * 1_000_000).to_ne_bytes(), 0)?)
    }

    /// How often a program was told another time than the machine's.
    pub fn struck(&self) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, 8).map_or(0, |()| u64::from_ne_bytes(bytes))
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn build(library: &Path) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("preload/wall_clock.c");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let flags = ["-O2", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror"];
    let built = Command::new(&compiler).args(flags).arg(&source).arg("-o").arg(library).output();
    let built = built.with_context(|| format!("{} can't be run", compiler.display()))?;
    ensure!(built.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&built.stderr));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Program;

    const HOUR_MS: i64 = 3_600_000;

    fn date(clock: &WallClock) -> i64 {
        let told = Program::at("date").args(["+%s"]).envs(clock.environment()).run(Duration::from_secs(10));
        told.expect("it ends").stdout.trim().parse().expect("seconds")
    }

    #[test]
    fn a_program_goes_by_the_clock_that_it_was_given() {
        let (clock, other) = (WallClock::new().expect("a clock"), WallClock::new().expect("another"));
        for ahead_ms in [0, 5 * HOUR_MS, -30 * HOUR_MS] {
            clock.set(ahead_ms).expect("set");
            let off = date(&clock) - date(&other) - ahead_ms / 1_000;
            assert!(off.abs() <= 5, "{ahead_ms} ms: {off} s off");
        }
        assert!(clock.struck() >= 2);
        assert_eq!(other.struck(), 0);
    }
}
