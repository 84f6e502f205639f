//! What lies over the file: environment variables, flags, and `${env:NAME}` / `${file:/path}` in whole values.
//! Promises: a variable that fits nowhere is an error, never silently ignored.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Problem;
use super::shape::Shape;
use super::tree::{Entry, Node, Origin, Place, Value};
use super::yaml;

/// A secret in a file is short; whatever is larger is a slip such as `/dev/zero`.
const FETCHED_BYTES_MAX: u64 = 1 << 20;

/// One value from outside the file and the path it goes to, in steps as written.
pub(super) struct Layer {
    pub(super) steps: Vec<String>,
    pub(super) text: String,
    pub(super) place: Place,
}

/// The variables that begin with `prefix`, parents before children and list elements in the order of their numbers.
pub(super) fn from_environment(environment: &BTreeMap<String, String>, prefix: &str) -> Vec<Layer> {
    let mut layers: Vec<Layer> = environment
        .iter()
        .filter_map(|(name, text)| {
            let steps: Vec<String> = name.strip_prefix(prefix)?.split("__").map(str::to_owned).collect();
            Some(Layer { steps, text: text.clone(), place: Place::Variable(name.as_str().into()) })
        })
        .collect();
    let number = |step: &String| step.parse::<usize>().unwrap_or(usize::MAX);
    layers.sort_by_cached_key(|layer| layer.steps.iter().map(|step| (number(step), step.clone())).collect::<Vec<_>>());
    layers
}

/// Puts one value into the tree, making the maps and list elements on its way.
pub(super) fn apply(root: &mut Node, shape: &Shape<'_>, layer: &Layer) -> Result<(), Problem> {
    let origin = Origin::new(layer.place.clone());
    let refuse = |text: String| Problem { origin: origin.to_string(), text };
    let mut node = root;
    let mut shape = shape.clone();
    let mut path = String::new();
    for step in &layer.steps {
        if step.is_empty() {
            return Err(refuse("names must be joined by exactly two underscores".to_owned()));
        }
        if shape.is_list() || matches!(node.value, Value::List(_)) {
            let index = step.parse().map_err(|_| refuse(format!("`{path}` is a list; `{step}` is no number of an element")))?;
            shape = shape.element();
            node = element(node, index, &origin)
                .map_err(|len| refuse(format!("`{path}` has {len} elements; the next one to add is number {len}")))?;
            path = super::tree::join_index(&path, index);
        } else {
            let name = known_name(node, &shape, step);
            shape = shape.key(&name).unwrap_or_else(|| Shape::of(&serde_json::Value::Null));
            path = super::tree::join_key(&path, &name);
            node = entry(node, &name, &origin);
        }
    }
    *node = value(layer, &shape, origin)?;
    Ok(())
}

/// Names in variables are upper case by habit: the key that is meant is the known one, or the one in the file.
fn known_name(node: &Node, shape: &Shape<'_>, step: &str) -> String {
    let fold = |name: &str| name.to_ascii_lowercase().replace(['.', '-'], "_");
    let wanted = fold(step);
    let known = shape.keys().into_iter().find(|key| fold(key) == wanted).map(str::to_owned);
    let written = || match &node.value {
        Value::Map(entries) => entries.iter().map(|entry| &entry.key).find(|key| fold(key) == wanted).cloned(),
        _ => None,
    };
    known.or_else(written).unwrap_or_else(|| step.to_ascii_lowercase())
}

fn element<'a>(node: &'a mut Node, index: usize, origin: &Origin) -> Result<&'a mut Node, usize> {
    if !matches!(node.value, Value::List(_)) {
        *node = Node { value: Value::List(Vec::new()), origin: origin.clone() };
    }
    let Value::List(items) = &mut node.value else { unreachable!("it was made a list above") };
    if index == items.len() {
        items.push(Node::plain("", origin.clone()));
    }
    let len = items.len();
    items.get_mut(index).ok_or(len)
}

fn entry<'a>(node: &'a mut Node, key: &str, origin: &Origin) -> &'a mut Node {
    if !matches!(node.value, Value::Map(_)) {
        *node = Node::empty_map(origin.clone());
    }
    let Value::Map(entries) = &mut node.value else { unreachable!("it was made a map above") };
    let at = entries.iter().position(|entry| entry.key == key).unwrap_or_else(|| {
        entries.push(Entry { key: key.to_owned(), key_origin: origin.clone(), node: Node::plain("", origin.clone()) });
        entries.len() - 1
    });
    &mut entries[at].node
}

/// The value of a layer. Only where a list or map belongs is it read as YAML; elsewhere it is one scalar, taken as it stands
/// (unless quoted), so that a password may hold `#`, `: ` or `[`.
fn value(layer: &Layer, shape: &Shape<'_>, origin: Origin) -> Result<Node, Problem> {
    let text = layer.text.trim();
    let quoted = text.len() >= 2 && ['"', '\''].iter().any(|quote| text.starts_with(*quote) && text.ends_with(*quote));
    let collection = text.starts_with(['[', '{']) && (shape.is_list() || shape.is_map());
    if quoted || collection {
        return yaml::parse(text, "", Some(layer.place.clone()));
    }
    Ok(Node::plain(&layer.text, origin))
}

/// Replaces every scalar that is wholly `${env:NAME}` or `${file:/path}`. `$${...}` stands for `${...}` itself.
pub(super) fn interpolate(node: &mut Node, environment: &BTreeMap<String, String>, problems: &mut Vec<Problem>) {
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| interpolate(item, environment, problems)),
        Value::Map(entries) => entries.iter_mut().for_each(|entry| interpolate(&mut entry.node, environment, problems)),
        Value::Scalar { text, .. } => match fetch(text, environment) {
            Ok(None) => {}
            Ok(Some(fetched)) => {
                node.origin.through = fetched.through;
                node.origin.secret = fetched.secret;
                node.value = Value::Scalar { text: fetched.text, plain: fetched.plain };
            }
            Err(why) => problems.push(Problem { origin: node.origin.to_string(), text: why }),
        },
    }
}

struct Fetched {
    text: String,
    plain: bool,
    secret: bool,
    through: Option<Arc<str>>,
}

fn fetch(text: &str, environment: &BTreeMap<String, String>) -> Result<Option<Fetched>, String> {
    if let Some(escaped) = text.strip_prefix('$').filter(|rest| rest.starts_with("${")) {
        return Ok(Some(Fetched { text: escaped.to_owned(), plain: false, secret: false, through: None }));
    }
    let whole = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).filter(|inner| !inner.contains("${"));
    let Some((kind, name)) = whole.and_then(|inner| inner.split_once(':')) else {
        let partial = text.contains("${env:") || text.contains("${file:");
        return if partial {
            Err("`${env:...}` and `${file:...}` can only stand for a whole value".to_owned())
        } else {
            Ok(None)
        };
    };
    let (text, secret) = match kind {
        "env" => (environment.get(name).cloned().ok_or_else(|| format!("variable `{name}` is not set"))?, false),
        "file" => (read_small(name)?, true),
        _ => return Err(format!("`${{{kind}:...}}` is not known; there are `${{env:NAME}}` and `${{file:/path}}`")),
    };
    Ok(Some(Fetched { text, plain: true, secret, through: Some(format!("${{{kind}:{name}}}").into()) }))
}

/// The text of a file without the line end that editors add.
pub(super) fn read_small(path: &str) -> Result<String, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| format!("file `{path}` cannot be read: {error}"))?;
    file.take(FETCHED_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| format!("file `{path}` cannot be read: {error}"))?;
    if text.len() as u64 > FETCHED_BYTES_MAX {
        return Err(format!("file `{path}` is larger than {FETCHED_BYTES_MAX} bytes"));
    }
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(text)
}
