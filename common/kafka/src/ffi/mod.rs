//! Everything of librdkafka that the Rust client does not offer, behind safe calls: a queue of our own that is read message by
//! message without a heap object each (`reading`), topic ids and the ends of logs (`asking`), leader epochs (`epochs`), header names that are no text
//! (`producing`). The only `unsafe` of the project.
//!
//! Promises: no message, header or name outlives the call that lends it; every handle that is taken is given back; a handle
//! never outlives its client, since each wrapper holds the client alive.
//! Never: call back into Rust code that unwinds into C (a panic in a visitor ends the process).
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::slice;
use std::time::Duration;

mod asking;
mod epochs;
mod producing;
mod reading;

pub(crate) use asking::{LogEnd, PartitionOffset, committed_metadata, describe_topics, list_offsets};
pub(crate) use epochs::{committed_epochs, set_last_epoch};
pub(crate) use producing::{Lent, RawOutgoing, Topic, produce};
pub(crate) use reading::{RawMessage, ReadQueue, StampedBy, Waker};

/// # Safety
/// `text` is null or a C string.
unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// `start` is null or the start of `len` bytes that stay unchanged for `'a`.
unsafe fn bytes_of<'a>(start: *mut c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: by the caller's promise.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast::<u8>().cast_const(), len) })
}

fn millis(wait: Duration) -> c_int {
    c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX)
}
