//! Configuration in layers: a YAML file, under environment variables, under flags; each value knows its origin.
//!
//! Promises: an unknown key is an error that names the nearest known one; every error names the file and line, or the variable;
//! secrets are shown neither by [`Loaded::print`] nor by an error. Never: knows what the keys mean.
//!
//! ```
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//! use tapedeck_daemon::config::Layers;
//! use tapedeck_daemon::units::{ByteSize, HumanDuration};
//!
//! /// What the file looks like. Optional keys have a default here, or are an `Option` that the checked type fills in.
//! #[derive(Serialize, Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Raw { seal: RawSeal }
//!
//! #[derive(Serialize, Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct RawSeal { max_bytes: ByteSize, max_age: Option<HumanDuration> }
//!
//! let file = tempfile::NamedTempFile::new()?;
//! std::fs::write(file.path(), "seal:\n  max_bytes: 128MiB\n")?;
//! let environment = [("TAPEDECK__SEAL__MAX_AGE".to_owned(), "1m".to_owned())];
//!
//! let loaded = Layers::new().file(file.path()).environment("TAPEDECK__", environment).load::<Raw>()?;
//! assert_eq!(loaded.raw.seal.max_bytes.bytes(), 128 << 20);
//! assert_eq!(loaded.origin("seal.max_age"), "TAPEDECK__SEAL__MAX_AGE");
//!
//! // A check of the program's own names the origin just as well.
//! let error = loaded.refuse("seal.max_bytes", "must be at least 1GiB");
//! assert!(error.to_string().ends_with(":2: `seal.max_bytes`: must be at least 1GiB"));
//!
//! // The effective configuration: what was loaded, or the checked types written in the same shape.
//! assert!(loaded.print(&loaded.raw).contains("# TAPEDECK__SEAL__MAX_AGE"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod layers;
mod print;
mod reader;
mod shape;
mod tree;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use tapedeck_common::ErrorKind;

use layers::Layer;
use shape::Shape;
use tree::{Node, Origin, Place, Value, join_index, join_key, steps};

/// The prefix of the variables that change the configuration.
pub const ENVIRONMENT_PREFIX: &str = "TAPEDECK__";

/// One thing that is wrong, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    origin: String,
    text: String,
}

/// All that is wrong with a configuration, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }

    /// The same error with the problems of `other` added: a check may collect before it reports.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.problems.extend(other.problems);
        self
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            let line_end = if number == 0 { "" } else { "\n" };
            match problem.origin.as_str() {
                "" => write!(f, "{line_end}{}", problem.text)?,
                origin => write!(f, "{line_end}{origin}: {}", problem.text)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// The layers of a configuration; later kinds lie over earlier ones whatever the order of the calls.
#[derive(Default)]
pub struct Layers {
    file: Option<PathBuf>,
    text: Option<(String, String)>,
    prefix: String,
    environment: BTreeMap<String, String>,
    flags: Vec<Layer>,
}

impl fmt::Debug for Layers {
    // The environment holds secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layers").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Layers {
    /// Nothing but the defaults of the types.
    pub fn new() -> Self {
        Self::default()
    }

    /// The file at the bottom. Without one the other layers stand alone.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Text in the place of a file, for examples that the program carries; errors call it `name`.
    #[must_use]
    pub fn text(mut self, name: &str, text: &str) -> Self {
        self.text = Some((name.to_owned(), text.to_owned()));
        self
    }

    /// Variables that begin with `prefix` change values: `TAPEDECK__SOURCES__0__KAFKA__GROUP=g` sets `sources[0].kafka.group`.
    /// All of them are at hand for `${env:NAME}`.
    #[must_use]
    pub fn environment(mut self, prefix: &str, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        prefix.clone_into(&mut self.prefix);
        self.environment = variables.into_iter().collect();
        self
    }

    /// The value of a flag, for example `("archive.url", "--archive", "s3://events")`.
    #[must_use]
    pub fn flag(mut self, path: &str, flag: &str, value: &str) -> Self {
        let words = |step| match step {
            tree::Step::Key(key) => key,
            tree::Step::Index(index) => index.to_string(),
        };
        let steps = steps(path).into_iter().map(words).collect();
        self.flags.push(Layer { steps, text: value.to_owned(), place: Place::Flag(flag.into()) });
        self
    }

    /// Reads and merges the layers and makes the program's own type of them.
    pub fn load<Raw: DeserializeOwned + JsonSchema>(self) -> Result<Loaded<Raw>, ConfigError> {
        let schema = schema::<Raw>();
        let shape = Shape::of(&schema);
        let mut tree = self.bottom()?;
        let mut problems = Vec::new();
        for layer in layers::from_environment(&self.environment, &self.prefix).iter().chain(&self.flags) {
            problems.extend(layers::apply(&mut tree, &shape, layer).err());
        }
        layers::interpolate(&mut tree, &self.environment, &mut problems);
        settle(&mut tree, &shape, &shape, "", &mut problems);
        match reader::read(&tree) {
            Ok(raw) if problems.is_empty() => Ok(Loaded { raw, tree }),
            Ok(_) => Err(ConfigError { problems }),
            Err(problem) => {
                // An unknown key is often the reason why the right one is missing: it comes first.
                problems.push(problem);
                Err(ConfigError { problems })
            }
        }
    }

    fn bottom(&self) -> Result<Node, ConfigError> {
        let (name, text) = match (&self.text, &self.file) {
            (Some(named), _) => named.clone(),
            (None, Some(path)) => {
                let name = path.display().to_string();
                let refuse = |text| Problem { origin: String::new(), text: format!("configuration {text}") };
                let text = layers::read_small(&name).map_err(refuse)?;
                (name, text)
            }
            (None, None) => return Ok(Node::empty_map(Origin::new(Place::Nowhere))),
        };
        let tree = yaml::parse(text.trim_start_matches('\u{feff}'), &name, None)?;
        match tree.value {
            Value::Map(_) => Ok(tree),
            _ if tree.is_null() => Ok(Node::empty_map(tree.origin)),
            _ => Err(Problem { origin: tree.origin.to_string(), text: "a configuration is a map of keys".to_owned() }.into()),
        }
    }
}

/// Reads `path` and the variables that begin with `prefix`. See [`Layers`] for flags, or for no file at all.
pub fn load<Raw: DeserializeOwned + JsonSchema>(
    path: &Path,
    environment: impl IntoIterator<Item = (String, String)>,
    prefix: &str,
) -> Result<Loaded<Raw>, ConfigError> {
    Layers::new().file(path).environment(prefix, environment).load()
}

/// The environment of this process, without what is no text.
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// A configuration and the origins of its values.
pub struct Loaded<Raw> {
    /// The values.
    pub raw: Raw,
    tree: Node,
}

impl<Raw> fmt::Debug for Loaded<Raw> {
    // Values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loaded")
    }
}

impl<Raw> Loaded<Raw> {
    /// Where the value at `path` (`sources[0].kafka.group`) was written: `file:line`, a variable, a flag, or `default`.
    pub fn origin(&self, path: &str) -> String {
        self.written(path).map_or_else(|| "default".to_owned(), |node| node.origin.to_string())
    }

    /// An error of the program's own checks about the value at `path`.
    pub fn refuse(&self, path: &str, why: impl fmt::Display) -> ConfigError {
        let mut steps = steps(path);
        // Where nothing is written, the map that it would stand in is the nearest place to point at.
        while self.tree.at(&steps).is_none() && steps.pop().is_some() {}
        let origin = self.tree.at(&steps).map(|node| node.origin.to_string()).unwrap_or_default();
        Problem { origin, text: format!("`{path}`: {why}") }.into()
    }

    /// `effective` as YAML that can be read back, the origin of each value as a comment, secrets hidden.
    /// Its keys must be those of the file; what is not written anywhere counts as a default.
    pub fn print(&self, effective: &impl Serialize) -> String {
        let json = serde_json::to_string(effective).expect("configuration types have plain keys and no failing serializer");
        let values: print::Plain = serde_json::from_str(&json).expect("it was written by serde_json");
        print::print(&values, &self.tree)
    }

    fn written(&self, path: &str) -> Option<&Node> {
        self.tree.at(&steps(path)).filter(|node| !node.is_null())
    }
}

/// The JSON Schema of a configuration. Keys that the types do not name are not allowed.
pub fn schema<Raw: JsonSchema>() -> Json {
    let mut schema = schemars::schema_for!(Raw).to_value();
    close(&mut schema);
    schema
}

/// Forbids unknown keys in every struct, as the loader does. Where choices are flattened in, the schema cannot say it.
fn close(schema: &mut Json) {
    match schema {
        Json::Object(map) => {
            let flattened = ["anyOf", "oneOf", "allOf"].iter().any(|word| map.contains_key(*word));
            if map.get("properties").is_some_and(Json::is_object) && map.get("type").is_some_and(Json::is_string) && !flattened {
                map.entry("additionalProperties").or_insert(Json::Bool(false));
            }
            map.values_mut().for_each(close);
        }
        Json::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// Holds the tree against the schema: unknown keys become problems and leave the tree, so that no reader trips over them again;
/// where only text can stand, a plain scalar is text (`group: 007` stays `007`).
fn settle(node: &mut Node, shape: &Shape<'_>, root: &Shape<'_>, path: &str, problems: &mut Vec<Problem>) {
    let is_null = node.is_null();
    match &mut node.value {
        Value::Scalar { plain, .. } => *plain &= is_null || !shape.is_only_text(),
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                settle(item, &shape.element(), root, &join_index(path, index), problems);
            }
        }
        Value::Map(entries) => entries.retain_mut(|entry| {
            let below = join_key(path, &entry.key);
            let known = shape.key(&entry.key);
            match &known {
                Some(shape) => settle(&mut entry.node, shape, root, &below, problems),
                None => {
                    let text = format!("unknown key `{below}`{}", hint(&entry.key, shape, root));
                    problems.push(Problem { origin: entry.key_origin.to_string(), text });
                }
            }
            known.is_some()
        }),
    }
}

/// What was probably meant: a key of this place, the same key elsewhere, or else the keys that there are.
fn hint(written: &str, shape: &Shape<'_>, root: &Shape<'_>) -> String {
    if let Some(near) = shape::nearest(written, shape.keys()) {
        return format!(", did you mean `{near}`?");
    }
    if let Some(elsewhere) = root.find(written).first() {
        return format!(", it belongs at `{elsewhere}`");
    }
    let known: Vec<_> = shape.keys().into_iter().collect();
    if known.is_empty() { String::new() } else { format!(", known here: `{}`", known.join("`, `")) }
}
