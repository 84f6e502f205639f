//! The words of the command line. Nothing is done here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tapedeck_daemon::units::{ByteRate, ByteSize, HumanDuration};

/// Archives Kafka topics as Parquet tables, every event exactly once, and can prove it.
#[derive(Debug, Parser)]
#[command(name = "archiver", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// Logs as JSON or as text. Default: text on a terminal, JSON elsewhere.
    #[arg(long, global = true, value_enum)]
    pub log_format: Option<LogFormat>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Archive until told to stop (TERM; a second one aborts, and loses nothing).
    Run(ConfigFile),
    /// Check all that can be known before running.
    Check {
        /// The configuration.
        #[command(flatten)]
        config: ConfigFile,
        /// Ask the brokers and the store too: reachable, topics there, rights, conditional writes.
        #[arg(long)]
        online: bool,
    },
    /// What an archive holds: tables, topics, time covered, events, bytes, gaps.
    Status {
        /// The archive.
        #[command(flatten)]
        archive: Archive,
        /// Ask a running archiver too, at its admin address, for example http://127.0.0.1:9464.
        #[arg(long, value_name = "URL")]
        daemon: Option<String>,
        /// For machines.
        #[arg(long)]
        json: bool,
    },
    /// Prove that the archive is complete: records dense and chained, spans tile, segments there and of the right size; and compare it
    /// with the brokers, if asked to.
    Verify(VerifyArgs),
    /// Print statements with which an engine reads the archive.
    Sql {
        /// The archive.
        #[command(flatten)]
        archive: Archive,
        /// Which engine.
        #[arg(long, value_enum)]
        engine: Engine,
        /// Only this table.
        #[arg(long)]
        table: Option<String>,
        /// List the live files instead, for tools that can only read files.
        #[arg(long)]
        files: bool,
    },
    /// Keep tables in shape: merge small segments, take out old hours, delete files that nobody needs. Safe beside running
    /// archivers and replays.
    #[command(subcommand)]
    Maintain(Maintain),
    /// About the configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// How to keep tables in shape.
#[derive(Debug, Subcommand)]
pub enum Maintain {
    /// Merge the small segments of closed hours. Each result is read back and compared before it replaces anything; the files that
    /// it replaces stay until a sweep.
    Compact {
        /// The archive.
        #[command(flatten)]
        archive: Archive,
        /// What all of them take.
        #[command(flatten)]
        common: MaintainCommon,
        /// An hour is closed once it has been over for so long.
        #[arg(long, value_name = "TIME", default_value = "2h")]
        closed_for: HumanDuration,
        /// Segments of this size and more stay as they are.
        #[arg(long, value_name = "SIZE", default_value = "128MiB")]
        small_below: ByteSize,
        /// No merged segment is made of more than this.
        #[arg(long, value_name = "SIZE", default_value = "512MiB")]
        max_size: ByteSize,
    },
    /// Take out all hours that are older than --keep. Their files stay until a sweep.
    Expire {
        /// The archive.
        #[command(flatten)]
        archive: Archive,
        /// What all of them take.
        #[command(flatten)]
        common: MaintainCommon,
        /// How long events are kept after the end of their hour, for example 90d.
        #[arg(long, value_name = "TIME")]
        keep: HumanDuration,
    },
    /// Delete files that no record names, and those of segments that were removed long ago.
    Sweep {
        /// The archive.
        #[command(flatten)]
        archive: Archive,
        /// What all of them take.
        #[command(flatten)]
        common: MaintainCommon,
        /// Files that no record names are deleted at this age. Longer than any archiver may hang and come back.
        #[arg(long, value_name = "TIME", default_value = "7d")]
        orphans_after: HumanDuration,
        /// Files of removed segments are deleted so long after. Longer than any reader reads.
        #[arg(long, value_name = "TIME", default_value = "7d")]
        removed_after: HumanDuration,
    },
    /// Bring `_gaps` up to date: a small Delta table of all positions that records name as lost, for engines.
    Gaps {
        /// The archive.
        #[command(flatten)]
        archive: Archive,
        /// What all of them take.
        #[command(flatten)]
        common: MaintainCommon,
    },
}

/// What to verify.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The archive. Default with --config: the one that it names.
    #[arg(value_name = "ARCHIVE", env = "TAPEDECK__ARCHIVE__URL", required_unless_present = "config")]
    pub url: Option<String>,
    /// How to reach it.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Only this table.
    #[arg(long)]
    pub table: Option<String>,
    /// Read every segment: its checksum, every row, every position.
    #[arg(long)]
    pub deep: bool,
    /// Compare each lane with what the brokers of the configuration have now: behind, lost, ahead, not archived.
    #[arg(long, requires = "config")]
    pub against_bus: bool,
    /// The configuration of the archiver, for --against-bus.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Give the archiver so long to archive what the brokers held when they were asked.
    #[arg(long, value_name = "TIME", requires = "against_bus")]
    pub wait: Option<HumanDuration>,
    /// For machines.
    #[arg(long)]
    pub json: bool,
}

/// What all maintenance takes.
#[derive(Debug, Clone, Args)]
pub struct MaintainCommon {
    /// Only this table.
    #[arg(long)]
    pub table: Option<String>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Bytes of memory for what is merged; a large event may take more for a moment.
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub memory: ByteSize,
    /// Bytes to and from the store in a second, for example 32MiB/s. Default: as many as it takes.
    #[arg(long, value_name = "RATE")]
    pub rate: Option<ByteRate>,
    /// For machines.
    #[arg(long)]
    pub json: bool,
}

/// About the configuration file.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print its JSON Schema.
    Schema,
    /// Print a commented example.
    Example,
    /// Print what is in effect, where each value comes from, secrets hidden.
    Print(ConfigFile),
}

/// Where the configuration lies.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration file (YAML). Every value can be overridden from the environment: TAPEDECK__SEAL__MAX_AGE=1m.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Where an archive lies.
#[derive(Debug, Args)]
pub struct Archive {
    /// s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///path.
    #[arg(value_name = "ARCHIVE", env = "TAPEDECK__ARCHIVE__URL")]
    pub url: String,
    /// How to reach it.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// How a store is reached.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// The store's address, where it is not the cloud's own.
    #[arg(long, env = "TAPEDECK__ARCHIVE__ENDPOINT")]
    pub endpoint: Option<String>,
    /// The region of an S3 bucket.
    #[arg(long, env = "TAPEDECK__ARCHIVE__REGION")]
    pub region: Option<String>,
    /// Put an S3 bucket into the path instead of the host name. Default: true with an endpoint.
    #[arg(long, env = "TAPEDECK__ARCHIVE__PATH_STYLE")]
    pub path_style: Option<bool>,
    /// A file of certificates (PEM) to trust beside the system's.
    #[arg(long, value_name = "FILE", env = "TAPEDECK__ARCHIVE__CA_FILE")]
    pub ca_file: Option<PathBuf>,
}

/// An engine that reads the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// DuckDB, by its delta extension.
    Duckdb,
    /// Polars, with the deltalake package.
    Polars,
    /// Apache Spark, with Delta Lake.
    Spark,
}
