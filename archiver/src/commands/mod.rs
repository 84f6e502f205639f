//! What the command line can do. Each command loads what it needs, does its work and answers with an exit code.

/// Results go to stdout. A reader that has seen enough (`| head`) ends the program quietly.
macro_rules! out {
    ($($text:tt)*) => { $crate::commands::write_out(format_args!($($text)*)) };
}

/// [`out`], and the end of the line.
macro_rules! outln {
    () => { out!("\n") };
    ($format:literal $($rest:tt)*) => { out!("{}\n", format_args!($format $($rest)*)) };
}

mod check;
mod gaps;
mod maintain;
mod sql;
mod status;
mod verify;

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use tapedeck_common::clock::Clock;
use tapedeck_daemon::config::{ENVIRONMENT_PREFIX, Layers, Loaded, process_environment, schema};
use tapedeck_daemon::run::{WORKER_THREADS_DEFAULT, block_on};
use tapedeck_daemon::telemetry::{self, LogFormat, LogLevel};
use tapedeck_daemon::{Exit, Failure, SystemClock};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::log::reach::Reached;
use tapedeck_storage::store::{StoreError, StoreOptions, open_store};

use crate::cli::{self, Cli, Command, ConfigCommand};
use crate::config::{Config, EXAMPLE, RawConfig};
use crate::wiring::Archiver;

/// The client of RabbitMQ logs bodies of messages.
const SILENT: &[&str] = &["lapin"];

/// Does a command.
pub fn run(command: Command, format: LogFormat) -> Result<Exit, Failure> {
    let level = start_logs(format)?;
    match command {
        Command::Run(file) => {
            let config = load(&file.config)?.1;
            on_runtime(async { Archiver::new(config, level)?.run().await })
        }
        Command::Check { config, online } => check::run(&config.config, online),
        Command::Status { archive, daemon, json } => on_runtime(status::run(archive, daemon, json)),
        Command::Verify(what) => verify::run(what),
        Command::Maintain(what) => on_runtime(maintain::run(what)),
        Command::Sql { archive, engine, table, files } => on_runtime(sql::run(archive, engine, table, files)),
        Command::Config(about) => config(about),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "archiver", &mut std::io::stdout());
            Ok(Exit::Done)
        }
    }
}

fn write_out(text: std::fmt::Arguments<'_>) {
    if std::io::stdout().write_fmt(text).is_err() {
        std::process::exit(i32::from(Exit::Done.code()));
    }
}

fn start_logs(format: LogFormat) -> Result<LogLevel, Failure> {
    let filter = std::env::var("RUST_LOG").ok();
    telemetry::start(format, filter.as_deref(), SILENT).map_err(|error| Failure::new(error.kind(), error))
}

fn on_runtime(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    block_on(WORKER_THREADS_DEFAULT, work).map_err(|error| Failure::new(Exit::Bug, error))?
}

/// Loads and checks a configuration file; errors name the origin of the value.
fn load(path: &Path) -> Result<(Loaded<RawConfig>, Config), Failure> {
    let loaded = Layers::new().file(path).environment(ENVIRONMENT_PREFIX, process_environment()).load::<RawConfig>()?;
    let checked = Config::check(loaded.raw.clone(), SystemClock::new().now());
    let config = checked.map_err(|bad| loaded.refuse(&bad.path, bad.what))?;
    Ok((loaded, config))
}

/// Opens an archive that must exist.
async fn open_archive(archive: &cli::Archive) -> Result<Archive, Failure> {
    open_at(&store_options(archive.url.clone(), &archive.store)).await
}

fn store_options(url: String, store: &cli::StoreArgs) -> StoreOptions {
    let cli::StoreArgs { endpoint, region, path_style, ca_file } = store.clone();
    StoreOptions { url, endpoint, region, path_style, ca_file }
}

async fn open_at(options: &StoreOptions) -> Result<Archive, Failure> {
    let failed = |error: StoreError| Failure::new(error.kind(), error);
    if let Some(folder) = options.url.strip_prefix("file://")
        && !Path::new(folder).is_dir()
    {
        // Opening for reading must not make the folder.
        return Err(Failure::new(Exit::Config, format!("there is no archive at {}: no such folder", options.url)));
    }
    Archive::open(open_store(options).map_err(failed)?).await.map_err(failed)
}

/// The tables to speak of: one that is asked for, or all.
async fn tables_of(archive: &Archive, only: Option<&str>) -> Result<Vec<String>, Failure> {
    let tables = archive.tables().await.map_err(|error| Failure::new(error.kind(), error))?;
    match only {
        None => Ok(tables),
        Some(name) if tables.iter().any(|table| table == name) => Ok(vec![name.to_owned()]),
        Some(name) => {
            let known =
                if tables.is_empty() { "it holds none yet".to_owned() } else { format!("it holds {}", tables.join(", ")) };
            Err(Failure::new(Exit::Config, format!("the archive {} has no table `{name}`: {known}", archive.store.url)))
        }
    }
}

/// How far a topic's lanes have come, for people.
fn reached(reached: &Reached) -> String {
    format!("all {} lane(s) have events of {} or later (the slowest: {})", reached.lanes, reached.hour, reached.slowest)
}

fn config(about: ConfigCommand) -> Result<Exit, Failure> {
    match about {
        ConfigCommand::Schema => outln!("{:#}", schema::<RawConfig>()),
        ConfigCommand::Example => out!("{EXAMPLE}"),
        ConfigCommand::Print(file) => {
            let (loaded, _) = load(&file.config)?;
            out!("{}", loaded.print(&loaded.raw));
        }
    }
    Ok(Exit::Done)
}
