//! Builds the parts from the configuration, lets them run, takes them down in order. No decisions but that order.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use prometheus_client::registry::Registry;
use tapedeck_common::backoff::Backoff;
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::{BusError, Consumer};
use tapedeck_common::clock::Clock;
use tapedeck_common::columns::ColumnsPool;
use tapedeck_common::error::{ErrorKind, report};
use tapedeck_common::figures::BusFigures;
use tapedeck_daemon::admin::{Admin, AdminServer, Component, Heartbeats, Readiness, Token};
use tapedeck_daemon::shutdown::{self, Shutdown};
use tapedeck_daemon::telemetry::LogLevel;
use tapedeck_daemon::{Exit, Failure, SystemClock};
use tapedeck_kafka::config::KafkaSettings;
use tapedeck_kafka::consumer::KafkaConsumer;
use tapedeck_rabbitmq::config::RabbitSettings;
use tapedeck_rabbitmq::consumer::RabbitConsumer;
use tapedeck_storage::archive::{Archive, TABLE_PER_TOPIC};
use tapedeck_storage::probe::probe;
use tapedeck_storage::segment::{PartPool, WriterOptions};
use tapedeck_storage::store::{Store, StoreError, StoreOptions, open_store};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::config::{BusSettings, Config, RawArchive, Source};
use crate::maintain::Means;
use crate::maintain::duties::{Duties, Pictures as DutyPictures, Place};
use crate::metrics::Metrics;
use crate::pipeline::{Pipeline, PipelineError, Shared};
use crate::status::SourceStatus;
use crate::supervise::supervise;
use crate::tables::OpenTables;
use crate::upload::Segments;

/// Shares of the memory budget that idle buffers may keep: they are reused within milliseconds while events flow. A chunk that
/// was encoded gives its columns back all at once, so they get more than parts do.
const COLUMNS_POOL_SHARE: usize = 8;
const PART_POOL_SHARE: usize = 16;

/// A pipeline that does not go round for so long is stuck: it never waits for the bus or the store itself.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What the store is asked for, from the configuration.
pub fn store_options(archive: &RawArchive) -> StoreOptions {
    StoreOptions {
        url: archive.url.clone(),
        endpoint: archive.endpoint.clone(),
        region: archive.region.clone(),
        path_style: archive.path_style,
        ca_file: archive.ca_file.as_ref().map(PathBuf::from),
    }
}

/// The pictures of all sources, for the admin endpoint.
#[derive(Clone, Default)]
struct Pictures(Arc<Mutex<BTreeMap<String, watch::Receiver<SourceStatus>>>>);

impl Pictures {
    fn add(&self, source: &str) -> watch::Sender<SourceStatus> {
        let (sender, receiver) = watch::channel(SourceStatus::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(source.to_owned(), receiver);
        sender
    }

    fn each<T>(&self, mut of: impl FnMut(&SourceStatus) -> T) -> BTreeMap<String, T> {
        let pictures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pictures.iter().map(|(name, picture)| (name.clone(), of(&picture.borrow()))).collect()
    }

    fn readiness(&self) -> Readiness {
        self.each(|status| Component { ready: status.is_ready(), detail: format!("{} lanes are ours", status.lanes.len()) })
    }

    fn pending(&self) -> String {
        let waiting = self.each(|status| (status.buffered_events, status.storing));
        let text = |(name, (events, storing)): (String, (u64, bool))| match (events, storing) {
            (0, false) => None,
            (events, true) => Some(format!("{name}: {events} events on their way to the store")),
            (events, false) => Some(format!("{name}: {events} events")),
        };
        let texts: Vec<_> = waiting.into_iter().filter_map(text).collect();
        if texts.is_empty() { "leaving the bus".to_owned() } else { texts.join(", ") }
    }
}

/// The archiver from start to end.
pub struct Archiver {
    config: Config,
    clock: Arc<dyn Clock>,
    chance: fastrand::Rng,
    shutdown: Shutdown,
    pictures: Pictures,
    duties: Arc<watch::Sender<DutyPictures>>,
    log_level: LogLevel,
}

impl Archiver {
    /// Takes over the signals of the process.
    pub fn new(config: Config, log_level: LogLevel) -> Result<Self, Failure> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let seed = clock.now().micros() as u64 ^ (u64::from(std::process::id()) << 40);
        let pictures = Pictures::default();
        let pending = pictures.clone();
        let shutdown =
            shutdown::install(config.grace, move || pending.pending()).map_err(|error| Failure::new(Exit::Bug, error))?;
        let (chance, duties) = (fastrand::Rng::with_seed(seed), Arc::default());
        Ok(Self { config, clock, chance, shutdown, pictures, duties, log_level })
    }

    /// Archives until told to stop.
    pub async fn run(mut self) -> Result<Exit, Failure> {
        for warning in self.config.warnings(memory_limit()) {
            warn!("{warning}");
        }
        let heartbeats = Heartbeats::new(Arc::clone(&self.clock));
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let admin = self.admin(heartbeats.clone(), registry)?;
        info!(address = %admin.address(), "admin endpoint");
        let Some(archive) = self.open_archive().await? else { return Ok(self.left(admin, Exit::Done)) };
        let shared = self.shared(&archive, &metrics);
        self.begin_duties(&archive, &metrics);
        let mut pipelines = Vec::new();
        for source in self.config.sources.clone() {
            announce(&source, &self.config, &archive);
            pipelines.push(self.pipeline(source, &shared, &metrics, &heartbeats));
        }
        let work = join_all(pipelines);
        let overdue = self.shutdown.overdue().clone();
        let results = tokio::select! {
            results = work => results,
            () = overdue.cancelled() => return Ok(self.left(admin, Exit::Unfinished)),
        };
        match results.into_iter().find_map(Result::err) {
            None => Ok(self.left(admin, Exit::Done)),
            Some(error) => {
                let failure = Failure::new(error.kind(), error);
                self.left(admin, failure.exit());
                Err(failure)
            }
        }
    }

    /// The admin endpoint ends last, so that probes are answered to the end.
    fn left(&self, admin: AdminServer, exit: Exit) -> Exit {
        self.shutdown.ended();
        admin.stop();
        info!(exit = exit.as_str(), "left");
        exit
    }

    fn admin(&self, heartbeats: Heartbeats, registry: Registry) -> Result<AdminServer, Failure> {
        let token = self.config.token_file.clone().map(Token::File);
        let (ready, status) = (self.pictures.clone(), self.pictures.clone());
        let (orders, duties) = (self.shutdown.clone(), Arc::clone(&self.duties));
        let admin = Admin::new(heartbeats)
            .metrics(Arc::new(registry))
            .ready(move || ready.readiness())
            .status(move || {
                let sources = status.each(|status| serde_json::json!(status));
                serde_json::json!({ "sources": sources, "maintain": &*duties.borrow() })
            })
            .seal(move || {
                orders.order_seal();
                Ok(serde_json::json!({ "ordered": true }))
            })
            .log_level(self.log_level.clone())
            .token(token);
        admin.start(&self.config.listen.to_string()).map_err(|error| Failure::new(error.kind(), error))
    }

    /// Tries the store and opens the archive, waiting for a store that is away. `None` if told to stop meanwhile.
    async fn open_archive(&mut self) -> Result<Option<Archive>, Failure> {
        let failed = |error: StoreError| Failure::new(error.kind(), error);
        let store = open_store(&store_options(&self.config.archive)).map_err(failed)?;
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
        loop {
            let error = match open(&store, &*self.clock, &mut self.chance).await {
                Ok(archive) => return Ok(Some(archive)),
                Err(error) if error.kind() == ErrorKind::Unavailable => error,
                Err(error) => return Err(failed(error)),
            };
            warn!(archive = %store.url, error = %report(&error), "the store is away, trying again");
            let wait = backoff.next_wait(self.chance.f64());
            tokio::select! {
                () = self.shutdown.stopping().cancelled() => return Ok(None),
                () = self.clock.sleep(wait) => {}
            }
        }
    }

    fn shared(&mut self, archive: &Archive, metrics: &Arc<Metrics>) -> SharedParts {
        let memory = self.config.memory_budget - self.config.maintain.memory;
        let (columns_pool, part_pool) = (memory / COLUMNS_POOL_SHARE, memory / PART_POOL_SHARE);
        let (budget, pool) = (ByteBudget::new(memory - columns_pool - part_pool), Arc::new(ColumnsPool::new(columns_pool)));
        let encoders = std::thread::available_parallelism().map_or(1, usize::from);
        let segments = Segments::new(
            archive.store.segments(Arc::clone(&self.clock)),
            WriterOptions { parts: Arc::new(PartPool::new(part_pool)), ..WriterOptions::default() },
            Arc::clone(&self.clock),
            budget.clone(),
            Arc::clone(&pool),
            encoders,
            self.chance.u64(..),
        );
        let tables =
            OpenTables::new(archive.clone(), writer_name(), Arc::clone(&self.clock), metrics.log_observer(), self.chance.fork());
        let archive_id = archive.config.id.clone();
        SharedParts {
            archive_id,
            budget,
            pool,
            segments: Arc::new(segments),
            tables: Arc::new(tables),
            seal_now: self.seal_orders(),
        }
    }

    /// Maintenance goes on beside the pipelines, on tasks and in memory of its own, until the first signal to stop. Nobody waits
    /// for its end: what it was at is found undone, or an orphan.
    fn begin_duties(&mut self, archive: &Archive, metrics: &Metrics) {
        let maintain = &self.config.maintain;
        if maintain.duties.is_empty() {
            return;
        }
        let sources = self.config.sources.clone();
        let place = Place {
            archive: archive.clone(),
            is_ours: Arc::new(move |topic: &str| sources.iter().any(|source| source.bus.selects(topic))),
            means: Means::new(maintain.memory, Some(maintain.rate), Arc::clone(&self.clock)),
            clock: Arc::clone(&self.clock),
        };
        let (chance, pictures) = (self.chance.fork(), Arc::clone(&self.duties));
        let duties = Duties::new(place, &maintain.duties, chance, metrics.maintain(), pictures);
        tokio::spawn(duties.run(self.shutdown.stopping().clone()));
    }

    /// Orders to seal, from signals and from the admin endpoint, as one counter.
    fn seal_orders(&self) -> watch::Receiver<u64> {
        let (sender, receiver) = watch::channel(0);
        let mut orders = self.shutdown.orders();
        tokio::spawn(async move {
            while orders.changed().await.is_ok() {
                let seal = orders.borrow_and_update().seal;
                sender.send_if_modified(|seen| std::mem::replace(seen, seal) != seal);
            }
        });
        receiver
    }

    fn pipeline(
        &mut self,
        source: Source,
        parts: &SharedParts,
        metrics: &Arc<Metrics>,
        heartbeats: &Heartbeats,
    ) -> impl Future<Output = Result<(), PipelineError>> + use<> {
        let shared = Shared {
            clock: Arc::clone(&self.clock),
            budget: parts.budget.clone(),
            pool: Arc::clone(&parts.pool),
            tables: Arc::new(parts.tables.of_source(source.tables.clone())),
            segments: Arc::clone(&parts.segments),
            policy: self.config.seal,
            on_gap: source.on_gap,
            seal_now: parts.seal_now.clone(),
        };
        let (name, metrics) = (source.name.clone(), metrics.source(&source.name));
        let picture = Arc::new(self.pictures.add(&source.name));
        let heartbeat = heartbeats.register(format!("pipeline {}", source.name), SILENCE_MAX);
        let pulse: Arc<dyn Fn() + Send + Sync> = Arc::new(move || heartbeat.tick());
        let bus = signed(source.bus, &source.name, &parts.archive_id);
        let mut consumer_chance = self.chance.fork();
        let build = async move || {
            let (consumer, figures) = start_consumer(bus.clone(), &shared, consumer_chance.fork())?;
            metrics.follow(figures);
            Ok(Pipeline::new(shared.clone(), consumer, Arc::clone(&metrics), Arc::clone(&picture), Arc::clone(&pulse)))
        };
        let (clock, chance, shutdown) = (Arc::clone(&self.clock), self.chance.fork(), self.shutdown.clone());
        async move {
            let result = supervise(build, clock, chance, shutdown.stopping().clone()).await;
            if let Err(error) = &result {
                // A process that archives one source less than it was told to must not look well.
                error!(source = %name, error = %report(error), "this source cannot go on, stopping the process");
                shutdown.stop();
            }
            result
        }
    }
}

struct SharedParts {
    archive_id: String,
    budget: ByteBudget,
    pool: Arc<ColumnsPool>,
    segments: Arc<Segments>,
    tables: Arc<OpenTables>,
    seal_now: watch::Receiver<u64>,
}

async fn open(store: &Store, clock: &dyn Clock, chance: &mut fastrand::Rng) -> Result<Archive, StoreError> {
    probe(store, clock, chance).await?;
    Archive::open_or_create(store.clone(), TABLE_PER_TOPIC, clock, chance).await
}

/// The settings, with what tells the bus and its operators who we are.
fn signed(bus: BusSettings, source: &str, archive_id: &str) -> BusSettings {
    match bus {
        BusSettings::Kafka(kafka) => BusSettings::Kafka(KafkaSettings { mark: archive_id.to_owned(), ..kafka }),
        BusSettings::Rabbit(rabbit) => {
            BusSettings::Rabbit(RabbitSettings { title: format!("tapedeck archiver {source} ({archive_id})"), ..rabbit })
        }
    }
}

fn start_consumer(
    bus: BusSettings,
    shared: &Shared,
    chance: fastrand::Rng,
) -> Result<(Box<dyn Consumer>, Arc<BusFigures>), BusError> {
    let (budget, pool, clock) = (&shared.budget, Arc::clone(&shared.pool), Arc::clone(&shared.clock));
    Ok(match bus {
        BusSettings::Kafka(settings) => {
            let consumer = KafkaConsumer::start(settings, budget, pool, clock)?;
            let figures = consumer.counters().figures();
            (Box::new(consumer), figures)
        }
        BusSettings::Rabbit(settings) => {
            let consumer = RabbitConsumer::start(settings, budget, pool, clock, chance)?;
            let figures = consumer.figures();
            (Box::new(consumer), figures)
        }
    })
}

/// One line for whoever looks at the log first: what will be archived, and where.
fn announce(source: &Source, config: &Config, archive: &Archive) {
    let hosts = match &source.bus {
        BusSettings::Kafka(kafka) => kafka.cluster.brokers.join(","),
        BusSettings::Rabbit(rabbit) => rabbit.place.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    };
    info!(
        source = %source.name,
        topics = source.topics.join(", "),
        brokers = hosts,
        group = source.bus.kafka().map(|kafka| kafka.group.as_str()),
        archive = %archive.store.url,
        archive_id = %archive.config.id,
        seal_bytes = config.seal.bytes_max,
        seal_age_s = config.seal.age_max.as_secs(),
        memory = config.memory_budget,
        "archiving"
    );
}

/// This process, for people who read commit records.
fn writer_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("archiver@{}/{}", host.trim(), std::process::id())
}

/// The memory limit of this container, where there is one (cgroup version 2).
pub fn memory_limit() -> Option<u64> {
    std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?.trim().parse().ok()
}
