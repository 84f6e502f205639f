//! Keeps the allocator from holding on to memory that nobody uses.
//!
//! glibc gives each thread an arena of its own, and an arena keeps much of what was freed in it: with a dozen threads that pass
//! buffers around it was 80 of 270 MB in the archiver. How many arenas there may be is read from the environment when a process
//! starts, and never again.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

const ARENAS_MAX: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// Starts this program once more with fewer arenas, in the same process and with the same arguments, unless somebody has decided
/// on them already. To be called first of all; returns if there is nothing to do, or if it cannot be done.
pub fn limit_arenas() {
    let (name, wanted) = ARENAS_MAX;
    if !cfg!(target_env = "gnu") || env::var_os(name).is_some() {
        return;
    }
    let mut arguments = env::args_os();
    if let (Some(called), Ok(program)) = (arguments.next(), env::current_exe()) {
        // It only comes back with an error, and then we are as well off as before.
        drop(Command::new(program).arg0(called).args(arguments).env(name, wanted).exec());
    }
}
