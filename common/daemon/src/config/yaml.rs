//! YAML text to a tree. Anchors and aliases work; tags, merge keys and further documents are refused by line.
//! Promises: bounded work whatever the text (an alias bomb meets [`NODES_MAX`]); never a panic.

use std::collections::BTreeMap;
use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle};

use super::Problem;
use super::tree::{Entry, Node, Origin, Place, Value};

/// Far more than a configuration needs, far less than memory holds.
const NODES_MAX: usize = 100_000;

/// Deeper than any configuration; the parser alone would allow 255, and the readers below recurse.
const DEPTH_MAX: usize = 64;

/// Reads one document. Lines count from 1 within `file`; with a `place` the whole text counts as that one place.
pub(super) fn parse(text: &str, file: &str, place: Option<Place>) -> Result<Node, Problem> {
    let mut reader = Reader {
        text,
        events: Parser::new_from_str(text),
        file: file.into(),
        place,
        anchors: BTreeMap::new(),
        nodes: 0,
        line: 1,
    };
    reader.document()
}

struct Reader<'a> {
    text: &'a str,
    events: Parser<'a, granit_parser::StrInput<'a>>,
    file: Arc<str>,
    place: Option<Place>,
    anchors: BTreeMap<usize, (Node, usize)>,
    nodes: usize,
    line: usize,
}

impl<'a> Reader<'a> {
    fn document(&mut self) -> Result<Node, Problem> {
        let mut document: Option<Node> = None;
        loop {
            match self.next()? {
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                _ if document.is_some() => {
                    return Err(self.refuse("a second document begins here; a configuration is one document"));
                }
                event => document = Some(self.node(event, 0)?),
            }
        }
        Ok(document.unwrap_or_else(|| Node::plain("", self.origin())))
    }

    fn next(&mut self) -> Result<Event<'a>, Problem> {
        match self.events.next() {
            Some(Ok((event, span))) => {
                self.line = span.start.line();
                Ok(event)
            }
            Some(Err(error)) => {
                self.line = error.marker().line();
                let line = self.text.lines().nth(self.line.saturating_sub(1)).unwrap_or_default();
                // The slip that interpolation invites: a bare `{` begins a map there.
                let hint = if line.contains("${") { "; inside of `{ }` and `[ ]` write \"${...}\" with quotes" } else { "" };
                Err(self.refuse(&format!("this is not YAML: {}{hint}", error.info())))
            }
            None => Ok(Event::StreamEnd),
        }
    }

    fn node(&mut self, event: Event<'a>, depth: usize) -> Result<Node, Problem> {
        if depth > DEPTH_MAX {
            return Err(self.refuse("nested too deeply"));
        }
        self.count(1)?;
        let origin = self.origin();
        let before = self.nodes;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.is_some())?;
                (Value::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_tag(tag.is_some())?;
                (Value::List(self.list(depth)?), anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_tag(tag.is_some())?;
                (Value::Map(self.map(depth)?), anchor)
            }
            Event::Alias(anchor) => return self.alias(anchor),
            _ => return Err(self.refuse("this cannot stand here")),
        };
        let node = Node { value, origin };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before + 1));
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Problem> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(items),
                event => items.push(self.node(event, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let key_event = self.next()?;
            let key_origin = self.origin();
            let key = match key_event {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(text, _, _, None) => text.into_owned(),
                _ => return Err(self.refuse("a key must be a plain word")),
            };
            if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                return Err(self.refuse(&format!("key `{key}` is written twice, first at {}", first.key_origin)));
            }
            let event = self.next()?;
            let node = self.node(event, depth + 1)?;
            entries.push(Entry { key, key_origin, node });
        }
    }

    fn alias(&mut self, anchor: usize) -> Result<Node, Problem> {
        let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
            return Err(self.refuse("this alias stands inside of what it names"));
        };
        self.count(size)?;
        Ok(node)
    }

    fn count(&mut self, nodes: usize) -> Result<(), Problem> {
        self.nodes += nodes;
        if self.nodes > NODES_MAX { Err(self.refuse("more values than a configuration can hold")) } else { Ok(()) }
    }

    fn refuse_tag(&self, tagged: bool) -> Result<(), Problem> {
        if tagged {
            Err(self.refuse("tags such as `!x` are not used here; quote the value if it begins with `!`"))
        } else {
            Ok(())
        }
    }

    fn origin(&self) -> Origin {
        Origin::new(self.place.clone().unwrap_or_else(|| Place::File { file: self.file.clone(), line: self.line }))
    }

    fn refuse(&self, why: &str) -> Problem {
        Problem { origin: self.origin().to_string(), text: why.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_yaml_is_refused_by_line() {
        let cases = [
            ("a: 1\nb: [1, 2\nc: 3\n", "c.yaml:", "this is not YAML"),
            ("a: { b: ${env:X} }\n", "c.yaml:1", "with quotes"),
            ("a: 1\na: 2\n", "c.yaml:2", "first at c.yaml:1"),
            ("a: 1\n---\nb: 2\n", "c.yaml:3", "second document"),
            ("a: !secret x\n", "c.yaml:1", "tags"),
            ("? [a, b]\n: 1\n", "c.yaml:1", "a key must be a plain word"),
            ("a: *nothing\n", "c.yaml:1", "not YAML"),
            ("a: &x [*x]\n", "c.yaml:1", "inside of what it names"),
        ];
        for (text, origin, why) in cases {
            let problem = parse(text, "c.yaml", None).expect_err(text);
            assert!(problem.origin.starts_with(origin), "{text}: {problem:?}");
            assert!(problem.text.contains(why), "{text}: {problem:?}");
        }
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(", "));
        }
        assert!(parse(&text, "c.yaml", None).expect_err("bomb").text.contains("more values"));
    }

    #[test]
    fn values_know_their_lines() {
        let tree = parse("a:\n  - x\n  - b: |\n      text\n    c: 3\n", "c.yaml", None).expect("yaml");
        let at = |path: &str| tree.at(&super::super::tree::steps(path)).expect(path).origin.to_string();
        assert_eq!((at("a[0]"), at("a[1].c")), ("c.yaml:2".to_owned(), "c.yaml:5".to_owned()));
    }
}
