//! The rules that put topics into tables. Pure.

use std::sync::Arc;

use super::raw::RawTableRule;
use super::selector::Selector;

/// Which table a topic goes to.
#[derive(Debug, Clone, Default)]
pub struct TableRules(Vec<(Selector, Arc<str>)>);

impl TableRules {
    /// From the configuration; an error names the rule by its index.
    pub fn parse(raw: &[RawTableRule]) -> Result<Self, (usize, String)> {
        let rules = raw.iter().enumerate().map(|(index, rule)| {
            if rule.table.is_empty() {
                return Err((index, "table: must not be empty".to_owned()));
            }
            let topics = Selector::parse(&rule.topics).map_err(|why| (index, why))?;
            Ok((topics, Arc::from(rule.table.as_str())))
        });
        rules.collect::<Result<_, _>>().map(Self)
    }

    /// The table of the first rule that matches; without one the topic has a table of its own name.
    pub fn table_of(&self, topic: &str) -> Arc<str> {
        self.rule_of(topic).unwrap_or_else(|| Arc::from(topic))
    }

    /// True if a rule puts the topic into a table.
    pub fn has_rule(&self, topic: &str) -> bool {
        self.rule_of(topic).is_some()
    }

    fn rule_of(&self, topic: &str) -> Option<Arc<str>> {
        self.0.iter().find(|(topics, _)| topics.matches(topic)).map(|(_, table)| Arc::clone(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_names_the_table() {
        let rule = |topics: &str, table: &str| RawTableRule { topics: topics.to_owned(), table: table.to_owned() };
        let rules = TableRules::parse(&[rule("^audit\\..+$", "audit"), rule("^.+\\.low$", "small")]).expect("good rules");
        for (topic, table) in
            [("audit.a", "audit"), ("audit.low", "audit"), ("x.low", "small"), ("orders", "orders"), ("my.audit.a", "my.audit.a")]
        {
            assert_eq!(&*rules.table_of(topic), table);
        }
    }
}
