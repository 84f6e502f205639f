//! Publishing with header names that are any bytes.

use std::ffi::{CStr, c_void};
use std::ptr;

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as sys;

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
