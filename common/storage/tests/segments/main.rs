//! Segments as their users see them: what is written reads back, and what is broken is noticed.

mod golden;
mod kit;
mod merge;
mod round_trip;
mod scan;
mod upload;
mod verify;
