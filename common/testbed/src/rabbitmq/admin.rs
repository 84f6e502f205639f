//! Queues, exchanges, users and connections of a real broker, from a test's point of view. Blocking, by the management API.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::ask::{ask, path};
use crate::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(30);

/// What a queue is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueKind {
    /// On one node.
    Classic,
    /// Replicated by Raft.
    Quorum,
    /// A log that many read.
    Stream,
}

/// How much lies in a queue, as the broker's statistics see it: up to a second late, five seconds for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Nobody has it.
    pub ready: u64,
    /// Some consumer has it.
    pub unacked: u64,
}

/// The management of one broker, with one of its vhosts in view.
#[derive(Debug, Clone)]
pub struct RabbitAdmin {
    address: SocketAddr,
    vhost: String,
}

impl RabbitAdmin {
    /// For the management API at `address`; looks at the vhost `/`.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, vhost: "/".to_owned() }
    }

    /// Makes a vhost, if there is none of this name, and looks at it from then on. Its URI ends in its percent-encoded name.
    pub fn in_vhost(mut self, name: &str) -> Result<Self> {
        self.put(&["vhosts", name], json!({}))?;
        self.vhost = name.to_owned();
        self.permit(super::RabbitServer::USER, ".*", ".*", ".*")?;
        Ok(self)
    }

    /// Makes a durable queue or stream. `arguments` is an object, `{"x-max-length": 5}` for example.
    pub fn declare(&self, queue: &str, kind: QueueKind, arguments: Value) -> Result<()> {
        let kind = match kind {
            QueueKind::Classic => "classic",
            QueueKind::Quorum => "quorum",
            QueueKind::Stream => "stream",
        };
        let mut arguments = arguments;
        arguments["x-queue-type"] = kind.into();
        self.put(&["queues", &self.vhost, queue], json!({"durable": true, "auto_delete": false, "arguments": arguments}))
    }

    /// Makes a durable exchange; `kind` is `topic`, `direct`, `fanout` or `headers`.
    pub fn declare_exchange(&self, exchange: &str, kind: &str, arguments: Value) -> Result<()> {
        self.put(&["exchanges", &self.vhost, exchange], json!({"type": kind, "durable": true, "arguments": arguments}))
    }

    /// Lets what is published to `exchange` with a fitting key go to `queue` too.
    pub fn bind(&self, exchange: &str, queue: &str, routing_key: &str) -> Result<()> {
        let names = ["bindings", &self.vhost, "e", exchange, "q", queue];
        self.ask("POST", &names, json!({"routing_key": routing_key, "arguments": {}})).map(drop)
    }

    /// Sets a policy for the queues whose names fit the regular expression `pattern`.
    pub fn set_policy(&self, name: &str, pattern: &str, definition: Value) -> Result<()> {
        let policy = json!({"pattern": pattern, "definition": definition, "apply-to": "queues"});
        self.put(&["policies", &self.vhost, name], policy)
    }

    /// Makes a user without any rights, or gives one a new password.
    pub fn make_user(&self, name: &str, password: &str) -> Result<()> {
        self.put(&["users", name], json!({"password": password, "tags": ""}))
    }

    /// Sets what a user may do in the vhost: three regular expressions over names.
    pub fn permit(&self, user: &str, configure: &str, write: &str, read: &str) -> Result<()> {
        let rights = json!({"configure": configure, "write": write, "read": read});
        self.put(&["permissions", &self.vhost, user], rights)
    }

    /// The broker's version.
    pub fn version(&self) -> Result<String> {
        self.text(&["overview"], "rabbitmq_version")
    }

    /// What the cluster calls itself.
    pub fn cluster_name(&self) -> Result<String> {
        self.text(&["cluster-name"], "name")
    }

    /// Gives the cluster another name.
    pub fn rename_cluster(&self, name: &str) -> Result<()> {
        self.put(&["cluster-name"], json!({"name": name}))
    }

    /// All that management knows of a queue; `None` when there is no such queue.
    pub fn queue(&self, queue: &str) -> Result<Option<Value>> {
        self.ask("GET", &["queues", &self.vhost, queue], Value::Null)
    }

    /// How much lies in a queue. Waits for the first statistics of a new one.
    pub fn depth(&self, queue: &str) -> Result<Depth> {
        let mut depth = None;
        wait_until(&format!("statistics of queue {queue}"), LIMIT, || {
            let seen = self.queue(queue)?.unwrap_or_default();
            let counts = (seen["messages_ready"].as_u64(), seen["messages_unacknowledged"].as_u64());
            depth = counts.0.zip(counts.1).map(|(ready, unacked)| Depth { ready, unacked });
            Ok(depth.is_some())
        })?;
        depth.context("there are statistics")
    }

    /// The broker's names of the open connections whose own name begins with `prefix`.
    pub fn connections(&self, prefix: &str) -> Result<Vec<String>> {
        let all = self.ask("GET", &["connections"], Value::Null)?.unwrap_or_default();
        let ours = |one: &&Value| {
            let own = one["client_properties"]["connection_name"].as_str();
            own.is_some_and(|own| own.starts_with(prefix))
        };
        let names = all.as_array().into_iter().flatten().filter(ours).filter_map(|one| one["name"].as_str());
        Ok(names.map(str::to_owned).collect())
    }

    /// Has the broker close these connections, as an operator would; waits until there is one. Returns how many there were.
    pub fn close_connections(&self, prefix: &str) -> Result<usize> {
        let mut names = Vec::new();
        wait_until(&format!("a connection named {prefix}.."), LIMIT, || {
            names = self.connections(prefix)?;
            Ok(!names.is_empty())
        })?;
        let mut closed = 0;
        for name in &names {
            closed += usize::from(self.ask("DELETE", &["connections", name], Value::Null)?.is_some());
        }
        Ok(closed)
    }

    /// Deletes a queue or stream with all that lies in it.
    pub fn delete(&self, queue: &str) -> Result<()> {
        self.gone(&["queues", &self.vhost, queue])
    }

    /// Deletes an exchange and its bindings.
    pub fn delete_exchange(&self, exchange: &str) -> Result<()> {
        self.gone(&["exchanges", &self.vhost, exchange])
    }

    fn gone(&self, names: &[&str]) -> Result<()> {
        match self.ask("DELETE", names, Value::Null)? {
            Some(_) => Ok(()),
            None => bail!("there is no {}", names.join(" ")),
        }
    }

    fn text(&self, names: &[&str], field: &str) -> Result<String> {
        let answer = self.ask("GET", names, Value::Null)?.unwrap_or_default();
        Ok(answer[field].as_str().with_context(|| format!("{} without {field}", names.join(" ")))?.to_owned())
    }

    fn put(&self, names: &[&str], body: Value) -> Result<()> {
        let answer = self.ask("PUT", names, body)?;
        answer.with_context(|| format!("there is no {}", names.join(" "))).map(drop)
    }

    fn ask(&self, method: &str, names: &[&str], body: Value) -> Result<Option<Value>> {
        ask(self.address, method, &path(names), &body)
    }
}
