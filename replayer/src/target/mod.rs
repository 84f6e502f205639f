//! Where a replay goes: its address, and what a bus has to do to be one. One file or folder for each bus.

mod address;
mod kafka;

use std::fmt;

use tapedeck_common::Timestamp;
use tapedeck_common::bus::{BusError, Producer};
use tapedeck_common::error::ErrorKind;

pub use address::{Target, TargetError};
pub use kafka::KafkaTarget;

use crate::pacer::Limits;
use crate::plan::Plan;
use crate::verify::{TargetReader, VerifyError};

/// Why a target cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// It must not, or cannot, be used.
    #[error("{0}")]
    Refused(String),
}

impl PrepareError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Bus(error) => error.kind(),
            Self::Refused(_) => ErrorKind::Invalid,
        }
    }
}

/// Looks what the target will do to events, and says it. It may take long, and the replay needs none of it.
pub type Advice = Box<dyn FnOnce(Timestamp) -> Vec<String> + Send>;

/// A target that can take what comes.
pub struct Prepared {
    /// What was found and done, one line each.
    pub said: Vec<String>,
    /// What else could be said; none where there is nothing to ask.
    pub advice: Option<Advice>,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("said", &self.said).finish_non_exhaustive()
    }
}

/// A bus that replays go to. Preparing and reading back wait: not for an async thread.
pub trait TargetBus: fmt::Debug + Send + Sync {
    /// Makes sure that a job's topics are there and can take what comes. What exists is never changed, and what was archived is
    /// never written into.
    fn prepare(&self, plan: &Plan, job: &str) -> Result<Prepared, PrepareError>;

    /// Opens the way out, without waiting for the bus. Dropping what is answered may wait.
    fn start(&self, plan: &Plan, limits: Limits) -> Result<Box<dyn Producer>, BusError>;

    /// Shows `reader` what is in a job's topics, those of a partition in their order.
    fn read_back(&self, plan: &Plan, job: &str, reader: &mut TargetReader<'_>) -> Result<(), VerifyError>;
}

/// Checks the names of the target's topics without asking anybody.
pub fn check_names(plan: &Plan, job: &str) -> Result<(), String> {
    plan.lanes.iter().try_for_each(|lane| plan.target.checked_topic_for(&lane.topic, job).map(drop))
}
