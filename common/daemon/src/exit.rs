//! How a process ends: one code per thing that whoever started it can do about it, and one text on stderr.
//!
//! Promises: the codes are stable (scripts, Kubernetes pod failure policies and people depend on them).
//! Never: writes to stdout, which carries results.

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::process::{ExitCode, Termination};

use tapedeck_common::error::{BoxError, ErrorKind, report as one_line};

use crate::config::ConfigError;
use crate::telemetry::LogFormat;

/// The exit codes of both programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All that was asked is done.
    Done = 0,
    /// The work did not end, nothing is lost, it can be resumed.
    Unfinished = 1,
    /// The command line was wrong.
    Usage = 64,
    /// Data in the archive is not what it should be.
    Corrupt = 65,
    /// A service was away past the deadline.
    Unavailable = 69,
    /// One of our own invariants broke.
    Bug = 70,
    /// Somebody else was quicker or holds the work: try again.
    TryAgain = 75,
    /// Configuration, rights, or a store that cannot keep the promises: a person must change something.
    Config = 78,
}

impl Exit {
    /// The number that the process ends with.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The name of this end in JSON output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unfinished => "unfinished",
            Self::Usage => "usage",
            Self::Corrupt => "corrupt",
            Self::Unavailable => "unavailable",
            Self::Bug => "bug",
            Self::TryAgain => "try_again",
            Self::Config => "config",
        }
    }
}

/// Does a program's work and answers its end. A panic that nobody caught is a broken invariant of ours: [`Exit::Bug`], and
/// not the code 101 that nobody has heard of.
pub fn ending(work: impl FnOnce() -> Exit) -> ExitCode {
    let exit = panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or(Exit::Bug);
    ExitCode::from(exit.code())
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid => Self::Config,
            ErrorKind::Unavailable => Self::Unavailable,
            ErrorKind::Stale => Self::TryAgain,
            ErrorKind::Corrupt => Self::Corrupt,
            ErrorKind::Bug => Self::Bug,
        }
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

/// Why a command ended without being done: the code, and the text for whoever reads it.
///
/// ```
/// use tapedeck_common::ErrorKind;
/// use tapedeck_daemon::exit::{Exit, Failure};
///
/// let failure = Failure::new(ErrorKind::Unavailable, "broker k1:9092 did not answer within 60s");
/// assert_eq!(failure.exit(), Exit::Unavailable);
/// ```
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    error: BoxError,
}

impl Failure {
    /// A failure with the exit code of `exit` (an [`Exit`] or an [`ErrorKind`]).
    pub fn new(exit: impl Into<Exit>, error: impl Into<BoxError>) -> Self {
        Self { exit: exit.into(), error: error.into() }
    }

    /// How the process is to end.
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// Writes the failure to stderr and answers the code to end with.
    pub fn report(&self, format: LogFormat) -> Exit {
        report(self.error.as_ref(), self.exit, format)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(self.error.as_ref()))
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// Writes why the process ends to stderr, as text or as one line of JSON, and answers the code to end with.
pub fn report(error: &(dyn Error + 'static), exit: Exit, format: LogFormat) -> Exit {
    // A closed stderr must not change the exit code.
    let _ = writeln!(std::io::stderr().lock(), "{}", rendered(error, exit, format));
    exit
}

fn rendered(error: &(dyn Error + 'static), exit: Exit, format: LogFormat) -> String {
    let text = one_line(error);
    match format {
        LogFormat::Text => format!("error: {text}"),
        LogFormat::Json => {
            serde_json::json!({ "level": "ERROR", "message": text, "exit": exit.as_str(), "exit_code": exit.code() }).to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_its_code() {
        let cases = [
            (ErrorKind::Invalid, 78),
            (ErrorKind::Unavailable, 69),
            (ErrorKind::Stale, 75),
            (ErrorKind::Corrupt, 65),
            (ErrorKind::Bug, 70),
        ];
        for (kind, code) in cases {
            assert_eq!(Exit::from(kind).code(), code);
        }
        assert_eq!([Exit::Done, Exit::Unfinished, Exit::Usage].map(Exit::code), [0, 1, 64]);
    }

    #[test]
    fn a_panic_ends_with_the_code_of_a_bug() {
        assert_eq!(ending(|| panic!("an invariant broke")), ExitCode::from(70));
        assert_eq!(ending(|| Exit::Done), ExitCode::from(0));
    }

    #[test]
    fn json_is_one_line_whatever_the_text() {
        let failure = Failure::new(Exit::Config, "line one\nline \"two\"");
        let line = rendered(failure.error.as_ref(), failure.exit, LogFormat::Json);
        let read: serde_json::Value = serde_json::from_str(&line).expect("json");
        assert!(!line.contains('\n'));
        assert_eq!(read["exit_code"], 78);
        assert_eq!(read["message"], "line one\nline \"two\"");
    }
}
