//! The names under which the `properties` column keeps what AMQP 0-9-1 says of a message beside its key, value and headers.
//! They are part of the archive's format: never renamed. The routing key is the event's key.

use lapin::BasicProperties;
use lapin::types::ShortString;

/// The exchange that the message was published to; absent for the default exchange.
pub const EXCHANGE: &str = "exchange";
/// The headers with their types, see [`crate::table`].
pub const HEADERS: &str = "headers";

/// Of queues: `true` if the broker says that it handed the message over before.
pub const REDELIVERED: &str = "redelivered";
/// Of queues: how often the message came back, by the broker's count.
pub const DELIVERY_COUNT: &str = "delivery_count";
/// Of queues: how often it was handed over, by the broker's count.
pub const ACQUIRED_COUNT: &str = "acquired_count";

/// The thirteen properties that are no table, as text, those that are there.
pub fn scalars(properties: &BasicProperties) -> impl Iterator<Item = (&'static str, Scalar<'_>)> {
    let all = [
        text("content_type", properties.content_type()),
        text("content_encoding", properties.content_encoding()),
        number("delivery_mode", properties.delivery_mode().map(u64::from)),
        number("priority", properties.priority().map(u64::from)),
        text("correlation_id", properties.correlation_id()),
        text("reply_to", properties.reply_to()),
        text("expiration", properties.expiration()),
        text("message_id", properties.message_id()),
        number("timestamp", *properties.timestamp()),
        text("type", properties.kind()),
        text("user_id", properties.user_id()),
        text("app_id", properties.app_id()),
        text("cluster_id", properties.cluster_id()),
    ];
    all.into_iter().flatten()
}

/// The value of a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar<'p> {
    /// As it is.
    Text(&'p str),
    /// In decimal.
    Number(u64),
}

fn text<'p>(name: &'static str, value: &'p Option<ShortString>) -> Option<(&'static str, Scalar<'p>)> {
    value.as_ref().map(|value| (name, Scalar::Text(value.as_str())))
}

fn number(name: &'static str, value: Option<u64>) -> Option<(&'static str, Scalar<'static>)> {
    value.map(|value| (name, Scalar::Number(value)))
}
