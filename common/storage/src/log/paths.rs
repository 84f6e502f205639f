//! The keys of one table's log. Promises: the one place that knows how they are spelt.

use object_store::path::Path;

use crate::layout;

const DIGITS: usize = 20;

/// The keys below a table's `_delta_log/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPaths {
    log: Path,
}

/// What a name in the log's folder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFile {
    /// Record n.
    Record(u64),
    /// The checkpoint of records 0 to n.
    Checkpoint(u64),
}

impl LogPaths {
    /// The keys of `table`'s log.
    pub fn of(table: &str) -> Self {
        Self::in_folder(&layout::table_folder(table))
    }

    /// The keys of the log in a folder right below the archive's root, as a listing names it.
    pub(crate) fn in_folder(folder: &str) -> Self {
        Self { log: Path::from_iter([folder, "_delta_log"]) }
    }

    /// The log's own folder.
    pub fn folder(&self) -> &Path {
        &self.log
    }

    /// Record `version`.
    pub fn record(&self, version: u64) -> Path {
        self.log.clone().join(format!("{version:0DIGITS$}.json"))
    }

    /// The checkpoint of records 0 to `version`.
    pub fn checkpoint(&self, version: u64) -> Path {
        self.log.clone().join(format!("{version:0DIGITS$}.checkpoint.parquet"))
    }

    /// The hint at the newest checkpoint.
    pub fn hint(&self) -> Path {
        self.log.clone().join("_last_checkpoint")
    }

    /// The key right before everything of `version` in the order of a listing.
    pub(crate) fn just_before(&self, version: u64) -> Path {
        self.log.clone().join(format!("{version:0DIGITS$}"))
    }

    /// What `key` is, `None` for anything that is neither record nor checkpoint.
    pub(crate) fn parse(&self, key: &Path) -> Option<LogFile> {
        let (number, rest) = key.filename()?.split_at_checked(DIGITS)?;
        let number = number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())??;
        match rest {
            ".json" => Some(LogFile::Record(number)),
            ".checkpoint.parquet" => Some(LogFile::Checkpoint(number)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_again() {
        let paths = LogPaths::of("orders");
        assert_eq!(paths.record(7).as_ref(), "orders/_delta_log/00000000000000000007.json");
        assert_eq!(paths.parse(&paths.record(7)), Some(LogFile::Record(7)));
        assert_eq!(paths.parse(&paths.checkpoint(u64::MAX)), Some(LogFile::Checkpoint(u64::MAX)));
        assert_eq!(paths.parse(&paths.hint()), None);
        assert!(paths.just_before(7) < paths.record(7) && paths.record(6) < paths.just_before(7));
    }
}
