//! Publishing with header names that are any bytes.

use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

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
    pub(crate) value: Option<&'a [u8]>,
    /// Comes back with the delivery report.
    pub(crate) opaque: usize,
}

/// Queues a message; everything is copied. The delivery opaque of the producer's context must be a `usize`.
pub(crate) fn produce<'h, C: ProducerContext<DeliveryOpaque = usize> + 'static>(
    topic: &Topic<C>,
    message: &RawOutgoing<'_>,
    headers: impl ExactSizeIterator<Item = (&'h [u8], Option<&'h [u8]>)>,
) -> Result<(), RDKafkaErrorCode> {
    let (key, key_len) = raw_parts(message.key);
    let (value, value_len) = raw_parts(message.value);
    // SAFETY: all pointers are valid for the call, which copies what they point to (`MSG_F_COPY`); the topic is of this client; the
    // list of headers is ours until the client takes it over, which it does only when it answers without an error. The arguments
    // are pairs of a kind and what that kind asks for, closed by `END`.
    unsafe {
        let list = header_list(headers);
        let code = sys::rd_kafka_producev(
            topic.producer.client().native_ptr(),
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_RKT,
            topic.topic.as_ptr(),
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
