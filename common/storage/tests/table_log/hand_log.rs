//! Logs written by hand, with segments that are taken out again, which no writer does by itself.

use std::collections::BTreeMap;

use object_store::ObjectStoreExt;
use tapedeck_common::commit::{Record, SegmentRef};
use tapedeck_storage::log::LogPaths;
use tapedeck_storage::log::genesis::{Genesis, Writers};
use tapedeck_storage::log::record::{self, Header};
use tapedeck_storage::log::rewrite::{self, Rewrite};
use tapedeck_storage::store::Store;

use crate::kit::*;

/// A log of one lane that grows record by record.
pub(crate) struct HandLog {
    store: Store,
    /// The number of the next record.
    pub(crate) next: u64,
    prev: Option<String>,
    position: u64,
    /// What is live now, by path.
    pub(crate) live: BTreeMap<String, SegmentRef>,
}

impl HandLog {
    /// Record 0, and the lane's start record.
    pub(crate) async fn begin(store: &Store) -> Self {
        let mut log = Self { store: store.clone(), next: 0, prev: None, position: 0, live: BTreeMap::new() };
        let genesis = Genesis { table_id: "id".to_owned(), table: TABLE.to_owned(), created_ms: 7, writers: Writers::OnlyUs };
        let header = log.header();
        log.put(record::encode_genesis(&header, &genesis)).await;
        let header = log.header();
        log.put(record::encode(&header, &first(0))).await;
        log
    }

    fn header(&self) -> Header {
        Header {
            timestamp_ms: 1_795_168_800_123 + self.next as i64,
            engine: "tapedeck/test".to_owned(),
            writer: "w".to_owned(),
            txn_id: format!("txn-{}", self.next),
            prev: self.prev.clone(),
        }
    }

    async fn put(&mut self, body: Vec<u8>) {
        self.prev = Some(record::hash(&body));
        let key = LogPaths::of(TABLE).record(self.next);
        self.store.store.put(&key, body.into()).await.expect("memory");
        self.next += 1;
    }

    /// A record that adds a segment for each topic and hour, ten positions each, then one that takes `removes` out.
    pub(crate) async fn step(&mut self, adds: &[(&str, i64)], removes: &[String]) {
        let from = self.position;
        let mut record = Record::default();
        for (topic, number) in adds {
            let span = span(self.position, self.position + 10);
            let name = format!("{:08x}-{}", span.from().get().wrapping_mul(2_654_435_761) as u32, span.from().get());
            let mut segment = segment(&name, 0, span, hour(*number));
            segment.path = segment.path.replace("topic=orders", &format!("topic={}", tapedeck_storage::layout::escape(topic)));
            segment.topic = (*topic).into();
            segment.times.1 = tapedeck_common::Timestamp::from_millis(segment.times.1.millis_ceil()).expect("fits");
            self.live.insert(segment.path.clone(), segment.clone());
            record.segments.push(segment);
            self.position += 10;
        }
        if self.position > from {
            record.advances.push(step(0, from, self.position));
        }
        // No record both archives and takes out.
        if !adds.is_empty() || removes.is_empty() {
            let body = record::encode(&self.header(), &record);
            self.put(body).await;
        }
        if !removes.is_empty() {
            removes.iter().for_each(|path| drop(self.live.remove(path).expect("live")));
            let body = rewrite::encode(&self.header(), &Rewrite::expire(removes.to_vec()));
            self.put(body).await;
        }
    }
}
