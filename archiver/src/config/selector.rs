//! An entry of a list of topics, whatever bus they are on: a name, or a `^pattern$`. Pure.

use regex::Regex;

/// One entry.
#[derive(Debug, Clone)]
pub(super) enum Selector {
    /// This topic.
    Name(String),
    /// Every topic whose whole name matches.
    Pattern(Regex),
}

impl Selector {
    /// Reads one entry. A pattern begins with `^` and ends with `$`: half a name never matches by accident.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let refused = |why: &str| Err(format!("topics: {text}: {why}"));
        let Some(inner) = text.strip_prefix('^') else {
            return if text.is_empty() { refused("must not be empty") } else { Ok(Self::Name(text.to_owned())) };
        };
        let Some(inner) = inner.strip_suffix('$') else {
            return refused("a pattern must end with $, so that it matches whole names");
        };
        match Regex::new(&format!("^(?:{inner})$")) {
            Ok(pattern) => Ok(Self::Pattern(pattern)),
            Err(error) => refused(&format!("no regular expression: {error}")),
        }
    }

    /// True if the entry means this topic.
    pub(super) fn matches(&self, topic: &str) -> bool {
        match self {
            Self::Name(name) => name == topic,
            Self::Pattern(pattern) => pattern.is_match(topic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_any_text_and_patterns_match_whole_names() {
        let matches = |entry: &str, topic: &str| Selector::parse(entry).expect(entry).matches(topic);
        for (entry, topic, expected) in [
            ("orders of today", "orders of today", true),
            ("a.c", "abc", false),
            ("^a.c$", "abc", true),
            ("^a|b$", "ab", false),
            ("^a.+$", "xab", false),
            ("^.$", "ü", true),
        ] {
            assert_eq!(matches(entry, topic), expected, "{entry} {topic}");
        }
        for bad in ["", "^a", "^($"] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
    }
}
