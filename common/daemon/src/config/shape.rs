//! What the program knows about its own configuration, read from the JSON Schema of its types:
//! which keys there are, where lists and maps stand. Pure.

use std::collections::BTreeSet;

use serde_json::Value as Json;

/// Schemas that refer to themselves end here.
const DEPTH_MAX: usize = 24;

/// What may stand at one place: the alternatives of the schema, references followed.
#[derive(Debug, Clone)]
pub(super) struct Shape<'a> {
    root: &'a Json,
    alternatives: Vec<&'a Json>,
}

impl<'a> Shape<'a> {
    pub(super) fn of(root: &'a Json) -> Self {
        Self::from(root, [root])
    }

    fn from(root: &'a Json, schemas: impl IntoIterator<Item = &'a Json>) -> Self {
        let mut alternatives = Vec::new();
        for schema in schemas {
            follow(root, schema, 0, &mut alternatives);
        }
        Self { root, alternatives }
    }

    /// What stands below `key`; `None` if there is no such key.
    pub(super) fn key(&self, key: &str) -> Option<Self> {
        let named: Vec<_> = self.alternatives.iter().filter_map(|schema| schema.get("properties")?.get(key)).collect();
        if !named.is_empty() {
            return Some(Self::from(self.root, named));
        }
        let free: Vec<_> = self.alternatives.iter().filter_map(|schema| free_keys(schema)).collect();
        (!free.is_empty() || !self.is_map()).then(|| Self::from(self.root, free))
    }

    /// What the elements of a list are.
    pub(super) fn element(&self) -> Self {
        Self::from(self.root, self.alternatives.iter().filter_map(|schema| schema.get("items")))
    }

    /// The keys that are known here.
    pub(super) fn keys(&self) -> BTreeSet<&'a str> {
        let properties = self.alternatives.iter().filter_map(|schema| schema.get("properties")?.as_object());
        properties.flat_map(|map| map.keys().map(String::as_str)).collect()
    }

    pub(super) fn is_list(&self) -> bool {
        self.alternatives.iter().any(|schema| has_type(schema, "array"))
    }

    pub(super) fn is_map(&self) -> bool {
        self.alternatives.iter().any(|schema| has_type(schema, "object") || schema.get("properties").is_some())
    }

    /// True where text can stand and no number or truth value.
    pub(super) fn is_only_text(&self) -> bool {
        let may = |name: &str| self.alternatives.iter().any(|schema| has_type(schema, name));
        may("string") && !["number", "integer", "boolean"].into_iter().any(may)
    }

    /// The paths, below here, of keys named `key`.
    pub(super) fn find(&self, key: &str) -> Vec<String> {
        let mut found = Vec::new();
        self.find_below(key, "", 6, &mut found);
        found
    }

    fn find_below(&self, key: &str, path: &str, depth: usize, found: &mut Vec<String>) {
        for known in self.keys() {
            let below = super::tree::join_key(path, known);
            if known == key {
                found.push(below.clone());
            }
            if let Some(shape) = self.key(known).filter(|_| depth > 0) {
                let element = shape.element();
                shape.find_below(key, &below, depth - 1, found);
                element.find_below(key, &format!("{below}[]"), depth - 1, found);
            }
        }
    }
}

/// The schema of keys that the program does not name itself. A struct has none, unless it says so.
fn free_keys(schema: &Json) -> Option<&Json> {
    match (schema.get("additionalProperties"), schema.get("properties")) {
        (Some(Json::Bool(false)), _) | (None, Some(_)) => None,
        (Some(free), _) => Some(free),
        // `true` and `{}`: anything goes.
        (None, None) if schema.get("type").is_none() || has_type(schema, "object") => Some(&Json::Bool(true)),
        (None, None) => None,
    }
}

fn has_type(schema: &Json, name: &str) -> bool {
    match schema.get("type") {
        Some(Json::String(only)) => only == name,
        Some(Json::Array(several)) => several.iter().any(|one| one == name),
        _ => false,
    }
}

fn follow<'a>(root: &'a Json, schema: &'a Json, depth: usize, out: &mut Vec<&'a Json>) {
    if depth > DEPTH_MAX {
        return;
    }
    let referred = schema.get("$ref").and_then(Json::as_str).and_then(|name| root.pointer(name.strip_prefix('#')?));
    let several = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|word| schema.get(word)?.as_array()).flatten();
    let inner: Vec<_> = referred.into_iter().chain(several).collect();
    for next in &inner {
        follow(root, next, depth + 1, out);
    }
    // A mere choice allows nothing by itself; a struct with a flattened choice does.
    if inner.is_empty() || schema.get("properties").is_some() {
        out.push(schema);
    }
}

/// The known name that `written` was most likely meant to be.
pub(super) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '.'], "_");
    let wanted = plain(written);
    let distance = |name: &str| strsim::damerau_levenshtein(&wanted, &plain(name));
    let allowed = |name: &str| (name.len().max(written.len()) / 3).max(1);
    known
        .into_iter()
        .map(|name| (distance(name), name))
        .filter(|(distance, name)| *distance <= allowed(name))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_the_name_that_was_meant() {
        let known = ["max_bytes", "max_age", "url", "topics", "group"];
        let cases = [
            ("max_agee", Some("max_age")),
            ("maxage", Some("max_age")),
            ("max-age", Some("max_age")),
            ("topic", Some("topics")),
            ("ulr", Some("url")),
            ("gruop", Some("group")),
            ("MAX_BYTES", Some("max_bytes")),
            ("colour", None),
        ];
        for (written, expected) in cases {
            assert_eq!(nearest(written, known), expected, "{written}");
        }
    }
}
