//! The names of sources: `rabbitmq-stream/<cluster>/<vhost>/<stream>/<generation>`, and `rabbitmq/<cluster>/<vhost>/<queue>`.
//!
//! Promise: the text splits in one way only, so what may hold a `/` (a virtual host is usually called that) is escaped.

use std::fmt::Write as _;

const STREAMS: &str = "rabbitmq-stream";

/// A stream on a cluster, as the archive names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamName {
    cluster: String,
    rest: String,
}

impl StreamName {
    pub(crate) fn new(cluster: &str, vhost: &str, stream: &str) -> Self {
        Self { cluster: escape(cluster), rest: format!("{}/{}", escape(vhost), escape(stream)) }
    }

    /// Its name as a source. A stream made anew under the same name is the next generation.
    pub(crate) fn source(&self, generation: u32) -> String {
        format!("{STREAMS}/{}/{}/{generation}", self.cluster, self.rest)
    }

    /// The cluster, and the generation, if `source` is a stream of this name on any cluster.
    fn same_name<'s>(&self, source: &'s str) -> Option<(&'s str, u32)> {
        let (cluster, rest) = source.strip_prefix(STREAMS)?.strip_prefix('/')?.split_once('/')?;
        let generation = rest.strip_prefix(self.rest.as_str())?.strip_prefix('/')?;
        Some((cluster, generation.parse().ok()?))
    }

    /// The newest generation among these sources.
    pub(crate) fn newest<'s>(&self, sources: impl Iterator<Item = &'s str>) -> Option<u32> {
        let of_ours = sources.filter_map(|source| self.same_name(source)).filter(|(cluster, _)| *cluster == self.cluster);
        of_ours.map(|(_, generation)| generation).max()
    }

    /// Another cluster under whose name a stream of this name was archived, escaped as it stands there.
    pub(crate) fn other_cluster<'s>(&self, mut sources: impl Iterator<Item = &'s str>) -> Option<&'s str> {
        sources.find_map(|source| self.same_name(source).map(|(cluster, _)| cluster).filter(|cluster| *cluster != self.cluster))
    }
}

/// The source of a queue. Each of its lanes is what one channel was handed over.
pub(crate) fn queue_source(cluster: &str, vhost: &str, queue: &str) -> String {
    format!("rabbitmq/{}/{}/{}", escape(cluster), escape(vhost), escape(queue))
}

/// `/`, `%` and control bytes become `%XX`.
fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for c in name.chars() {
        if c == '/' || c == '%' || c.is_ascii_control() {
            let _ = write!(escaped, "%{:02X}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_in_one_way() {
        assert_eq!(StreamName::new("prod", "/", "orders").source(0), "rabbitmq-stream/prod/%2F/orders/0");
        assert_eq!(queue_source("prod", "/", "a/b"), "rabbitmq/prod/%2F/a%2Fb");
        assert_ne!(StreamName::new("c", "a/b", "d").source(0), StreamName::new("c", "a", "b/d").source(0));
        assert_eq!(StreamName::new("50%", "\n", "ü").source(7), "rabbitmq-stream/50%25/%0A/ü/7");
    }

    #[test]
    fn generations_and_renamed_clusters_are_found_by_name() {
        let name = StreamName::new("prod", "/", "orders");
        let sources = [
            "kafka/c/t/9",
            "rabbitmq-stream/prod/%2F/orders/0",
            "rabbitmq-stream/prod/%2F/orders/2",
            "rabbitmq-stream/prod/%2F/orders-eu/5",
            "rabbitmq-stream/prod/%2F/orders/x",
            "rabbitmq-stream/test/%2F/orders/8",
        ];
        assert_eq!(name.newest(sources.into_iter()), Some(2));
        assert_eq!(name.newest(sources.into_iter().take(1)), None);
        assert_eq!(name.other_cluster(sources.into_iter()), Some("test"));
        assert_eq!(name.other_cluster(sources.into_iter().take(5)), None);
    }
}
