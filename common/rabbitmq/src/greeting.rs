//! What a server says of itself in its first frame (connection.start), which the client reads and does not tell.
//!
//! Promise: bytes are looked at on their way and never held up; whatever is wrong with them is the client's affair.

use std::sync::{Arc, OnceLock};

use amq_protocol::frame::{AMQPFrame, parse_frame};
use lapin::protocol::AMQPClass;
use lapin::protocol::connection::AMQPMethod;
use lapin::types::{AMQPValue, FieldTable};

/// No first frame is longer.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Greeting {
    pub(crate) cluster: Option<String>,
    pub(crate) product: Option<String>,
    pub(crate) version: Option<String>,
}

impl Greeting {
    fn of(properties: &FieldTable) -> Self {
        let text = |name: &str| match properties.inner().get(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
            _ => None,
        };
        Self { cluster: text("cluster_name"), product: text("product"), version: text("version") }
    }
}

/// Where the greeting is found once the connection stands.
pub(crate) type Heard = Arc<OnceLock<Greeting>>;

/// Listens until the first frame has passed.
#[derive(Debug)]
pub(crate) struct Listener {
    /// The bytes so far; `None` once it has heard enough.
    passed: Option<Vec<u8>>,
    heard: Heard,
}

impl Listener {
    pub(crate) fn new(heard: Heard) -> Self {
        Self { passed: Some(Vec::new()), heard }
    }

    /// These bytes came in.
    pub(crate) fn pass(&mut self, bytes: &[u8]) {
        let Some(mut passed) = self.passed.take() else { return };
        passed.extend_from_slice(bytes);
        match parse_frame(passed.as_slice()) {
            Ok((_, AMQPFrame::Method(_, AMQPClass::Connection(AMQPMethod::Start(start))))) => {
                let _ = self.heard.set(Greeting::of(&start.server_properties));
            }
            Err(error) if error.is_incomplete() && passed.len() < FRAME_BYTES_MAX => self.passed = Some(passed),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use amq_protocol::frame::{WriteContext, gen_frame};
    use lapin::protocol::connection::Start;
    use lapin::types::LongString;

    use super::*;

    fn frame() -> Vec<u8> {
        let mut server_properties = FieldTable::default();
        for (name, value) in [("cluster_name", "prod"), ("product", "RabbitMQ"), ("version", "4.3.6")] {
            server_properties.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
        }
        let (mechanisms, locales) = (LongString::from("PLAIN"), LongString::from("en_US"));
        let start = Start { version_major: 0, version_minor: 9, server_properties, mechanisms, locales };
        let frame = AMQPFrame::Method(0, AMQPClass::Connection(AMQPMethod::Start(start)));
        let written = gen_frame(&frame)(WriteContext::from(Vec::new())).expect("it fits");
        written.into_inner().0
    }

    #[test]
    fn a_greeting_is_heard_however_it_is_cut() {
        for piece in [1, 7, 1_000] {
            let heard = Heard::default();
            let mut listener = Listener::new(Arc::clone(&heard));
            let bytes = frame();
            for bytes in bytes.chunks(piece) {
                assert_eq!(heard.get(), None, "not before it is whole");
                listener.pass(bytes);
            }
            let greeting = heard.get().expect("heard");
            assert_eq!((greeting.cluster.as_deref(), greeting.version.as_deref()), (Some("prod"), Some("4.3.6")));
            listener.pass(b"more");
            assert!(listener.passed.is_none(), "nothing is kept");
        }
    }

    #[test]
    fn what_is_no_greeting_is_passed_over() {
        let heard = Heard::default();
        let mut listener = Listener::new(Arc::clone(&heard));
        listener.pass(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        assert!(heard.get().is_none() && listener.passed.is_none());
    }
}
