//! What the command line can do. Each command loads what it needs, does its work and answers with an exit code.

mod cat;
mod jobs;
mod plan;
mod run;
mod verify;

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;

use clap::CommandFactory as _;
use tapedeck_common::Clock;
use tapedeck_daemon::run::{WORKER_THREADS_DEFAULT, block_on};
use tapedeck_daemon::telemetry::{self, LogFormat, LogLevel};
use tapedeck_daemon::{Exit, Failure, SystemClock};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::store::{StoreError, StoreOptions, open_store};

use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::job::JobError;
use crate::planner::PlannerError;
use crate::request::{later, usage};

/// Does a command.
pub fn run(command: Command, format: LogFormat) -> Result<Exit, Failure> {
    let level = start_logs(format)?;
    match command {
        Command::Plan(args) => on_runtime(plan::run(args)),
        Command::Run(args) => on_runtime(run::run(args, level)),
        Command::Status(args) => on_runtime(jobs::status(args)),
        Command::List(args) => on_runtime(jobs::list(args)),
        Command::Verify(args) => on_runtime(verify::run(args)),
        Command::Cat(args) => on_runtime(cat::run(args)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "replayer", &mut std::io::stdout());
            Ok(Exit::Done)
        }
        Command::Pause(_) => Err(later("pause")),
        Command::Resume(_) => Err(later("resume")),
        Command::Rate(_) => Err(later("rate")),
        Command::Cancel(_) => Err(later("cancel")),
        Command::Find(_) => Err(later("find")),
        Command::Job(_) => Err(later("job")),
    }
}

fn start_logs(format: LogFormat) -> Result<LogLevel, Failure> {
    let filter = std::env::var("RUST_LOG").ok();
    telemetry::start(format, filter.as_deref(), &[]).map_err(|error| Failure::new(error.kind(), error))
}

fn on_runtime(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    block_on(WORKER_THREADS_DEFAULT, work).map_err(|error| Failure::new(Exit::Bug, error))?
}

fn system_clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

/// Chance for names and waits: another one in each process.
fn chance(clock: &dyn Clock) -> fastrand::Rng {
    let process = u64::from(std::process::id());
    fastrand::Rng::with_seed((clock.now().micros() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ process.rotate_left(32))
}

/// Opens the archive of the configuration, which must exist.
async fn open_archive(config: &Config) -> Result<Archive, Failure> {
    let options = config.archive.as_ref().ok_or_else(|| {
        usage("which archive? --archive s3://bucket/prefix, or TAPEDECK__ARCHIVE__URL in the environment, or archive.url in the file of -c")
    })?;
    open_archive_at(options).await
}

async fn open_archive_at(options: &StoreOptions) -> Result<Archive, Failure> {
    let failed = |error: StoreError| Failure::new(error.kind(), error);
    if let Some(folder) = options.url.strip_prefix("file://")
        && !Path::new(folder).is_dir()
    {
        // Opening for reading must not make the folder.
        return Err(Failure::new(Exit::Config, format!("there is no archive at {}: no such folder", options.url)));
    }
    Archive::open(open_store(options).map_err(failed)?).await.map_err(failed)
}

/// A job that is not there, or is another one, is the command line's fault.
fn job_failed(error: JobError) -> Failure {
    match error {
        JobError::OtherPlan { .. } | JobError::Unknown { .. } => usage(error.to_string()),
        error => Failure::new(error.kind(), error),
    }
}

fn planner_failed(error: PlannerError) -> Failure {
    if error.is_usage() { usage(error.to_string()) } else { Failure::new(error.kind(), error) }
}

/// True if stdout is read by a program.
fn for_machines(json: bool) -> bool {
    json || !std::io::stdout().is_terminal()
}
