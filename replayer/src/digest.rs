//! What must be the same in an event and in its replayed copy, as eight bytes.
//!
//! Promises: equal only for equal key, value, own headers (names as bytes up to a zero, order, nulls) and time; null and empty differ.
//! Pure. Never: allocate per event.

/// Builds the digest of one event.
#[derive(Debug, Default)]
pub struct Digest(blake3::Hasher);

impl Digest {
    /// Begins with the time: the original one in milliseconds, and the one that the copy carries if it can be the same.
    pub fn begin(&mut self, marker_millis: i64, carried_millis: Option<i64>) {
        self.0.reset();
        self.0.update(&marker_millis.to_le_bytes());
        // A bus keeps no time before 1970 and takes 0 for "now"; the copy then carries another one.
        let carried = carried_millis.filter(|_| (0..=i64::MAX / 1_000).contains(&marker_millis));
        self.0.update(&carried.map(|millis| millis.max(1)).unwrap_or(i64::MIN).to_le_bytes());
    }

    /// Adds the key, then the value.
    pub fn field(&mut self, bytes: Option<&[u8]>) {
        let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
        self.0.update(&length.to_le_bytes());
        self.0.update(bytes.unwrap_or_default());
    }

    /// Adds a header, its name up to the first zero byte: the client that reads back ends it there.
    pub fn header(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.field(name.split(|byte| *byte == 0).next());
        self.field(value);
    }

    /// The digest.
    pub fn finish(&self) -> u64 {
        let hash = self.0.finalize();
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight of thirty-two bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(marker: i64, carried: Option<i64>, fields: &[Option<&[u8]>]) -> u64 {
        let mut digest = Digest::default();
        digest.begin(marker, carried);
        fields.iter().for_each(|field| digest.field(*field));
        digest.finish()
    }

    #[test]
    fn what_differs_has_another_digest() {
        let base = digest(5, Some(5), &[Some(b"k"), Some(b"v")]);
        assert_eq!(base, digest(5, Some(5), &[Some(b"k"), Some(b"v")]));
        let others = [
            digest(6, Some(5), &[Some(b"k"), Some(b"v")]),
            digest(5, Some(6), &[Some(b"k"), Some(b"v")]),
            digest(5, Some(5), &[Some(b"kv"), Some(b"")]),
            digest(5, Some(5), &[Some(b"k"), None]),
            digest(5, Some(5), &[None, Some(b"v")]),
        ];
        assert!(!others.contains(&base));
        assert_ne!(digest(5, None, &[None]), digest(5, None, &[Some(b"")]));
    }

    #[test]
    fn times_that_a_bus_cannot_carry_are_compared_by_their_marker() {
        assert_eq!(digest(-1, None, &[]), digest(-1, Some(1_763_640_000_000), &[]));
        assert_eq!(digest(0, Some(0), &[]), digest(0, Some(1), &[]));
    }
}
