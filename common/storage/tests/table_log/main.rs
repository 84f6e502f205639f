//! The table log, its checkpoints and what is built on them, through public types: on memory, on a real folder, and on a
//! store that fails on demand.

mod archive;
mod checkpoint;
mod contention;
mod driver;
mod flips;
mod gaps;
mod hand_log;
mod kit;
mod probe;
mod record;
mod splice;
mod trouble;
mod verify;
