//! Errors sorted by what their reader does next. Each crate has small enums of its own; all of them answer `kind()`.

use std::error::Error as StdError;
use std::fmt::Write as _;

/// What the reader of an error should do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The operator must change something: configuration, rights, a store that cannot keep the promises.
    Invalid,
    /// The world is away for now: wait with jittered backoff and try again, without end.
    Unavailable,
    /// Somebody else moved first: abandon the work, look again, go on. Not a fault.
    Stale,
    /// Bytes in the archive are not what the log vouches for: stop that table or lane, name the object, never skip.
    Corrupt,
    /// One of our own invariants broke: crash, restart, the log is the truth.
    Bug,
}

impl ErrorKind {
    /// The label of this kind in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unavailable => "unavailable",
            Self::Stale => "stale",
            Self::Corrupt => "corrupt",
            Self::Bug => "bug",
        }
    }
}

/// An error of any crate below, boxed as the source of ours.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// The error and all its sources in one line, for logs and for people.
pub fn report(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Many libraries repeat their source in their own text; saying it twice helps nobody.
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}
