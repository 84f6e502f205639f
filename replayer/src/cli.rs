//! The words of the command line. Nothing is done here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Puts a chosen slice of an archive back onto a bus: in order, at a rate, marked, resumable to the event.
#[derive(Debug, Parser)]
#[command(name = "replayer", version, propagate_version = true, disable_help_subcommand = true)]
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
    /// Say exactly what a replay would do: events, bytes, offsets, gaps, duration. Publishes nothing.
    Plan(PlanArgs),
    /// Publish. The same job resumes where it stopped.
    Run(RunArgs),
    /// How a job stands.
    Status(JobArgs),
    /// The jobs of an archive.
    List(ListArgs),
    /// Read the target back and prove that everything of a job arrived: once, in order, byte for byte.
    Verify(JobArgs),
    /// Print events as JSON lines.
    Cat(CatArgs),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Not in this version.
    #[command(hide = true)]
    Pause(Later),
    /// Not in this version.
    #[command(hide = true)]
    Resume(Later),
    /// Not in this version.
    #[command(hide = true)]
    Rate(Later),
    /// Not in this version.
    #[command(hide = true)]
    Cancel(Later),
    /// Not in this version.
    #[command(hide = true)]
    Find(Later),
    /// Not in this version.
    #[command(hide = true)]
    Job(Later),
}

/// Whatever follows a command of a later version.
#[derive(Debug, Args)]
pub struct Later {
    /// Its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub rest: Vec<String>,
}

/// Where the archive lies, and how targets are reached.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// A configuration file (YAML) with `archive:` and `target:`. Values can come from the environment too:
    /// TAPEDECK__ARCHIVE__URL=s3://bucket/prefix.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The archive: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///path.
    #[arg(long, value_name = "URL")]
    pub archive: Option<String>,
    /// The store's address, where it is not the cloud's own.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// The region of an S3 bucket.
    #[arg(long)]
    pub region: Option<String>,
    /// Put an S3 bucket into the path instead of the host name. Default: true with an endpoint.
    #[arg(long)]
    pub path_style: Option<bool>,
    /// A file of certificates (PEM) to trust beside the system's.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<String>,
}

/// Which events.
#[derive(Debug, Clone, Default, Args)]
pub struct Which {
    /// A topic, by its true name; may be repeated.
    #[arg(long = "topic", value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// Events from this time on: RFC 3339, a date, -3h, yesterday. Default: from the beginning.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub from: Option<String>,
    /// Events before this time (it is left out itself). Default: to the end of the archive.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub until: Option<String>,
    /// Only this partition; may be repeated.
    #[arg(long = "partition", value_name = "N")]
    pub partitions: Vec<i32>,
    /// Only offsets A up to B (B itself is left out), in every chosen partition.
    #[arg(long, value_name = "A..B")]
    pub offsets: Option<String>,
    /// Only events with exactly this key: text, or base64:... for bytes. Reads every segment of the range.
    #[arg(long)]
    pub key: Option<String>,
    /// Not in this version.
    #[arg(long = "where", hide = true)]
    pub where_: Option<String>,
    /// Not in this version.
    #[arg(long, hide = true)]
    pub latest_per_key: bool,
}

/// Where to, and how fast.
#[derive(Debug, Clone, Default, Args)]
pub struct How {
    /// kafka://broker:9092,broker:9092[/topic] or stdout:. In the topic {topic} and {job} are filled in; without one it is
    /// the side topic {topic}.replay.{job}, which is made if it does not exist.
    #[arg(long, value_name = "TARGET")]
    pub to: Option<String>,
    /// At most so many events per second, across all partitions: 5k/s, 200/s, 90/m.
    #[arg(long)]
    pub rate: Option<String>,
    /// At most so many bytes per second: 20MB/s.
    #[arg(long)]
    pub bytes: Option<String>,
    /// What is promised to consumers; only at-least-once is in this version.
    #[arg(long, value_name = "GUARANTEE")]
    pub guarantee: Option<String>,
    /// Not in this version.
    #[arg(long, hide = true)]
    pub pace: Option<String>,
    /// Not in this version.
    #[arg(long, hide = true)]
    pub speed: Option<String>,
    /// Not in this version.
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub finish_by: Option<String>,
    /// Not in this version.
    #[arg(long, hide = true)]
    pub to_original: bool,
    /// Not in this version.
    #[arg(long, hide = true)]
    pub reason: Option<String>,
    /// Not in this version.
    #[arg(long, hide = true)]
    pub order: Option<String>,
    /// Not in this version.
    #[arg(long, hide = true)]
    pub headers: Option<String>,
    /// Not in this version.
    #[arg(long, hide = true)]
    pub timestamps: Option<String>,
    /// Not in this version.
    #[arg(long, hide = true)]
    pub protect_group: Option<String>,
    /// Not in this version.
    #[arg(long, hide = true)]
    pub canary: Option<String>,
}

/// `replayer plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The archive.
    #[command(flatten)]
    pub place: Place,
    /// Which events.
    #[command(flatten)]
    pub which: Which,
    /// Where to, and how fast.
    #[command(flatten)]
    pub how: How,
    /// Write the plan here, for `replayer run FILE`.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// For machines: the whole plan on stdout.
    #[arg(long)]
    pub json: bool,
    /// Memory for reading.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
}

/// `replayer run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A plan made by `replayer plan -o`. Without one, flags say what to replay.
    #[arg(value_name = "PLAN")]
    pub plan: Option<PathBuf>,
    /// The archive.
    #[command(flatten)]
    pub place: Place,
    /// Which events.
    #[command(flatten)]
    pub which: Which,
    /// Where to, and how fast.
    #[command(flatten)]
    pub how: How,
    /// The job's name. Running it again resumes it. Default: a new one, printed first.
    #[arg(long)]
    pub job: Option<String>,
    /// Publish what the flags select, without a plan to look at first.
    #[arg(long)]
    pub yes: bool,
    /// For machines: JSON lines instead of a progress bar. Also used where stdout is no terminal.
    #[arg(long)]
    pub json: bool,
    /// Memory for objects and events on their way. Default: 256MiB.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
}

/// A command about one job.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The job.
    pub job: String,
    /// The archive.
    #[command(flatten)]
    pub place: Place,
    /// Where the job's target is now: kafka://broker:9092. Default: where the plan says.
    #[arg(long, value_name = "TARGET")]
    pub to: Option<String>,
    /// For machines.
    #[arg(long)]
    pub json: bool,
    /// Memory for reading. Default: 256MiB.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
}

/// `replayer list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The archive.
    #[command(flatten)]
    pub place: Place,
    /// For machines.
    #[arg(long)]
    pub json: bool,
}

/// `replayer cat`.
#[derive(Debug, Args)]
pub struct CatArgs {
    /// The archive: s3://bucket/prefix or file:///path. Also by --archive, -c or the environment.
    #[arg(value_name = "ARCHIVE")]
    pub url: Option<String>,
    /// The archive.
    #[command(flatten)]
    pub place: Place,
    /// Which events.
    #[command(flatten)]
    pub which: Which,
    /// At most so many events.
    #[arg(short = 'n', long)]
    pub limit: Option<u64>,
    /// Memory for reading. Default: 256MiB.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
}
