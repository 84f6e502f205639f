//! Logs: JSON lines when stderr is not a terminal, text on one; panics go there too.
//!
//! Promises: everything to stderr (stdout carries results); the level can change while the process runs.
//! Never: payloads, secrets.

use std::fmt;
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::str::FromStr;
use std::sync::Arc;

use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use tapedeck_common::ErrorKind;

/// What is logged unless `RUST_LOG` says otherwise.
pub const FILTER_DEFAULT: &str = "info";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// Text, for people.
    Text,
}

impl LogFormat {
    /// Text on a terminal, JSON elsewhere.
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(TelemetryError(format!("`{text}` is no log format: write `json` or `text`"))),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "json",
            Self::Text => "text",
        })
    }
}

/// A log format or filter that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TelemetryError(String);

impl TelemetryError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

type SetFilter = dyn Fn(&str) -> Result<(), TelemetryError> + Send + Sync;

/// The handle by which the level changes while the process runs.
#[derive(Clone)]
pub struct LogLevel(Arc<SetFilter>);

impl LogLevel {
    /// Logs by `filter` from now on: a level (`debug`) or a list (`info,archiver=trace`).
    pub fn set(&self, filter: &str) -> Result<(), TelemetryError> {
        (self.0)(filter)
    }

    /// A handle that calls `set`, for tests and for programs with a logger of their own.
    pub fn from_fn(set: impl Fn(&str) -> Result<(), TelemetryError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(set))
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLevel")
    }
}

/// Starts logging for the whole process, once. `filter` is the text of `RUST_LOG`, if it is set. Nothing is ever logged of the
/// crates in `silent`, whatever a filter says: some log what they carry.
///
/// ```no_run
/// use tapedeck_daemon::telemetry::{LogFormat, start};
/// let level = start(LogFormat::detect(), std::env::var("RUST_LOG").ok().as_deref(), &[])?;
/// level.set("debug")?;
/// # Ok::<(), tapedeck_daemon::telemetry::TelemetryError>(())
/// ```
pub fn start(format: LogFormat, filter: Option<&str>, silent: &'static [&'static str]) -> Result<LogLevel, TelemetryError> {
    let (filter, handle) =
        reload::Layer::new(parse_filter(filter.filter(|text| !text.trim().is_empty()).unwrap_or(FILTER_DEFAULT))?);
    Registry::default()
        .with(lines(format).with_filter(filter.and(filter_fn(move |of| !is_of(of.target(), silent)))))
        .try_init()
        .map_err(|error| TelemetryError(format!("logging was started before: {error}")))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(LogLevel::from_fn(move |text| {
        let filter = parse_filter(text)?;
        handle.reload(filter).map_err(|error| TelemetryError(format!("the log filter cannot be changed: {error}")))
    }))
}

/// True if a target lies in one of these crates.
fn is_of(target: &str, crates: &[&str]) -> bool {
    crates.iter().any(|name| target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
}

fn lines(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).boxed(),
    }
}

fn parse_filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    let wrong = |why: &dyn fmt::Display| {
        TelemetryError(format!(
            "`{text}` is no log filter ({why}): write a level such as `info`, or a list such as `info,archiver=debug`"
        ))
    };
    // A lone word that is no level would be taken as a module's name and silence everything.
    let lone = !text.contains(['=', ',', '[', ':']);
    let level = text.trim().parse::<tracing_subscriber::filter::LevelFilter>();
    if text.trim().is_empty() || (lone && level.is_err()) {
        return Err(wrong(&"not a level"));
    }
    EnvFilter::builder().parse(text.trim()).map_err(|error| wrong(&error))
}

/// A panic is one log line like everything else, so that it reaches whoever collects the logs.
fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let backtrace = std::backtrace::Backtrace::capture();
    tracing::error!(
        thread = thread.name().unwrap_or("unnamed"),
        location = info.location().map(tracing::field::display),
        panic = info.payload_as_str().unwrap_or("of an unknown type"),
        backtrace =
            (backtrace.status() == std::backtrace::BacktraceStatus::Captured).then(|| tracing::field::display(&backtrace)),
        "a thread panicked"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_would_silence_everything_are_refused() {
        for good in ["info", "DEBUG", "off", "warn,archiver=debug", "archiver=trace"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,archiver=loud", "debgu"] {
            let error = parse_filter(bad).expect_err(bad).to_string();
            assert!(error.contains("write a level"), "{error}");
        }
    }

    #[test]
    fn a_silent_crate_is_silent_with_all_its_modules() {
        for (target, silent) in [("lapin", true), ("lapin::returned_messages", true), ("lapinette", false), ("archiver", false)] {
            assert_eq!(is_of(target, &["lapin"]), silent, "{target}");
        }
    }

    #[test]
    fn formats_are_named() {
        assert_eq!("json".parse::<LogFormat>().expect("json"), LogFormat::Json);
        assert!("xml".parse::<LogFormat>().expect_err("xml").to_string().contains("`text`"));
    }
}
