//! The configuration between file and types: a tree in which every value knows where it came from.
//! Never: a type of the program; never prints a secret.

use std::fmt;
use std::sync::Arc;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    File { file: Arc<str>, line: usize },
    Variable(Arc<str>),
    Flag(Arc<str>),
    Nowhere,
}

/// Where a value was written, and the `${...}` it was fetched through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) place: Place,
    pub(super) through: Option<Arc<str>>,
    /// Fetched from a file of its own: such values are secrets.
    pub(super) secret: bool,
}

impl Origin {
    pub(super) fn new(place: Place) -> Self {
        Self { place, through: None, secret: false }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File { file, line } => write!(f, "{file}:{line}")?,
            Place::Variable(name) => f.write_str(name)?,
            Place::Flag(name) => f.write_str(name)?,
            Place::Nowhere => f.write_str("configuration")?,
        }
        match &self.through {
            Some(through) => write!(f, " ({through})"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// `plain`: not quoted, so YAML's rules give it a type.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_origin: Origin,
    pub(super) node: Node,
}

impl Node {
    pub(super) fn plain(text: &str, origin: Origin) -> Self {
        Self { value: Value::Scalar { text: text.to_owned(), plain: true }, origin }
    }

    pub(super) fn empty_map(origin: Origin) -> Self {
        Self { value: Value::Map(Vec::new()), origin }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.typed(), Some(Typed::Null))
    }

    /// The type of a scalar by YAML 1.2's core rules; `None` for lists and maps.
    pub(super) fn typed(&self) -> Option<Typed<'_>> {
        match &self.value {
            Value::Scalar { text, plain: true } => Some(typed(text)),
            Value::Scalar { text, plain: false } => Some(Typed::Text(text)),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// The node at `path` (`sources[0].name`), if it is written anywhere.
    pub(super) fn at(&self, path: &[Step]) -> Option<&Self> {
        let Some((step, rest)) = path.split_first() else {
            return Some(self);
        };
        let child = match (&self.value, step) {
            (Value::Map(entries), Step::Key(key)) => &entries.iter().find(|entry| entry.key == *key)?.node,
            (Value::List(items), Step::Index(index)) => items.get(*index)?,
            _ => return None,
        };
        child.at(rest)
    }
}

/// A scalar with its type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Typed<'a> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'a str),
}

pub(super) fn typed(text: &str) -> Typed<'_> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Typed::Null,
        "true" | "True" | "TRUE" => return Typed::Bool(true),
        "false" | "False" | "FALSE" => return Typed::Bool(false),
        ".inf" | "+.inf" => return Typed::Float(f64::INFINITY),
        "-.inf" => return Typed::Float(f64::NEG_INFINITY),
        ".nan" => return Typed::Float(f64::NAN),
        _ => {}
    }
    // Rust would also read `inf`, `nan` and `infinity` as numbers; YAML does not.
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'))
        || !text.contains(|c: char| c.is_ascii_digit())
    {
        return Typed::Text(text);
    }
    let based = |prefix: &str, radix: u32| text.strip_prefix(prefix).and_then(|digits| u64::from_str_radix(digits, radix).ok());
    if let Some(number) = based("0x", 16).or_else(|| based("0o", 8)).or_else(|| text.parse().ok()) {
        return Typed::Unsigned(number);
    }
    if let Ok(number) = text.parse() {
        return Typed::Signed(number);
    }
    text.parse().map_or(Typed::Text(text), Typed::Float)
}

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// Appends a key to the text of a path, quoted where it holds a dot of its own.
pub(super) fn join_key(path: &str, key: &str) -> String {
    let key = if key.contains('.') { format!("\"{key}\"") } else { key.to_owned() };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

pub(super) fn join_index(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// Reads the text of a path: `sources[0].kafka.client."sasl.password"`.
pub(super) fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some((key, after)) = rest.strip_prefix('"').and_then(|quoted| quoted.split_once('"')) {
            steps.push(Step::Key(key.to_owned()));
            rest = after;
        } else if let Some((index, after)) = rest.strip_prefix('[').and_then(|open| open.split_once(']')) {
            steps.extend(index.parse().ok().map(Step::Index));
            rest = after;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            steps.push(Step::Key(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        rest = rest.strip_prefix('.').unwrap_or(rest);
    }
    steps
}

/// True for a path whose value must not be shown: a word of one of its keys says that it is a secret.
/// Names of files are shown (`password_file`, `ssl.key.location`): without them nobody finds the secret to mend it.
pub(super) fn names_a_secret(path: &str) -> bool {
    const SECRET: [&str; 14] = [
        "password",
        "passwd",
        "passphrase",
        "pass",
        "secret",
        "secrets",
        "token",
        "key",
        "pem",
        "credential",
        "credentials",
        "sasl",
        "jaas",
        "auth",
    ];
    const SHOWN: [&str; 4] = ["file", "location", "path", "mechanism"];
    let words: Vec<String> =
        path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_ascii_lowercase).collect();
    let shown = words.last().is_some_and(|word| SHOWN.contains(&word.as_str()));
    !shown && words.iter().any(|word| SECRET.contains(&word.as_str()) || word.ends_with("password") || word.ends_with("secret"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_get_yaml_types() {
        let cases = [
            ("", Typed::Null),
            ("null", Typed::Null),
            ("true", Typed::Bool(true)),
            ("yes", Typed::Text("yes")),
            ("42", Typed::Unsigned(42)),
            ("-42", Typed::Signed(-42)),
            ("0x1F", Typed::Unsigned(31)),
            ("1.5", Typed::Float(1.5)),
            ("1e3", Typed::Float(1000.0)),
            ("128MiB", Typed::Text("128MiB")),
            ("inf", Typed::Text("inf")),
            ("-", Typed::Text("-")),
            ("2026-11-19", Typed::Text("2026-11-19")),
            ("127.0.0.1", Typed::Text("127.0.0.1")),
        ];
        for (text, expected) in cases {
            assert_eq!(typed(text), expected, "{text}");
        }
    }

    #[test]
    fn a_path_is_found_again_from_its_text() {
        let path = join_key(&join_key(&join_index(&join_key("", "sources"), 3), "client"), "sasl.password");
        assert_eq!(path, "sources[3].client.\"sasl.password\"");
        let key = |text: &str| Step::Key(text.to_owned());
        assert_eq!(steps(&path), [key("sources"), Step::Index(3), key("client"), key("sasl.password")]);
    }

    #[test]
    fn secrets_are_known_by_their_names() {
        for secret in [
            "password",
            "a.api_key",
            "client.\"sasl.jaas.config\"",
            "aws.secret_access_key",
            "admin.token",
            "tls.key_pem",
            "keystorePassword",
        ] {
            assert!(names_a_secret(secret), "{secret}");
        }
        for open in [
            "password_file",
            "client.\"ssl.key.location\"",
            "topics",
            "monkey",
            "archive.url",
            "security.protocol",
            "tokens_per_second",
        ] {
            assert!(!names_a_secret(open), "{open}");
        }
    }
}
