//! The effective configuration as YAML that can be read back, with the origin of each value beside it.
//! Law: no secret is ever printed.

use std::fmt::Write as _;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::tree::{Node, Step, Typed, join_index, join_key, names_a_secret, typed};

const HIDDEN: &str = "<hidden>";

/// Comments begin here unless a line is longer.
const COMMENT_COLUMN: usize = 40;

/// Values in the order in which the program's types list them; a map of `serde_json` would sort them.
pub(super) enum Plain {
    Null,
    /// Numbers and truth values.
    Word(String),
    Text(String),
    List(Vec<Plain>),
    Map(Vec<(String, Plain)>),
}

pub(super) struct Printer<'a> {
    tree: &'a Node,
    out: String,
}

/// Prints `values`; the tree tells where each of them was written.
pub(super) fn print(values: &Plain, tree: &Node) -> String {
    let mut printer = Printer { tree, out: String::new() };
    printer.value(values, &mut Vec::new(), "", 0, "");
    printer.out
}

impl Printer<'_> {
    /// Prints `lead` (indentation and key or dash) and the value after it.
    fn value(&mut self, value: &Plain, steps: &mut Vec<Step>, path: &str, depth: usize, lead: &str) {
        let secret = !path.is_empty() && self.is_secret(steps, path);
        match value {
            Plain::List(items) if !items.is_empty() && !secret => {
                self.lead(lead);
                for (index, item) in items.iter().enumerate() {
                    steps.push(Step::Index(index));
                    let lead = format!("{}-", "  ".repeat(depth));
                    self.value(item, steps, &join_index(path, index), depth + 1, &lead);
                    steps.pop();
                }
            }
            Plain::Map(entries) if !entries.is_empty() && !secret => {
                // The first key of a list element stands on the line of its dash.
                let mut dash = lead.ends_with('-').then_some(lead);
                if dash.is_none() {
                    self.lead(lead);
                }
                for (key, value) in entries {
                    steps.push(Step::Key(key.clone()));
                    let key_text = scalar(key);
                    let lead = match dash.take() {
                        Some(dash) => format!("{dash} {key_text}:"),
                        None => format!("{}{key_text}:", "  ".repeat(depth)),
                    };
                    self.value(value, steps, &join_key(path, key), depth + 1, &lead);
                    steps.pop();
                }
            }
            _ => self.leaf(value, steps, lead, secret),
        }
    }

    fn lead(&mut self, lead: &str) {
        if !lead.is_empty() {
            let _ = writeln!(self.out, "{lead}");
        }
    }

    fn leaf(&mut self, value: &Plain, steps: &[Step], lead: &str, secret: bool) {
        let text = match value {
            Plain::Null => "null".to_owned(),
            _ if secret => HIDDEN.to_owned(),
            Plain::Word(word) => word.clone(),
            Plain::Text(text) => scalar(&without_password(text)),
            Plain::List(_) => "[]".to_owned(),
            Plain::Map(_) => "{}".to_owned(),
        };
        let line = if lead.is_empty() { text } else { format!("{lead} {text}") };
        let _ = writeln!(self.out, "{line:COMMENT_COLUMN$} # {}", self.origin(steps));
    }

    fn origin(&self, steps: &[Step]) -> String {
        // A list that came as a whole is the origin of its elements.
        match self.tree.at(steps) {
            Some(node) if !node.is_null() => node.origin.to_string(),
            _ => "default".to_owned(),
        }
    }

    fn is_secret(&self, steps: &[Step], path: &str) -> bool {
        names_a_secret(path)
            || (0..=steps.len()).any(|depth| self.tree.at(&steps[..depth]).is_some_and(|node| node.origin.secret))
    }
}

/// Text as YAML: as it is where nothing can be mistaken, quoted like JSON elsewhere.
fn scalar(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "_./:+@%=<>-".contains(c);
    let plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || "_./".contains(c))
        && !text.ends_with(':')
        && text.chars().all(harmless)
        && matches!(typed(text), Typed::Text(_));
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// A URL without the password in it.
pub(super) fn without_password(text: &str) -> String {
    let hidden = || {
        let (scheme, rest) = text.split_once("://")?;
        let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
        let (user, host) = authority.rsplit_once('@')?;
        let (name, _) = user.split_once(':')?;
        Some(format!("{scheme}://{name}:{HIDDEN}@{host}{}", &rest[authority.len()..]))
    };
    hidden().unwrap_or_else(|| text.to_owned())
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Plain;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Plain, E> {
        Ok(Plain::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Plain, E> {
        Ok(Plain::Word(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Plain, E> {
        Ok(Plain::Word(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Plain, E> {
        Ok(Plain::Word(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Plain, E> {
        Ok(Plain::Word(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Plain, E> {
        Ok(Plain::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Plain, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Plain::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Plain, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Plain::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_where_it_could_be_mistaken() {
        let cases = [
            ("s3://bucket/prefix", "s3://bucket/prefix"),
            ("128MiB", "128MiB"),
            ("127.0.0.1:9464", "127.0.0.1:9464"),
            ("true", "\"true\""),
            ("12", "\"12\""),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("^audit\\..+$", "\"^audit\\\\..+$\""),
            ("key:", "\"key:\""),
            ("- x", "\"- x\""),
        ];
        for (text, printed) in cases {
            assert_eq!(scalar(text), printed);
        }
    }

    #[test]
    fn passwords_in_urls_are_hidden() {
        let cases = [
            ("amqp://user:pa:ss@host:5672/v", "amqp://user:<hidden>@host:5672/v"),
            ("amqp://user:p@ss@host", "amqp://user:<hidden>@host"),
            ("s3://bucket/a@b:c", "s3://bucket/a@b:c"),
            ("no url: x@y", "no url: x@y"),
        ];
        for (text, printed) in cases {
            assert_eq!(without_password(text), printed);
        }
    }
}
