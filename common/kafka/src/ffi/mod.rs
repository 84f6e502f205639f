//! Everything of librdkafka that the Rust client does not offer, behind safe calls: a queue of our own that is read message by
//! message without a heap object each, topic ids, and cached watermarks. The only `unsafe` of the project.
//!
//! Promises: no message, header or name outlives the call that lends it; every handle that is taken is given back; a handle
//! never outlives its client, since each wrapper holds the client alive.
//! Never: call back into Rust code that unwinds into C (a panic in a visitor ends the process).
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as sys;

/// Which clock set a message's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StampedBy {
    /// The producer.
    Producer,
    /// The broker, when it appended the message.
    Broker,
}

/// A message (or an event in a message's clothes) as librdkafka lends it for the length of one visit.
pub(crate) struct RawMessage<'a> {
    message: NonNull<sys::rd_kafka_message_t>,
    _lent: PhantomData<&'a ()>,
}

impl<'a> RawMessage<'a> {
    fn fields(&self) -> &'a sys::rd_kafka_message_t {
        // SAFETY: librdkafka hands a valid message to the callback and keeps it unchanged until that returns; `'a` ends there.
        unsafe { self.message.as_ref() }
    }

    /// Set if this is no message but an event: the end of a partition, or a failure.
    pub(crate) fn error(&self) -> Option<RDKafkaErrorCode> {
        let code = self.fields().err;
        (code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| code.into())
    }

    /// What librdkafka says about the failure.
    pub(crate) fn error_text(&self) -> String {
        // SAFETY: the message is valid; the text belongs to it (or is static) and is copied at once.
        unsafe { text_of(sys::rd_kafka_message_errstr(self.message.as_ptr())) }
    }

    /// A number that is the same for all messages of a topic while the client lives: cheaper to compare than the name.
    pub(crate) fn topic_key(&self) -> usize {
        self.fields().rkt as usize
    }

    /// The topic's name; empty for an event that belongs to no topic.
    pub(crate) fn topic(&self) -> String {
        let topic = self.fields().rkt;
        if topic.is_null() {
            return String::new();
        }
        // SAFETY: a topic handle on a message is valid as long as the message; the name is copied at once.
        unsafe { text_of(sys::rd_kafka_topic_name(topic)) }
    }

    /// The partition.
    pub(crate) fn partition(&self) -> i32 {
        self.fields().partition
    }

    /// The offset; for the end of a partition the offset that comes next.
    pub(crate) fn offset(&self) -> i64 {
        self.fields().offset
    }

    /// The key; null and empty are different.
    pub(crate) fn key(&self) -> Option<&'a [u8]> {
        let fields = self.fields();
        // SAFETY: librdkafka's pointer and length describe one buffer that lives as long as the message.
        unsafe { bytes_of(fields.key, fields.key_len) }
    }

    /// The value; null and empty are different.
    pub(crate) fn value(&self) -> Option<&'a [u8]> {
        let fields = self.fields();
        // SAFETY: as for the key.
        unsafe { bytes_of(fields.payload, fields.len) }
    }

    /// The leader epoch that the broker wrote into the batch.
    pub(crate) fn leader_epoch(&self) -> Option<i32> {
        // SAFETY: the message is valid.
        let epoch = unsafe { sys::rd_kafka_message_leader_epoch(self.message.as_ptr()) };
        (epoch >= 0).then_some(epoch)
    }

    /// The time in milliseconds as the bus has it, whatever it is; `None` if the bus has none.
    pub(crate) fn time(&self) -> Option<(i64, StampedBy)> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid and `kind` is ours.
        let millis = unsafe { sys::rd_kafka_message_timestamp(self.message.as_ptr(), &mut kind) };
        match kind {
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_CREATE_TIME => Some((millis, StampedBy::Producer)),
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME => Some((millis, StampedBy::Broker)),
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE => None,
        }
    }

    /// The headers, in order. Names are raw bytes; librdkafka ends them at the first zero byte.
    pub(crate) fn headers(&self) -> RawHeaders<'a> {
        let mut list = ptr::null_mut();
        // SAFETY: the message is valid; on success `list` belongs to it.
        let code = unsafe { sys::rd_kafka_message_headers(self.message.as_ptr(), &mut list) };
        let found = code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        RawHeaders { list: if found { list } else { ptr::null_mut() }, index: 0, _lent: PhantomData }
    }
}

/// Walks a message's headers in place.
pub(crate) struct RawHeaders<'a> {
    list: *mut sys::rd_kafka_headers_t,
    index: usize,
    _lent: PhantomData<&'a ()>,
}

impl<'a> Iterator for RawHeaders<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.list.is_null() {
            return None;
        }
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the list belongs to a message that lives for `'a`; the out-pointers are ours.
        let code = unsafe { sys::rd_kafka_header_get_all(self.list, self.index, &mut name, &mut value, &mut size) };
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
            return None;
        }
        self.index += 1;
        // SAFETY: the name is a C string and the value a buffer of `size` bytes; both live as long as the message.
        unsafe { Some((CStr::from_ptr(name).to_bytes(), bytes_of(value.cast_mut(), size))) }
    }
}

/// A queue handle of librdkafka. It holds the client alive and is given back on drop.
struct Handle<C: ConsumerContext + 'static> {
    queue: NonNull<sys::rd_kafka_queue_t>,
    consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's queues are made for use from several threads at once; the client is `Send + Sync` itself.
unsafe impl<C: ConsumerContext + 'static> Send for Handle<C> {}
// SAFETY: as above.
unsafe impl<C: ConsumerContext + 'static> Sync for Handle<C> {}

impl<C: ConsumerContext + 'static> Handle<C> {
    /// # Safety
    /// `queue` is null or a handle of `consumer` that nobody else gives back.
    unsafe fn own(queue: *mut sys::rd_kafka_queue_t, consumer: &Arc<BaseConsumer<C>>) -> Option<Self> {
        NonNull::new(queue).map(|queue| Self { queue, consumer: Arc::clone(consumer) })
    }
}

impl<C: ConsumerContext + 'static> Drop for Handle<C> {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, its client is still alive, and it is given back once.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// Ends the wait of a [`ReadQueue::read`] from another thread.
pub(crate) struct Waker<C: ConsumerContext + 'static>(Arc<Handle<C>>);

impl<C: ConsumerContext + 'static> Waker<C> {
    /// The read that waits now, or the next one, returns at once.
    pub(crate) fn wake(&self) {
        // SAFETY: the handle is alive; the call may come from any thread.
        unsafe { sys::rd_kafka_queue_yield(self.0.queue.as_ptr()) }
    }
}

impl<C: ConsumerContext + 'static> Clone for Waker<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// A queue of our own that partitions' queues are forwarded to, so that messages can be read in bulk while the consumer's own
/// queue goes on serving the group.
pub(crate) struct ReadQueue<C: ConsumerContext + 'static> {
    own: Arc<Handle<C>>,
    group: Handle<C>,
}

impl<C: ConsumerContext + 'static> ReadQueue<C> {
    /// A queue of `consumer`; `None` if that is in no group.
    pub(crate) fn new(consumer: &Arc<BaseConsumer<C>>) -> Option<Self> {
        let client = consumer.client().native_ptr();
        // SAFETY: both calls return a handle that the caller gives back, or null.
        unsafe {
            let group = Handle::own(sys::rd_kafka_queue_get_consumer(client), consumer)?;
            let own = Handle::own(sys::rd_kafka_queue_new(client), consumer)?;
            Some(Self { own: Arc::new(own), group })
        }
    }

    /// Sends what a partition fetches to this queue from now on; what it fetched before comes along.
    /// To be called before *and* after each assign: the first makes librdkafka leave the partition's queue alone when it starts
    /// it, the second is needed since stopping a partition clears the forward.
    pub(crate) fn forward(&self, topic: &str, partition: i32) -> bool {
        let Ok(name) = CString::new(topic) else { return false };
        let client = self.group.consumer.client().native_ptr();
        // SAFETY: the partition's handle is ours to give back (by `Handle`); forwarding takes references of its own.
        unsafe {
            let queue = sys::rd_kafka_queue_get_partition(client, name.as_ptr(), partition);
            let Some(queue) = Handle::own(queue, &self.group.consumer) else { return false };
            sys::rd_kafka_queue_forward(queue.queue.as_ptr(), self.own.queue.as_ptr());
        }
        true
    }

    /// Something to end the wait of a read with.
    pub(crate) fn waker(&self) -> Waker<C> {
        Waker(Arc::clone(&self.own))
    }

    /// Events that wait on the consumer's own queue: rebalances, errors, log lines.
    pub(crate) fn waiting_for_the_group(&self) -> usize {
        // SAFETY: the handle is alive.
        unsafe { sys::rd_kafka_queue_length(self.group.queue.as_ptr()) }
    }

    /// Waits for the first message, then visits what has arrived until `visit` breaks; the rest stays in the queue, in order.
    /// Answers how many queue entries were taken.
    pub(crate) fn read(&self, wait: Duration, visit: &mut dyn FnMut(&RawMessage<'_>) -> ControlFlow<()>) -> usize {
        let mut visitor = Visitor { visit, client: self.group.consumer.client().native_ptr(), done: false };
        // SAFETY: `visitor` outlives the call, which runs the callback on this thread only.
        let taken = unsafe {
            sys::rd_kafka_consume_callback_queue(
                self.own.queue.as_ptr(),
                millis(wait),
                Some(visit_one),
                ptr::from_mut(&mut visitor).cast(),
            )
        };
        usize::try_from(taken).unwrap_or(0)
    }
}

struct Visitor<'v> {
    visit: &'v mut dyn FnMut(&RawMessage<'_>) -> ControlFlow<()>,
    client: *mut sys::rd_kafka_t,
    done: bool,
}

/// # Safety
/// Called by librdkafka with a valid message and the [`Visitor`] of the read that runs on this thread.
unsafe extern "C" fn visit_one(message: *mut sys::rd_kafka_message_t, opaque: *mut c_void) {
    // SAFETY: `opaque` is the visitor of the read that is on this thread's stack; nobody else has a reference to it now.
    let visitor = unsafe { &mut *opaque.cast::<Visitor<'_>>() };
    let Some(message) = NonNull::new(message) else { return };
    debug_assert!(!visitor.done, "librdkafka stops after a yield");
    if (visitor.visit)(&RawMessage { message, _lent: PhantomData }).is_break() {
        visitor.done = true;
        // SAFETY: the client is alive; yield only sets a flag of this thread.
        unsafe { sys::rd_kafka_yield(visitor.client) }
    }
}

/// What a broker says about one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicDescribed {
    pub(crate) name: String,
    /// The id as Kafka's own tools print it: 128 bits, URL-safe base64 without padding.
    pub(crate) id: Result<String, RDKafkaErrorCode>,
}

/// Asks a broker for the ids of topics.
pub(crate) fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    wait: Duration,
) -> Result<Vec<TopicDescribed>, (RDKafkaErrorCode, String)> {
    let native = client.native_ptr();
    let only_broker = only_broker(client, names, wait);
    let names: Vec<CString> = names.iter().filter_map(|name| CString::new(*name).ok()).collect();
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: everything that is made here is destroyed here, after its last use: options, names and queue once the answer is
    // in, the event once what it holds was copied. The client outlives the call by its borrow.
    unsafe {
        let options = sys::rd_kafka_AdminOptions_new(native, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        sys::rd_kafka_AdminOptions_set_request_timeout(options, millis(wait), ptr::null_mut(), 0);
        if let Some(broker) = only_broker {
            sys::rd_kafka_AdminOptions_set_broker(options, broker, ptr::null_mut(), 0);
        }
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let queue = sys::rd_kafka_queue_new(native);
        sys::rd_kafka_DescribeTopics(native, topics, options, queue);
        let event = sys::rd_kafka_queue_poll(queue, millis(wait).saturating_add(1_000));
        let answer = described(event);
        if !event.is_null() {
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_TopicCollection_destroy(topics);
        sys::rd_kafka_AdminOptions_destroy(options);
        answer
    }
}

/// The client asks the controller, and an embedded broker never becomes one: it waits for ever. Where there is one broker
/// only, it is asked by its number; in a cluster the controller is found as ever.
fn only_broker<C: ClientContext>(client: &Client<C>, names: &[&str], wait: Duration) -> Option<i32> {
    let metadata = client.fetch_metadata(names.first().copied(), wait).ok()?;
    match metadata.brokers() {
        [only] => Some(only.id()),
        _ => None,
    }
}

/// # Safety
/// `event` is null or the valid answer to a describe-topics request.
unsafe fn described(event: *mut sys::rd_kafka_event_t) -> Result<Vec<TopicDescribed>, (RDKafkaErrorCode, String)> {
    if event.is_null() {
        return Err((RDKafkaErrorCode::OperationTimedOut, "no answer in time".to_owned()));
    }
    // SAFETY: by the caller's promise; all pointers that come back belong to the event and are copied before it is destroyed.
    unsafe {
        let code = sys::rd_kafka_event_error(event);
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err((code.into(), text_of(sys::rd_kafka_event_error_string(event))));
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if topics.is_null() {
            return Ok(Vec::new());
        }
        Ok(slice::from_raw_parts(topics, count).iter().map(|topic| one_described(*topic)).collect())
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
            return TopicDescribed { name, id: Err(code.into()) };
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let (most, least) = (sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id));
        TopicDescribed { name, id: Ok(topic_id_text(most, least)) }
    }
}

fn topic_id_text(most: i64, least: i64) -> String {
    let mut bytes = [0_u8; 16];
    bytes[..8].copy_from_slice(&most.to_be_bytes());
    bytes[8..].copy_from_slice(&least.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The log start and the high watermark of a partition as the last fetch answers told them; `None` if none has.
pub(crate) fn cached_watermarks<C: ClientContext>(client: &Client<C>, topic: &str, partition: i32) -> Option<(i64, i64)> {
    let name = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is alive by its borrow; name and numbers are ours.
    let code = unsafe { sys::rd_kafka_get_watermark_offsets(client.native_ptr(), name.as_ptr(), partition, &mut low, &mut high) };
    (code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some((low, high))
}

/// One message on its way out. Header names are raw bytes.
pub(crate) struct RawOutgoing<'a> {
    pub(crate) topic: &'a CStr,
    pub(crate) partition: i32,
    /// Milliseconds; zero lets the client take its own clock.
    pub(crate) time: i64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    /// Comes back with the delivery report.
    pub(crate) opaque: usize,
}

/// Queues a message; everything is copied. The client must be one of a producer whose delivery opaque is a `usize`.
pub(crate) fn produce<'h, C: ClientContext>(
    client: &Client<C>,
    message: &RawOutgoing<'_>,
    headers: impl ExactSizeIterator<Item = (&'h [u8], Option<&'h [u8]>)>,
) -> Result<(), RDKafkaErrorCode> {
    let (key, key_len) = raw_parts(message.key);
    let (value, value_len) = raw_parts(message.value);
    // SAFETY: all pointers are valid for the call, which copies what they point to (`MSG_F_COPY`); the list of headers is ours
    // until the client takes it over, which it does only when it answers without an error. The arguments are pairs of a kind and
    // what that kind asks for, closed by `END`.
    unsafe {
        let list = header_list(headers);
        let code = sys::rd_kafka_producev(
            client.native_ptr(),
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_TOPIC,
            message.topic.as_ptr(),
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION,
            message.partition,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
            sys::RD_KAFKA_MSG_F_COPY,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
            value,
            value_len,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
            key,
            key_len,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_OPAQUE,
            message.opaque as *mut c_void,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_TIMESTAMP,
            message.time,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS,
            list,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
        );
        if code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        if !list.is_null() {
            sys::rd_kafka_headers_destroy(list);
        }
        Err(code.into())
    }
}

/// A list of headers that the caller destroys or hands over; null for none.
///
/// # Safety
/// Safe to call; what comes back must be destroyed once or handed over to the client.
unsafe fn header_list<'h>(headers: impl ExactSizeIterator<Item = (&'h [u8], Option<&'h [u8]>)>) -> *mut sys::rd_kafka_headers_t {
    if headers.len() == 0 {
        return ptr::null_mut();
    }
    // SAFETY: names and values are valid for the calls, which copy them.
    unsafe {
        let list = sys::rd_kafka_headers_new(headers.len());
        for (name, bytes) in headers {
            let (value, value_len) = raw_parts(bytes);
            sys::rd_kafka_header_add(
                list,
                name.as_ptr().cast(),
                name.len().cast_signed(),
                value.cast_const(),
                value_len.cast_signed(),
            );
        }
        list
    }
}

fn raw_parts(bytes: Option<&[u8]>) -> (*mut c_void, usize) {
    // An empty slice has a pointer that is not null, so empty stays apart from null.
    bytes.map_or((ptr::null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast(), bytes.len()))
}

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
