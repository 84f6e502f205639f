//! Publishing with header names that are any bytes, and values that are not copied.

use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bytes::Bytes;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use rdkafka_sys as sys;

/// A topic that messages go to. Named once: a message that names its topic makes the client look it up under its largest lock.
pub(crate) struct Topic<C: ProducerContext + 'static> {
    topic: NonNull<sys::rd_kafka_topic_t>,
    producer: Arc<BaseProducer<C>>,
}

// SAFETY: librdkafka's topic handles may be used from any thread; the client is `Send + Sync` itself.
unsafe impl<C: ProducerContext + 'static> Send for Topic<C> {}

impl<C: ProducerContext + 'static> Topic<C> {
    /// The topic of this name; it need not exist yet.
    pub(crate) fn new(producer: &Arc<BaseProducer<C>>, name: &CStr) -> Result<Self, RDKafkaErrorCode> {
        // SAFETY: the client is alive and the name valid for the call, which copies it; without a configuration the client's own is taken.
        let topic = unsafe { sys::rd_kafka_topic_new(producer.client().native_ptr(), name.as_ptr(), ptr::null_mut()) };
        match NonNull::new(topic) {
            Some(topic) => Ok(Self { topic, producer: Arc::clone(producer) }),
            // SAFETY: reads the error of this thread's last call.
            None => Err(unsafe { sys::rd_kafka_last_error() }.into()),
        }
    }
}

impl<C: ProducerContext + 'static> Drop for Topic<C> {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, its client is still alive, and it is given back once.
        unsafe { sys::rd_kafka_topic_destroy(self.topic.as_ptr()) }
    }
}

/// One message on its way out. Header names are raw bytes.
pub(crate) struct RawOutgoing<'a> {
    pub(crate) partition: i32,
    /// Milliseconds; zero lets the client take its own clock.
    pub(crate) time: i64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a Bytes>,
    pub(crate) lane: u32,
    pub(crate) sequence: u64,
}

/// What the client holds of a message and gives back with its report, when it has read the value for the last time. Of a client
/// that ends without a report it is never given back: memory that may be read is not freed.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) lane: u32,
    pub(crate) sequence: u64,
    value: Option<Bytes>,
}

/// Queues a message. The client reads the value in place, which spares the dearest copy of a replay; all else is copied.
pub(crate) fn produce<'h, C: ProducerContext<DeliveryOpaque = Box<Lent>> + 'static>(
    topic: &Topic<C>,
    message: &RawOutgoing<'_>,
    headers: impl ExactSizeIterator<Item = (&'h [u8], Option<&'h [u8]>)>,
) -> Result<(), RDKafkaErrorCode> {
    let (key, key_len) = raw_parts(message.key);
    let lent = Box::new(Lent { lane: message.lane, sequence: message.sequence, value: message.value.cloned() });
    let (value, value_len) = raw_parts(lent.value.as_deref());
    let lent = Box::into_raw(lent);
    // SAFETY: key and headers are valid for the call, which copies them. The value, by no flag copied, is owned by `lent` and does not
    // move; that is the client's from here on, until the context gets it back with the report, or here if there will be none. The
    // topic is of this client; the list of headers is ours until the client takes it over, which it does only when it answers
    // without an error. The arguments are pairs of a kind and what that kind asks for, closed by `END`.
    unsafe {
        let list = header_list(headers);
        let code = sys::rd_kafka_producev(
            topic.producer.client().native_ptr(),
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_RKT,
            topic.topic.as_ptr(),
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION,
            message.partition,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
            0_i32,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
            value,
            value_len,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
            key,
            key_len,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_OPAQUE,
            lent.cast::<c_void>(),
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
        drop(Box::from_raw(lent));
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
