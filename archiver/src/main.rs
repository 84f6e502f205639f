//! A table of contents: read the command line, do the command, end with its code.

use std::process::ExitCode;

use archiver::cli::{self, Cli};
use archiver::commands;
use clap::Parser;
use tapedeck_daemon::memory::set_up_allocator;
use tapedeck_daemon::telemetry::LogFormat;
use tapedeck_daemon::{Exit, ending};

fn main() -> ExitCode {
    set_up_allocator();
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
