//! The checked configuration: valid types, no leftover options. Built from [`RawConfig`]; components are built from it in `wiring`.

mod bus;
mod maintain;
mod raw;
mod rules;
mod selector;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tapedeck_common::limits;
use tapedeck_common::time::Timestamp;

pub use bus::BusSettings;
pub use maintain::Maintenance;
pub use raw::{
    RawArchive, RawConfig, RawDeliveryLimit, RawGroupProtocol, RawKafka, RawOnGap, RawOnRecreated, RawPrefetch, RawRabbit,
    RawReplayed, RawSource, RawTableRule,
};
pub use rules::TableRules;

use crate::pipeline::OnGap;
use crate::seal::SealPolicy;

/// A commented file that works, for `archiver config example`.
pub const EXAMPLE: &str = include_str!("example.yaml");

/// The default of `admin.listen`.
const LISTEN_DEFAULT: &str = "127.0.0.1:9464";

/// What the file says and the program cannot do.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}")]
pub struct BadConfig {
    /// The path of the value, as `config print` shows it.
    pub path: String,
    /// What is wrong, and the mend.
    pub what: String,
}

fn bad(path: impl Into<String>, what: impl Into<String>) -> BadConfig {
    BadConfig { path: path.into(), what: what.into() }
}

/// One inflow.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name in logs and metrics.
    pub name: String,
    /// The topics, patterns or streams, as they are written.
    pub topics: Vec<String>,
    /// The bus and what is read of it.
    pub bus: BusSettings,
    /// What happens where the bus lost events.
    pub on_gap: OnGap,
    /// Which table a topic goes to.
    pub tables: TableRules,
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the archive lies.
    pub archive: RawArchive,
    /// What is archived.
    pub sources: Vec<Source>,
    /// When a batch is closed.
    pub seal: SealPolicy,
    /// From the first signal to the end.
    pub grace: Duration,
    /// Bytes for events on their way.
    pub memory_budget: usize,
    /// Where the admin server listens.
    pub listen: SocketAddr,
    /// The file with its token.
    pub token_file: Option<PathBuf>,
    /// What is done beside the archiving.
    pub maintain: Maintenance,
}

impl Config {
    /// Checks every value, and values against each other. `now` is what relative times are relative to.
    pub fn check(raw: RawConfig, now: Timestamp) -> Result<Self, BadConfig> {
        if raw.sources.is_empty() {
            return Err(bad("sources", "nothing to archive: add at least one source"));
        }
        let listen = raw.admin.listen.as_deref().unwrap_or(LISTEN_DEFAULT);
        let (memory, seal) = (memory_budget(&raw)?, seal_policy(&raw)?);
        let config = Self {
            seal,
            grace: raw.shutdown.grace.map_or(limits::SHUTDOWN_GRACE_DEFAULT, |grace| grace.get()),
            memory_budget: memory,
            maintain: Maintenance::check(&raw.maintain, memory)?,
            listen: listen
                .parse()
                .map_err(|_| bad("admin.listen", format!("`{listen}` is no address:port, for example {LISTEN_DEFAULT}")))?,
            token_file: raw.admin.token_file.map(PathBuf::from),
            archive: raw.archive,
            sources: sources(raw.sources, raw.replayed, memory, seal.age_max, now)?,
        };
        if config.grace.is_zero() {
            return Err(bad("shutdown.grace", "must be above zero"));
        }
        Ok(config)
    }

    /// What is allowed and yet may surprise.
    pub fn warnings(&self, memory_limit: Option<u64>) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(limit) = memory_limit
            && self.memory_budget as u64 > limit / 10 * 6
        {
            warnings.push(format!(
                "memory.budget is {} bytes, above 60 % of this container's limit of {limit} bytes: the process needs room beside it",
                self.memory_budget
            ));
        }
        if self.grace < limits::REVOKE_GRACE {
            warnings.push(
                "shutdown.grace is below 10s: a slow store will end each shutdown with abandoned work (nothing is lost)"
                    .to_owned(),
            );
        }
        if self.seal.age_max > Duration::from_secs(3600) {
            warnings.push("seal.max_age is above 1h: that long an event may be on the bus only".to_owned());
        }
        warnings.extend(self.maintain.warnings());
        for (index, source) in self.sources.iter().enumerate() {
            let earlier = self.sources[..index].iter().map(|source| &source.bus);
            warnings.extend(source.bus.warnings(&format!("sources[{index}]"), earlier, self.memory_budget));
        }
        warnings
    }
}

fn seal_policy(raw: &RawConfig) -> Result<SealPolicy, BadConfig> {
    let bytes_max = raw.seal.max_bytes.map_or(limits::SEAL_BYTES_DEFAULT, |size| size.bytes());
    let age_max = raw.seal.max_age.map_or(limits::SEAL_AGE_DEFAULT, |age| age.get());
    if bytes_max == 0 {
        return Err(bad("seal.max_bytes", "must be above zero"));
    }
    if age_max.is_zero() {
        return Err(bad("seal.max_age", "must be above zero"));
    }
    Ok(SealPolicy { bytes_max, age_max })
}

fn memory_budget(raw: &RawConfig) -> Result<usize, BadConfig> {
    let bytes = raw.memory.budget.map_or(limits::MEMORY_BUDGET_DEFAULT, |size| size.bytes());
    if bytes < limits::MEMORY_BUDGET_MIN {
        let least = limits::MEMORY_BUDGET_MIN >> 20;
        return Err(bad("memory.budget", format!("must be at least {least}MiB: one batch read and one open segment need that")));
    }
    usize::try_from(bytes).map_err(|_| bad("memory.budget", "is more than this machine can address"))
}

fn sources(
    raw: Vec<RawSource>,
    replayed: RawReplayed,
    memory: usize,
    seal_age: Duration,
    now: Timestamp,
) -> Result<Vec<Source>, BadConfig> {
    let mut sources: Vec<Source> = Vec::with_capacity(raw.len());
    let rabbits = raw.iter().filter(|source| source.rabbitmq.is_some()).count();
    let given = bus::Given { replayed, prefetch_bytes: memory / 4 / rabbits.max(1), seal_age, now };
    for (index, source) in raw.into_iter().enumerate() {
        let path = format!("sources[{index}]");
        if source.name.is_empty() {
            return Err(bad(format!("{path}.name"), "must not be empty: logs and metrics need it"));
        }
        if sources.iter().any(|other| other.name == source.name) {
            return Err(bad(
                format!("{path}.name"),
                format!("`{}` is the name of an earlier source; names must differ", source.name),
            ));
        }
        let tables = TableRules::parse(&source.tables).map_err(|(index, what)| bad(format!("{path}.tables[{index}]"), what))?;
        let (topics, on_gap, bus) = match (source.kafka, source.rabbitmq) {
            (Some(kafka), None) => {
                (kafka.topics.clone(), kafka.on_gap, BusSettings::Kafka(bus::kafka(&format!("{path}.kafka"), kafka, &given)?))
            }
            (None, Some(rabbit)) => {
                let on_gap = rabbit.on_gap.unwrap_or_default();
                let settings = bus::rabbit(&format!("{path}.rabbitmq"), rabbit, &given)?;
                (vec![settings.inflow.name().to_owned()], on_gap, BusSettings::Rabbit(settings))
            }
            _ => return Err(bad(path, "name one bus: kafka or rabbitmq")),
        };
        let on_gap = match on_gap {
            RawOnGap::Record => OnGap::Record,
            RawOnGap::Halt => OnGap::Halt,
        };
        if sources.iter().any(|other| other.bus.is_one_member_with(&bus)) {
            let what = "is that of an earlier source of the same group: the two would put each other out; give each its own";
            return Err(bad(format!("{path}.kafka.group_instance_id"), what));
        }
        sources.push(Source { name: source.name, topics, bus, on_gap, tables });
    }
    Ok(sources)
}

#[cfg(test)]
mod tests;
