//! The tree to the program's own types, by serde. Its errors name the place, the path and what was expected there.
//! Never: shows the value of a secret in an error.

use std::fmt;

use serde::de::value::StringDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};

use super::Problem;
use super::print::without_password;
use super::shape::nearest;
use super::tree::{Entry, Node, Typed, Value, join_index, join_key, names_a_secret};

/// Reads a value of the program's own type from the tree.
pub(super) fn read<T: de::DeserializeOwned>(root: &Node) -> Result<T, Problem> {
    T::deserialize(Reader { node: root, path: String::new() }).map_err(|error| error.problem())
}

/// What went wrong, and once it is known, where.
#[derive(Debug)]
pub(super) struct ReadError {
    what: What,
    place: Option<(String, String)>,
}

#[derive(Debug)]
enum What {
    Expected { expected: String, found: String },
    Missing(&'static str),
    Said(String),
}

impl ReadError {
    fn new(what: What) -> Self {
        Self { what, place: None }
    }

    /// Notes where it happened. The innermost place wins.
    fn at(mut self, node: &Node, path: &str) -> Self {
        if self.place.is_none() {
            if node.origin.secret || names_a_secret(path) {
                self.hide();
            }
            self.place = Some((node.origin.to_string(), path.to_owned()));
        }
        self
    }

    fn hide(&mut self) {
        match &mut self.what {
            What::Expected { found, .. } => *found = "something else (hidden)".to_owned(),
            What::Said(text) => *text = "this value cannot be used (hidden, since it is a secret)".to_owned(),
            What::Missing(_) => {}
        }
    }

    fn problem(self) -> Problem {
        let (origin, path) = self.place.clone().unwrap_or_default();
        let what = self.to_string();
        Problem { origin, text: if path.is_empty() { what } else { format!("`{path}`: {what}") } }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Expected { expected, found } => write!(f, "expected {expected}, found {found}"),
            What::Missing(key) => write!(f, "key `{key}` is missing"),
            What::Said(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::new(What::Said(text.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(What::Expected { expected: plain_words(expected), found: describe(found) })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(What::Missing(key))
    }

    fn unknown_variant(written: &str, known: &'static [&'static str]) -> Self {
        let hint = nearest(written, known.iter().copied()).map(|name| format!(", did you mean `{name}`?")).unwrap_or_default();
        Self::new(What::Said(format!("`{written}` is not known here, write one of `{}`{hint}", known.join("`, `"))))
    }

    fn unknown_field(written: &str, known: &'static [&'static str]) -> Self {
        let hint = nearest(written, known.iter().copied()).map(|name| format!(", did you mean `{name}`?")).unwrap_or_default();
        Self::new(What::Said(format!("unknown key `{written}`{hint}")))
    }
}

/// Rust's names of types mean nothing to an operator.
fn plain_words(expected: &dyn de::Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from zero up".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a string" | "a map" => text,
        _ if text.starts_with("struct ") || text.starts_with("internally tagged") => "a map of keys".to_owned(),
        _ if text.starts_with("enum ") => "one of the known words".to_owned(),
        _ => text,
    }
}

fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("the number `{value}`"),
        Unexpected::Signed(value) => format!("the number `{value}`"),
        Unexpected::Float(value) => format!("the number `{value}`"),
        Unexpected::Str(value) => format!("the text `{}`", without_password(value)),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}

struct Reader<'a> {
    node: &'a Node,
    path: String,
}

impl Reader<'_> {
    /// Visits by the type that YAML gives the value, and notes the place of an error.
    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let visited = match &self.node.value {
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate(), path: &self.path }),
            Value::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), current: None, path: &self.path }),
            Value::Scalar { .. } => match self.node.typed() {
                Some(Typed::Bool(value)) => visitor.visit_bool(value),
                Some(Typed::Unsigned(value)) => visitor.visit_u64(value),
                Some(Typed::Signed(value)) => visitor.visit_i64(value),
                Some(Typed::Float(value)) => visitor.visit_f64(value),
                Some(Typed::Text(text)) => visitor.visit_str(text),
                Some(Typed::Null) | None => visitor.visit_unit(),
            },
        };
        visited.map_err(|error| error.at(self.node, &self.path))
    }

    /// Where text is wanted, a scalar is taken as it was written: `group: 007` stays `007`.
    fn visit_text<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => {
                visitor.visit_str(text).map_err(|error: ReadError| error.at(self.node, &self.path))
            }
            _ => self.visit(visitor),
        }
    }
}

/// Each of these visits by what is written; the visitor says if that will not do.
macro_rules! by_what_is_written {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            self.visit(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    by_what_is_written! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
        deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_seq deserialize_map deserialize_ignored_any
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.visit_text(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.visit_text(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.visit_text(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.visit_text(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        self.visit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.visit(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _: &'static str, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.visit(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        // `seal:` with nothing behind it means a map with nothing in it.
        if self.node.is_null() {
            let nothing = Entries { entries: [].iter(), current: None, path: &self.path };
            return visitor.visit_map(nothing).map_err(|error| error.at(self.node, &self.path));
        }
        // A visitor of a struct would also take a list, key by key; nobody means that.
        if matches!(self.node.value, Value::List(_)) {
            return Err(<ReadError as de::Error>::invalid_type(Unexpected::Seq, &"a map of keys").at(self.node, &self.path));
        }
        self.visit(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let choice = match &self.node.value {
            Value::Scalar { text, .. } => Choice { name: text, inner: None },
            Value::Map(entries) => match entries.as_slice() {
                [Entry { key, node, .. }] => Choice { name: key, inner: Some(Reader { node, path: join_key(&self.path, key) }) },
                _ => return self.refuse_choice(entries),
            },
            Value::List(_) => return self.visit(visitor),
        };
        visitor.visit_enum(choice).map_err(|error| error.at(self.node, &self.path))
    }
}

impl Reader<'_> {
    fn refuse_choice<T>(&self, entries: &[Entry]) -> Result<T, ReadError> {
        let keys: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let what = What::Expected { expected: "exactly one key".to_owned(), found: format!("[{}]", keys.join(", ")) };
        Err(ReadError::new(what).at(self.node, &self.path))
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    path: &'a str,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        seed.deserialize(Reader { node, path: join_index(self.path, index) }).map(Some)
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, Entry>,
    current: Option<&'a Entry>,
    path: &'a str,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        self.current = self.entries.next();
        let Some(entry) = self.current else { return Ok(None) };
        let key: StringDeserializer<ReadError> = entry.key.clone().into_deserializer();
        let located = |error: ReadError| error.at(&Node::plain("", entry.key_origin.clone()), self.path);
        seed.deserialize(key).map(Some).map_err(located)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let entry = self.current.expect("serde asks for a value after its key");
        seed.deserialize(Reader { node: &entry.node, path: join_key(self.path, &entry.key) })
    }
}

/// A value of an enum: a word, or a map with one key.
struct Choice<'a> {
    name: &'a str,
    inner: Option<Reader<'a>>,
}

impl<'de, 'a> EnumAccess<'de> for Choice<'a> {
    type Error = ReadError;
    type Variant = Inner<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Inner<'a>), ReadError> {
        let name: StringDeserializer<ReadError> = self.name.to_owned().into_deserializer();
        Ok((seed.deserialize(name)?, Inner(self.inner)))
    }
}

/// What stands behind the word of a choice, if anything does.
struct Inner<'a>(Option<Reader<'a>>);

impl<'a> Inner<'a> {
    fn needed(self) -> Result<Reader<'a>, ReadError> {
        self.0.ok_or_else(|| ReadError::new(What::Said("this word needs a value: write it as a key".to_owned())))
    }
}

impl<'de> VariantAccess<'de> for Inner<'_> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        match self.0 {
            Some(reader) if !reader.node.is_null() => {
                Err(ReadError::new(What::Said("this word takes no value".to_owned())).at(reader.node, &reader.path))
            }
            _ => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        seed.deserialize(self.needed()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.needed()?.visit(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, keys: &'static [&'static str], visitor: V) -> Result<V::Value, ReadError> {
        self.needed()?.deserialize_struct("", keys, visitor)
    }
}
