//! One event as tests write it down: owned, comparable, built in a line.

use tapedeck_common::columns::Columns;
use tapedeck_common::event::{HEADER_REPLAY_JOB, Header};
use tapedeck_common::time::Timestamp;

/// An event on a bus, without its place there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BusEvent {
    /// The time that its producer set; `None` lets the bus set one.
    pub time: Option<Timestamp>,
    /// The key; null and empty are different.
    pub key: Option<Vec<u8>>,
    /// The value; null is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl BusEvent {
    /// An event with nothing but a value.
    pub fn of(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// An event without a value.
    pub fn tombstone() -> Self {
        Self::default()
    }

    /// The same with a time of its own.
    #[must_use]
    pub fn at(self, time: Timestamp) -> Self {
        Self { time: Some(time), ..self }
    }

    /// The same with a key.
    #[must_use]
    pub fn key(self, key: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: Option<&[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.map(<[u8]>::to_vec)));
        self
    }

    /// The same, marked as a copy that a replay published.
    #[must_use]
    pub fn replayed(self) -> Self {
        self.header(HEADER_REPLAY_JOB, Some(b"job"))
    }

    /// True if it is marked as a replay's copy.
    pub fn is_replayed(&self) -> bool {
        self.headers.iter().any(|(name, _)| name == HEADER_REPLAY_JOB)
    }

    /// Its headers as the seams take them.
    pub fn header_slices(&self) -> impl Iterator<Item = Header<'_>> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()))
    }

    /// What a row of columns holds.
    pub fn from_row(columns: &Columns, row: usize) -> Self {
        let fields = columns.get(row);
        Self {
            time: Some(fields.time),
            key: fields.key.map(<[u8]>::to_vec),
            value: fields.value.map(<[u8]>::to_vec),
            headers: columns.headers.row(row).map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect(),
        }
    }
}

/// `count` small events that differ: their values are `<prefix>0`, `<prefix>1` and so on.
pub fn events(prefix: &str, count: usize) -> Vec<BusEvent> {
    (0..count).map(|number| BusEvent::of(format!("{prefix}{number}"))).collect()
}
