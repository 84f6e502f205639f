//! A table of contents: read the command line, do the command, end with its code.

use std::process::ExitCode;

use clap::Parser as _;
use replayer::cli::{self, Cli};
use replayer::commands;
use tapedeck_daemon::telemetry::LogFormat;
use tapedeck_daemon::{Exit, ending};

/// The Kafka client frees in one thread what it took in another; most allocators make that dear (docs/decisions/0005).
/// It stands in for the C library's as well, since nearly all of it is the client's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Help and version are answers; everything else is a wrong command line.
            return ExitCode::from(if error.use_stderr() { Exit::Usage } else { Exit::Done }.code());
        }
    };
    let format = match cli.log_format {
        Some(cli::LogFormat::Json) => LogFormat::Json,
        Some(cli::LogFormat::Text) => LogFormat::Text,
        None => LogFormat::detect(),
    };
    ending(|| commands::run(cli.command, format).unwrap_or_else(|failure| failure.report(format)))
}
