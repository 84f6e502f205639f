//! What a user may set of RabbitMQ, and what is refused before any connection is made.
//!
//! Never: reads files or the environment; secrets come in as values and are not printed.

use std::fmt;

use tapedeck_common::bus::{Replayed, Start};

use crate::address::HostPort;

/// The longest name that AMQP carries.
const NAME_BYTES_MAX: usize = 255;

/// Something about the settings that cannot work or must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {why}")]
pub struct SettingsError {
    /// The setting, as the configuration names it.
    pub name: String,
    /// What is wrong, and what to do instead.
    pub why: String,
}

impl SettingsError {
    fn new(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { name: name.into(), why: why.into() }
    }
}

/// Who we are to the broker.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// How a cluster is reached, and as what it is known.
#[derive(Debug, Clone)]
pub struct Place {
    /// Some nodes.
    pub hosts: Vec<HostPort>,
    /// The virtual host.
    pub vhost: String,
    /// Who we are.
    pub credentials: Credentials,
    /// True if passwords and events may cross a network as they are.
    pub insecure: bool,
    /// The cluster's name in the archive; what the server calls itself, if it is not set.
    pub cluster: Option<String>,
}

/// What happens if a stream is found shorter than the archive, beginning at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRecreated {
    /// Its lane stands still until somebody decides.
    #[default]
    Halt,
    /// It is taken for a stream made anew, and archived from its first event as the next generation.
    Begin,
}

/// How much the broker may hand over beyond what was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// Events.
    pub events: u16,
    /// Their bytes, by the sizes of late.
    pub bytes: usize,
}

/// A stream: a log with offsets, which many read.
#[derive(Debug, Clone)]
pub struct StreamSettings {
    /// Its name; also the topic of its events.
    pub name: String,
    /// Where it begins if the archive has never seen it.
    pub start: Start,
    /// What happens if it is found shorter than the archive.
    pub on_recreated: OnRecreated,
}

/// A queue: what is acknowledged leaves it.
#[derive(Debug, Clone)]
pub struct QueueSettings {
    /// Its name; also the topic of its events.
    pub name: String,
    /// Somebody vouches for it that a message which comes back often is not dropped.
    pub delivery_limit_accepted: bool,
}

/// What is read.
#[derive(Debug, Clone)]
pub enum Inflow {
    /// A stream.
    Stream(StreamSettings),
    /// A queue.
    Queue(QueueSettings),
}

impl Inflow {
    /// The name of the stream or queue.
    pub fn name(&self) -> &str {
        match self {
            Self::Stream(stream) => &stream.name,
            Self::Queue(queue) => &queue.name,
        }
    }

    const fn word(&self) -> &'static str {
        match self {
            Self::Stream(_) => "stream",
            Self::Queue(_) => "queue",
        }
    }
}

/// One stream or queue.
#[derive(Debug, Clone)]
pub struct RabbitSettings {
    /// The cluster.
    pub place: Place,
    /// What is read of it.
    pub inflow: Inflow,
    /// What happens with copies that a replay published.
    pub replayed: Replayed,
    /// How much is on the way to us.
    pub prefetch: Prefetch,
    /// What the connection is called in the broker's own pages.
    pub title: String,
}

impl RabbitSettings {
    /// Checks everything that can be checked without a broker.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.place.check()?;
        let (name, word) = (self.inflow.name(), self.inflow.word());
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(SettingsError::new(word, format!("name the {word}, in 1 to 255 bytes")));
        }
        if self.prefetch.events == 0 {
            return Err(SettingsError::new(
                "prefetch.events",
                "must be above zero: without a limit the broker sends all that it has",
            ));
        }
        if self.prefetch.bytes == 0 {
            return Err(SettingsError::new("prefetch.bytes", "must be above zero"));
        }
        Ok(())
    }
}

impl Place {
    fn check(&self) -> Result<(), SettingsError> {
        if self.hosts.is_empty() {
            return Err(SettingsError::new("hosts", "name at least one node as host:port"));
        }
        if self.vhost.is_empty() || self.vhost.len() > NAME_BYTES_MAX {
            return Err(SettingsError::new("vhost", "must have 1 to 255 bytes; the one that every broker has is /"));
        }
        if self.cluster.as_ref().is_some_and(String::is_empty) {
            return Err(SettingsError::new("cluster", "must not be empty; left out, the server says what it is called"));
        }
        if self.credentials.user.is_empty() {
            return Err(SettingsError::new("user", "name the user"));
        }
        let Some(far) = self.hosts.iter().find(|host| !host.is_loopback()) else { return Ok(()) };
        if self.credentials.user == "guest" {
            return Err(SettingsError::new("user", "guest works on loopback only; make a user"));
        }
        if !self.insecure {
            let why = format!(
                "the way to {far} is not encrypted and leaves this machine: with insecure: true the password and the events \
                 cross the network as they are"
            );
            return Err(SettingsError::new("hosts", why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str) -> Inflow {
        Inflow::Stream(StreamSettings { name: name.to_owned(), start: Start::Earliest, on_recreated: OnRecreated::Halt })
    }

    fn settings(change: impl FnOnce(&mut RabbitSettings)) -> RabbitSettings {
        let mut settings = RabbitSettings {
            place: Place {
                hosts: vec!["localhost".parse().expect("a host")],
                vhost: "/".to_owned(),
                credentials: Credentials { user: "guest".to_owned(), password: "hunter2".to_owned() },
                insecure: false,
                cluster: None,
            },
            inflow: stream("orders"),
            replayed: Replayed::Skip,
            prefetch: Prefetch { events: 1_000, bytes: 1 << 20 },
            title: String::new(),
        };
        change(&mut settings);
        settings
    }

    #[test]
    fn what_cannot_work_is_named() {
        type Change = fn(&mut RabbitSettings);
        let far = |settings: &mut RabbitSettings| settings.place.hosts = vec!["rabbit-1".parse().expect("a host")];
        let queue = |s: &mut RabbitSettings| {
            s.inflow = Inflow::Queue(QueueSettings { name: String::new(), delivery_limit_accepted: true });
        };
        let cases: [(Change, &str); 10] = [
            (queue, "queue: name the queue"),
            (|s| s.place.hosts.clear(), "hosts: name at least one"),
            (|s| s.place.vhost.clear(), "vhost: must have"),
            (|s| s.place.cluster = Some(String::new()), "cluster: must not be empty"),
            (|s| s.place.credentials.user.clear(), "user: name the user"),
            (far, "user: guest works on loopback only"),
            (|s| s.inflow = stream(""), "stream: name the stream"),
            (|s| s.inflow = stream(&"x".repeat(256)), "stream: name the stream"),
            (|s| s.prefetch.events = 0, "prefetch.events: must be above zero"),
            (|s| s.prefetch.bytes = 0, "prefetch.bytes: must be above zero"),
        ];
        settings(|_| ()).check().expect("this one works");
        for (change, text) in cases {
            let error = settings(change).check().expect_err(text).to_string();
            assert!(error.starts_with(text), "{error}");
        }
    }

    #[test]
    fn a_password_leaves_the_machine_only_if_somebody_said_so() {
        let far = |insecure| {
            settings(|settings| {
                settings.place.hosts.push("10.0.0.1:5672".parse().expect("a host"));
                settings.place.credentials.user = "archiver".to_owned();
                settings.place.insecure = insecure;
            })
        };
        let error = far(false).check().expect_err("plaintext").to_string();
        assert!(error.starts_with("hosts: the way to 10.0.0.1:5672 is not encrypted"), "{error}");
        far(true).check().expect("somebody said so");
        assert!(!format!("{:?}", far(true)).contains("hunter2"));
    }
}
