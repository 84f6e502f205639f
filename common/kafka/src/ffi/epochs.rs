//! Leader epochs beside offsets: what a group commits, and what it committed.

use std::slice;

use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka_sys as sys;

use super::text_of;

/// An offset that a group committed, with the leader epoch of the event before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommittedEpoch {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) epoch: i32,
}

/// Writes a leader epoch beside the partition that was added last.
pub(crate) fn set_last_epoch(list: &mut TopicPartitionList, epoch: i32) {
    // SAFETY: the list is valid and ours alone by its borrow, and its elements are as many as it counts.
    unsafe {
        let raw = &*list.ptr();
        if raw.cnt > 0 && !raw.elems.is_null() {
            sys::rd_kafka_topic_partition_set_leader_epoch(raw.elems.add(raw.cnt as usize - 1), epoch);
        }
    }
}

/// The offsets of a list that have a leader epoch.
pub(crate) fn committed_epochs(list: &TopicPartitionList) -> Vec<CommittedEpoch> {
    // SAFETY: the list is valid by its borrow, its elements are as many as it counts, and what is read is copied at once.
    unsafe {
        let raw = &*list.ptr();
        if raw.elems.is_null() {
            return Vec::new();
        }
        let elements = slice::from_raw_parts(raw.elems, usize::try_from(raw.cnt).unwrap_or(0));
        let one = |element: &sys::rd_kafka_topic_partition_t| {
            let epoch = sys::rd_kafka_topic_partition_get_leader_epoch(element);
            let (topic, partition, offset) = (text_of(element.topic), element.partition, element.offset);
            (epoch >= 0 && offset >= 0).then_some(CommittedEpoch { topic, partition, offset, epoch })
        };
        elements.iter().filter_map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::topic_partition_list::Offset;

    use super::*;

    #[test]
    fn an_epoch_stands_beside_its_partition_and_no_other() {
        let mut list = TopicPartitionList::new();
        assert_eq!(committed_epochs(&list), []);
        for partition in 0..3 {
            list.add_partition_offset("t", partition, Offset::Offset(10 + i64::from(partition))).expect("an offset");
            if partition == 1 {
                set_last_epoch(&mut list, 7);
            }
        }
        assert_eq!(committed_epochs(&list), [CommittedEpoch { topic: "t".to_owned(), partition: 1, offset: 11, epoch: 7 }]);
    }
}
