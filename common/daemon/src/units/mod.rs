//! Quantities as people write them: sizes, durations, rates and moments.
//!
//! Promises: what prints here can be read back to the same value; every refusal says what would have been accepted.
//! Never: guess a unit for a duration, or read a clock (the present moment is handed in).

mod duration;
mod moment;
mod rate;
mod size;

pub use duration::HumanDuration;
pub use moment::moment;
pub use rate::{ByteRate, Rate};
pub use size::ByteSize;

/// A quantity that could not be read. Its text names what was written and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadUnit(String);

impl BadUnit {
    fn new(text: &str, wanted: &str) -> Self {
        Self(format!("`{text}` is not {wanted}"))
    }
}

/// A decimal number and what follows it, for example `1.5` and `GiB`. The number is `whole + fraction / scale`.
struct Number<'a> {
    whole: u64,
    fraction: u64,
    scale: u64,
    rest: &'a str,
}

impl<'a> Number<'a> {
    /// Reads the number at the start of `text`; `None` if there is none or it is too large.
    fn take(text: &'a str) -> Option<Self> {
        let (whole, rest) = split_digits(text);
        let whole_number: u64 = whole.parse().ok()?;
        let Some(after_dot) = rest.strip_prefix('.') else {
            return Some(Self { whole: whole_number, fraction: 0, scale: 1, rest });
        };
        let (fraction, rest) = split_digits(after_dot);
        // More digits than any unit here can use; refused instead of rounded.
        if fraction.is_empty() || fraction.len() > 9 {
            return None;
        }
        let scale = 10_u64.pow(fraction.len() as u32);
        Some(Self { whole: whole_number, fraction: fraction.parse().ok()?, scale, rest })
    }

    /// The number times `unit`; `None` if it overflows or does not come out whole.
    fn times(&self, unit: u64) -> Option<u64> {
        let part = u128::from(self.fraction) * u128::from(unit);
        if part % u128::from(self.scale) != 0 {
            return None;
        }
        let whole = u128::from(self.whole) * u128::from(unit);
        u64::try_from(whole + part / u128::from(self.scale)).ok()
    }

    fn as_f64(&self) -> f64 {
        self.whole as f64 + self.fraction as f64 / self.scale as f64
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Serde and JSON Schema for a type that is written as text and read by `FromStr`.
macro_rules! as_text {
    ($type:ty, $name:literal, $pattern:literal, $about:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str($crate::units::AsText::<$type>(std::marker::PhantomData))
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": ["string", "number"], "pattern": $pattern, "description": $about })
            }
        }
    };
}
use as_text;

/// Takes text, and also a number without a unit: YAML has turned it into one before it comes here.
struct AsText<T>(std::marker::PhantomData<T>);

impl<T: std::str::FromStr<Err = BadUnit>> serde::de::Visitor<'_> for AsText<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a text with a unit")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}
