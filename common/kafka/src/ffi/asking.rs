//! Questions to the brokers that wait for their answers: which topics these are, where partitions begin and end.

use std::ffi::{CString, c_char};
use std::ptr;
use std::slice;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka_sys as sys;

use super::{bytes_of, millis, text_of};

/// What a broker says about one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicDescribed {
    pub(crate) name: String,
    /// The id as Kafka's own tools print it: 128 bits, URL-safe base64 without padding.
    pub(crate) id: Result<String, RDKafkaErrorCode>,
    /// How many partitions it has.
    pub(crate) partitions: usize,
}

/// Asks a broker for the ids of topics.
pub(crate) fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    wait: Duration,
) -> Result<Vec<TopicDescribed>, (RDKafkaErrorCode, String)> {
    let native = client.native_ptr();
    let broker = broker_that_answers(client, names, wait);
    let names: Vec<CString> = names.iter().filter_map(|name| CString::new(*name).ok()).collect();
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: options and names are made here and destroyed here, after the answer is in.
    unsafe {
        let options = admin_options(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, wait);
        if let Some(broker) = broker {
            sys::rd_kafka_AdminOptions_set_broker(options, broker, ptr::null_mut(), 0);
        }
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let send = |queue| sys::rd_kafka_DescribeTopics(native, topics, options, queue);
        let answer = ask(native, wait, send, |event| described(event));
        sys::rd_kafka_TopicCollection_destroy(topics);
        sys::rd_kafka_AdminOptions_destroy(options);
        answer
    }
}

/// Which end of a partition is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogEnd {
    /// The first offset that is still there.
    First,
    /// The offset after the last event that a reader of committed events may see now.
    Last,
    /// The offset after the last event that is written, in a transaction that is open or not.
    Written,
}

/// Where a partition begins or ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartitionOffset {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: Result<i64, RDKafkaErrorCode>,
}

/// Asks the leaders of partitions for one of their ends, with one request each.
pub(crate) fn list_offsets<'p, C: ClientContext>(
    client: &Client<C>,
    partitions: impl Iterator<Item = (&'p str, i32)>,
    end: LogEnd,
    wait: Duration,
) -> Result<Vec<PartitionOffset>, (RDKafkaErrorCode, String)> {
    let asked = match end {
        LogEnd::First => Offset::Beginning,
        LogEnd::Last | LogEnd::Written => Offset::End,
    };
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        if let Err(error) = list.add_partition_offset(topic, partition, asked) {
            return Err((RDKafkaErrorCode::InvalidArgument, error.to_string()));
        }
    }
    if list.count() == 0 {
        return Ok(Vec::new());
    }
    let native = client.native_ptr();
    // SAFETY: the list is copied by the call; the options are made here and destroyed here, after the answer is in.
    unsafe {
        let options = admin_options(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS, wait);
        let level = match end {
            LogEnd::Written => sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED,
            LogEnd::First | LogEnd::Last => sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED,
        };
        let error = sys::rd_kafka_AdminOptions_set_isolation_level(options, level);
        debug_assert!(error.is_null(), "a level that the client knows");
        let answer =
            ask(native, wait, |queue| sys::rd_kafka_ListOffsets(native, list.ptr(), options, queue), |event| listed(event));
        sys::rd_kafka_AdminOptions_destroy(options);
        answer
    }
}

/// What was written beside the committed offsets of a list, where there is something: any bytes.
pub(crate) fn committed_metadata(list: &TopicPartitionList) -> Vec<Vec<u8>> {
    // SAFETY: the list is valid by its borrow, its elements are as many as it counts, and their metadata is copied at once.
    unsafe {
        let raw = &*list.ptr();
        if raw.elems.is_null() {
            return Vec::new();
        }
        let elements = slice::from_raw_parts(raw.elems, usize::try_from(raw.cnt).unwrap_or(0));
        let metadata = elements.iter().filter_map(|one| bytes_of(one.metadata, one.metadata_size));
        metadata.filter(|bytes| !bytes.is_empty()).map(<[u8]>::to_vec).collect()
    }
}

/// # Safety
/// What comes back must be destroyed once, before the client.
unsafe fn admin_options<C: ClientContext>(
    client: &Client<C>,
    kind: sys::rd_kafka_admin_op_t,
    wait: Duration,
) -> *mut sys::rd_kafka_AdminOptions_t {
    // SAFETY: the client is alive by its borrow; without an error buffer nothing is written to one.
    unsafe {
        let options = sys::rd_kafka_AdminOptions_new(client.native_ptr(), kind);
        sys::rd_kafka_AdminOptions_set_request_timeout(options, millis(wait), ptr::null_mut(), 0);
        options
    }
}

/// Sends a request whose answer comes on a queue, waits for the answer and takes from it what is wanted.
///
/// # Safety
/// `client` is alive during the call; `send` queues one request; what `take` gives back holds nothing of the event.
unsafe fn ask<T>(
    client: *mut sys::rd_kafka_t,
    wait: Duration,
    send: impl FnOnce(*mut sys::rd_kafka_queue_t),
    take: impl FnOnce(*mut sys::rd_kafka_event_t) -> T,
) -> Result<T, (RDKafkaErrorCode, String)> {
    // SAFETY: queue and event are ours and destroyed once, after their last use.
    unsafe {
        let queue = sys::rd_kafka_queue_new(client);
        send(queue);
        let event = sys::rd_kafka_queue_poll(queue, millis(wait).saturating_add(1_000));
        let answer = if event.is_null() {
            Err((RDKafkaErrorCode::OperationTimedOut, "no answer in time".to_owned()))
        } else {
            let code = sys::rd_kafka_event_error(event);
            let answer = match code {
                sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(take(event)),
                _ => Err((code.into(), text_of(sys::rd_kafka_event_error_string(event)))),
            };
            sys::rd_kafka_event_destroy(event);
            answer
        };
        sys::rd_kafka_queue_destroy(queue);
        answer
    }
}

/// # Safety
/// `event` is the valid answer to a list-offsets request.
unsafe fn listed(event: *mut sys::rd_kafka_event_t) -> Vec<PartitionOffset> {
    // SAFETY: by the caller's promise; all pointers that come back belong to the event and are copied before it is destroyed.
    unsafe {
        let mut count = 0;
        let infos = sys::rd_kafka_ListOffsets_result_infos(sys::rd_kafka_event_ListOffsets_result(event), &mut count);
        if infos.is_null() {
            return Vec::new();
        }
        let one = |info: &*const sys::rd_kafka_ListOffsetsResultInfo_t| {
            let found = &*sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*info);
            let failed = found.err != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
            let offset = if failed { Err(found.err.into()) } else { Ok(found.offset) };
            PartitionOffset { topic: text_of(found.topic), partition: found.partition, offset }
        };
        slice::from_raw_parts(infos, count).iter().map(one).collect()
    }
}

/// By itself the client asks the controller, and waits for one where none is: while a cluster elects it, and for ever before
/// embedded brokers. Every broker knows the topics, so the one that has just answered is asked.
fn broker_that_answers<C: ClientContext>(client: &Client<C>, names: &[&str], wait: Duration) -> Option<i32> {
    let metadata = client.fetch_metadata(names.first().copied(), wait).ok()?;
    let mut brokers = metadata.brokers().iter().map(|broker| broker.id());
    let first = brokers.clone().next();
    brokers.find(|id| *id == metadata.orig_broker_id()).or(first)
}

/// # Safety
/// `event` is the valid answer to a describe-topics request.
unsafe fn described(event: *mut sys::rd_kafka_event_t) -> Vec<TopicDescribed> {
    // SAFETY: by the caller's promise; all pointers that come back belong to the event and are copied before it is destroyed.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if topics.is_null() {
            return Vec::new();
        }
        slice::from_raw_parts(topics, count).iter().map(|topic| one_described(*topic)).collect()
    }
}

/// # Safety
/// `topic` is a valid topic description.
unsafe fn one_described(topic: *const sys::rd_kafka_TopicDescription_t) -> TopicDescribed {
    // SAFETY: by the caller's promise; what is read here is copied at once.
    unsafe {
        let name = text_of(sys::rd_kafka_TopicDescription_name(topic));
        let error = sys::rd_kafka_TopicDescription_error(topic);
        let code =
            if error.is_null() { sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR } else { sys::rd_kafka_error_code(error) };
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return TopicDescribed { name, id: Err(code.into()), partitions: 0 };
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let (most, least) = (sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id));
        let mut partitions = 0;
        sys::rd_kafka_TopicDescription_partitions(topic, &mut partitions);
        TopicDescribed { name, id: Ok(topic_id_text(most, least)), partitions }
    }
}

fn topic_id_text(most: i64, least: i64) -> String {
    let mut bytes = [0_u8; 16];
    bytes[..8].copy_from_slice(&most.to_be_bytes());
    bytes[8..].copy_from_slice(&least.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_id_prints_as_kafkas_tools_print_it() {
        // Kafka's own metadata topic: org.apache.kafka.common.Uuid.ONE_UUID.
        assert_eq!(topic_id_text(0, 1), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(topic_id_text(-1, -1), "_____________________w");
    }
}
