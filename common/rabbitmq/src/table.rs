//! A table of typed values as JSON, and back: what the property `headers` holds.
//!
//! Compact JSON, names in byte order, each value `[tag, value]` with the letter by which RabbitMQ writes the type on the wire:
//! `t` bool; `b` `B` `s` `u` `I` `i` `l` integers; `f` `d` the shortest decimal that reads back to the same bits, as text, or
//! `bits:<hex>`; `D` `[scale, value]`; `S` text, `S64` a string that is no text and `x` bytes, in base64; `A` a list of values;
//! `T` seconds; `F` a table; `V` null.
//!
//! Promise: what was written reads back bit for bit. Never: looks into a string.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, LongString, ShortString};
use serde_json::Value;

/// Writes the entries of a table, which come in the order of their names.
pub fn write<'t>(entries: impl Iterator<Item = (&'t ShortString, &'t AMQPValue)>, to: &mut String) {
    to.push('{');
    for (index, (name, value)) in entries.enumerate() {
        if index > 0 {
            to.push(',');
        }
        push_text(name.as_str(), to);
        to.push(':');
        write_value(value, to);
    }
    to.push('}');
}

/// Writes one value with its tag.
pub fn write_value(value: &AMQPValue, to: &mut String) {
    match value {
        AMQPValue::Boolean(value) => plain('t', value, to),
        AMQPValue::ShortShortInt(value) => plain('b', value, to),
        AMQPValue::ShortShortUInt(value) => plain('B', value, to),
        AMQPValue::ShortInt(value) => plain('s', value, to),
        AMQPValue::ShortUInt(value) => plain('u', value, to),
        AMQPValue::LongInt(value) => plain('I', value, to),
        AMQPValue::LongUInt(value) => plain('i', value, to),
        AMQPValue::LongLongInt(value) => plain('l', value, to),
        AMQPValue::Timestamp(value) => plain('T', value, to),
        AMQPValue::Float(value) if value.is_finite() => quoted("f", format!("{value:?}"), to),
        AMQPValue::Float(value) => quoted("f", format!("bits:{:08x}", value.to_bits()), to),
        AMQPValue::Double(value) if value.is_finite() => quoted("d", format!("{value:?}"), to),
        AMQPValue::Double(value) => quoted("d", format!("bits:{:016x}", value.to_bits()), to),
        AMQPValue::DecimalValue(value) => plain('D', format_args!("[{},{}]", value.scale, value.value), to),
        AMQPValue::ShortString(value) => quoted("S", value.as_str(), to),
        AMQPValue::LongString(value) => match std::str::from_utf8(value.as_bytes()) {
            Ok(text) => quoted("S", text, to),
            Err(_) => quoted("S64", STANDARD.encode(value.as_bytes()), to),
        },
        AMQPValue::ByteArray(value) => quoted("x", STANDARD.encode(value.as_slice()), to),
        AMQPValue::FieldArray(values) => {
            to.push_str(r#"["A",["#);
            for (index, value) in values.as_slice().iter().enumerate() {
                if index > 0 {
                    to.push(',');
                }
                write_value(value, to);
            }
            to.push_str("]]");
        }
        AMQPValue::FieldTable(table) => {
            to.push_str(r#"["F","#);
            write(table.into_iter(), to);
            to.push(']');
        }
        AMQPValue::Void => to.push_str(r#"["V",null]"#),
    }
}

fn plain(tag: char, value: impl std::fmt::Display, to: &mut String) {
    let _ = write!(to, r#"["{tag}",{value}]"#);
}

fn quoted(tag: &str, text: impl AsRef<str>, to: &mut String) {
    let _ = write!(to, r#"["{tag}","#);
    push_text(text.as_ref(), to);
    to.push(']');
}

fn push_text(text: &str, to: &mut String) {
    to.push('"');
    for c in text.chars() {
        match c {
            '"' => to.push_str("\\\""),
            '\\' => to.push_str("\\\\"),
            c if c < ' ' => {
                let _ = write!(to, "\\u{:04x}", u32::from(c));
            }
            c => to.push(c),
        }
    }
    to.push('"');
}

/// Reads a table back; `None` if the text is none.
pub fn read(text: &str) -> Option<FieldTable> {
    read_table(&serde_json::from_str(text).ok()?)
}

fn read_table(json: &Value) -> Option<FieldTable> {
    let entry = |(name, value): (&String, &Value)| Some((ShortString::try_new(name.as_str()).ok()?, read_value(value)?));
    let entries: Option<BTreeMap<ShortString, AMQPValue>> = json.as_object()?.iter().map(entry).collect();
    entries.map(FieldTable::from)
}

fn read_value(json: &Value) -> Option<AMQPValue> {
    let [tag, value] = json.as_array()?.as_slice() else { return None };
    Some(match tag.as_str()? {
        "t" => AMQPValue::Boolean(value.as_bool()?),
        "b" => AMQPValue::ShortShortInt(signed(value)?),
        "B" => AMQPValue::ShortShortUInt(signed(value)?),
        "s" => AMQPValue::ShortInt(signed(value)?),
        "u" => AMQPValue::ShortUInt(signed(value)?),
        "I" => AMQPValue::LongInt(signed(value)?),
        "i" => AMQPValue::LongUInt(signed(value)?),
        "l" => AMQPValue::LongLongInt(value.as_i64()?),
        "T" => AMQPValue::Timestamp(value.as_u64()?),
        "f" => AMQPValue::Float(match value.as_str()?.strip_prefix("bits:") {
            Some(bits) => f32::from_bits(u32::from_str_radix(bits, 16).ok()?),
            None => value.as_str()?.parse().ok()?,
        }),
        "d" => AMQPValue::Double(match value.as_str()?.strip_prefix("bits:") {
            Some(bits) => f64::from_bits(u64::from_str_radix(bits, 16).ok()?),
            None => value.as_str()?.parse().ok()?,
        }),
        "D" => {
            let [scale, value] = value.as_array()?.as_slice() else { return None };
            AMQPValue::DecimalValue(DecimalValue { scale: signed(scale)?, value: signed(value)? })
        }
        "S" => AMQPValue::LongString(LongString::from(value.as_str()?)),
        "S64" => AMQPValue::LongString(LongString::from(STANDARD.decode(value.as_str()?).ok()?)),
        "x" => AMQPValue::ByteArray(ByteArray::from(STANDARD.decode(value.as_str()?).ok()?)),
        "A" => {
            let values: Option<Vec<AMQPValue>> = value.as_array()?.iter().map(read_value).collect();
            AMQPValue::FieldArray(FieldArray::from(values?))
        }
        "F" => AMQPValue::FieldTable(read_table(value)?),
        "V" => AMQPValue::Void,
        _ => return None,
    })
}

fn signed<N: TryFrom<i64>>(json: &Value) -> Option<N> {
    N::try_from(json.as_i64()?).ok()
}

#[cfg(test)]
mod tests;
