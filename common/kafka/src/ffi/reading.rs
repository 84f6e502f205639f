//! A queue of our own, and the messages that it lends.

use std::ffi::{CStr, CString, c_void};
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as sys;

use super::{bytes_of, millis, text_of};

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

impl<C: ConsumerContext + 'static> ReadQueue<C> {
    /// Messages that wait to be read.
    pub(crate) fn waiting(&self) -> usize {
        // SAFETY: the handle is alive.
        unsafe { sys::rd_kafka_queue_length(self.own.queue.as_ptr()) }
    }

    /// As [`Self::read`], message by message: slower, but what waits stays in the queue meanwhile and keeps the client from
    /// fetching more.
    pub(crate) fn read_singly(&self, wait: Duration, visit: &mut dyn FnMut(&RawMessage<'_>) -> ControlFlow<()>) {
        let mut wait = wait;
        loop {
            // SAFETY: the handle is alive; a message that comes back is ours and is destroyed once, after its visit.
            let flow = unsafe {
                let message = sys::rd_kafka_consume_queue(self.own.queue.as_ptr(), millis(wait));
                let Some(lent) = NonNull::new(message) else { return };
                let flow = visit(&RawMessage { message: lent, _lent: PhantomData });
                sys::rd_kafka_message_destroy(message);
                flow
            };
            if flow.is_break() {
                return;
            }
            wait = Duration::ZERO;
        }
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
