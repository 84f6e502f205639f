//! The nasty topic: everything that a bus allows and an archive may get wrong.
//!
//! Null and empty keys and values, duplicate, null and nameless headers, bytes that are no text, values of 1 MiB, event times over
//! three days, out of order and far in the future, transactions of which every third is aborted, many partitions, some of them empty.
//! Settings that this needs beyond a broker's defaults are in [`topic_config`] and [`LARGE_EVENTS`].

use anyhow::Result;

use super::{BASE_MS, Event, HOUR_MS, rng};
use crate::admin::Admin;
use crate::produce::{LARGE_EVENTS, Loader, Transactions};

/// One mebibyte.
const MIB: usize = 1 << 20;
/// Events in a transaction.
const TRANSACTION: u64 = 100;

/// How much of it there should be.
#[derive(Debug, Clone, Copy)]
pub struct Nasty {
    /// Chance.
    pub seed: u64,
    /// Partitions of the topic; the last one stays empty.
    pub partitions: i32,
    /// Events sent outside transactions.
    pub plain: u64,
    /// Events sent within transactions; a third of these transactions is aborted.
    pub transactional: u64,
    /// How many of the plain events have a value of 1 MiB.
    pub large: u64,
}

impl Default for Nasty {
    fn default() -> Self {
        Self { seed: 13, partitions: 64, plain: 20_000, transactional: 10_000, large: 24 }
    }
}

/// What was put onto the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Events that a reader of committed data must see.
    pub visible: u64,
    /// Events in aborted transactions, that it must not see.
    pub aborted: u64,
}

/// The topic settings needed: values above 1 MB, and times above the hour ahead that a broker allows.
pub fn topic_config() -> Vec<(&'static str, &'static str)> {
    vec![
        ("max.message.bytes", "8388608"),
        ("message.timestamp.type", "CreateTime"),
        ("message.timestamp.after.max.ms", "9223372036854775807"),
        ("retention.ms", "-1"),
    ]
}

impl Nasty {
    /// Makes the topic and fills it. Plain and transactional events lie among each other.
    pub fn load(&self, bootstrap: &str, topic: &str) -> Result<Loaded> {
        Admin::new(bootstrap)?.create_topic(topic, self.partitions, &topic_config())?;
        self.produce(bootstrap, topic)
    }

    /// Fills a topic that is there already.
    pub fn produce(&self, bootstrap: &str, topic: &str) -> Result<Loaded> {
        let plain = Loader::new(bootstrap, &[LARGE_EVENTS])?;
        let transactions = Transactions::new(bootstrap, &format!("nasty-{topic}"), &[LARGE_EVENTS])?;
        let rounds = self.transactional.div_ceil(TRANSACTION).max(1);
        let mut aborted = 0;
        for round in 0..rounds {
            let share = |number: u64| number * round / rounds..number * (round + 1) / rounds;
            for index in share(self.plain) {
                plain.send(topic, Some(self.partition(index)), &self.event(index))?;
            }
            transactions.begin()?;
            let members = share(self.transactional);
            for index in members.clone() {
                let index = self.plain + index;
                transactions.send(topic, Some(self.partition(index)), &self.event(index))?;
            }
            if round % 3 == 2 {
                transactions.abort()?;
                aborted += members.end - members.start;
            } else {
                transactions.commit()?;
            }
        }
        plain.finish()?;
        Ok(Loaded { visible: self.plain + self.transactional - aborted, aborted })
    }

    /// The event with this index: plain ones first, then those of transactions.
    pub fn event(&self, index: u64) -> Event {
        let mut rng = rng(self.seed, index);
        let mut bytes = |length: usize| {
            let mut bytes = vec![0; length];
            rng.fill(&mut bytes);
            Some(bytes)
        };
        let key = match index % 7 {
            0 => None,
            1 => Some(Vec::new()),
            2 => bytes(16),
            _ => Some(format!("key-{}", index % 1_000).into_bytes()),
        };
        let value = match index % 11 {
            _ if self.is_large(index) => bytes(MIB),
            0 => None,
            1 => Some(Vec::new()),
            2 => bytes(300),
            _ => Some(format!("{{\"number\":{index},\"text\":\"täglich 日々 \\u0000\"}}").into_bytes()),
        };
        Event { key, value, headers: headers(index), timestamp: self.time(index) }
    }

    /// Where it goes. The last partition of several stays empty: nobody may stumble over that.
    pub fn partition(&self, index: u64) -> i32 {
        let used = (self.partitions - 1).max(1);
        rng(!self.seed, index).i32(0..used)
    }

    fn is_large(&self, index: u64) -> bool {
        let every = self.plain / self.large.max(1);
        self.large > 0 && index < self.plain && every > 0 && index % every == every / 2
    }

    /// Over three days and never in order; some a year ahead, one in a while at the very beginning of time.
    fn time(&self, index: u64) -> i64 {
        let jumbled = (index.wrapping_mul(7_919) % 72) as i64;
        match index % 97 {
            0 => BASE_MS + 365 * 24 * HOUR_MS,
            1 => 1,
            _ => BASE_MS + jumbled * HOUR_MS + (index % 3_600_000) as i64,
        }
    }
}

fn headers(index: u64) -> Vec<(String, Option<Vec<u8>>)> {
    let header = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
    match index % 13 {
        0 => vec![header("twice", Some(b"first")), header("twice", Some(b"second")), header("twice", Some(b"first"))],
        1 => vec![header("null", None), header("empty", Some(b""))],
        2 => vec![header("", Some(b"nameless"))],
        3 => vec![header("bytes", Some(&[0, 255, 254, 10, 0])), header("größe", Some("日".as_bytes()))],
        4 => (0..40).map(|number| header(&format!("h{number}"), Some(b"x"))).collect(),
        5 => vec![header("b", Some(b"1")), header("a", Some(b"2")), header("b", None)],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_nastiness_is_there() {
        let nasty = Nasty::default();
        let all: Vec<Event> = (0..nasty.plain + nasty.transactional).map(|index| nasty.event(index)).collect();
        let some = |what: &dyn Fn(&Event) -> bool| all.iter().any(what);
        assert!(some(&|event| event.key.is_none() && event.value.is_none()));
        assert!(some(&|event| event.key.as_deref() == Some(b"")));
        assert!(some(&|event| event.value.as_deref() == Some(b"")));
        assert!(some(&|event| event.headers.iter().any(|(_, value)| value.is_none())));
        assert!(some(&|event| event.timestamp > BASE_MS + 100 * 24 * HOUR_MS));
        let large = all.iter().filter(|event| event.value.as_ref().is_some_and(|value| value.len() == MIB));
        assert_eq!(large.count() as u64, nasty.large);
        let hours: std::collections::BTreeSet<i64> = all.iter().map(|event| event.timestamp / HOUR_MS).collect();
        assert!(hours.len() >= 72);
    }

    #[test]
    fn all_partitions_but_the_last_are_used() {
        let nasty = Nasty::default();
        let used: std::collections::BTreeSet<i32> = (0..5_000).map(|index| nasty.partition(index)).collect();
        assert_eq!(used, (0..63).collect());
    }
}
