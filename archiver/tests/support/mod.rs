//! What the archiver's tests share: a place to archive to, the program, and the judgement of what it wrote.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(missing_docs, unreachable_pub, reason = "tests")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tapedeck_common::commit::SegmentRef;
use tapedeck_storage::layout;
use tapedeck_storage::log::TableView;
use tapedeck_storage::log::view::History;
use tapedeck_storage::segment::{Scan, SegmentReader};
use tapedeck_storage::store::{Store, StoreOptions, open_store};
use tapedeck_testbed::{Program, RabbitServer, Report, Running, S3Server, Truth, wait_until};
use tempfile::TempDir;

/// Long enough for the slowest machine; nothing waits this long unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A place to archive to, and the configuration that leads there.
pub struct Site {
    folder: TempDir,
    options: StoreOptions,
    /// The same archive as files.
    files: String,
    sources: String,
    /// Where the daemon reaches the store, if not where everybody else does.
    pub daemon_endpoint: Option<String>,
    /// Lines of the configuration beside `archive` and `sources`.
    pub settings: String,
}

impl Site {
    /// An archive in a folder.
    pub fn on_disk() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let options = StoreOptions::at(format!("file://{}/archive", folder.path().display()));
        let files = options.url.clone();
        Ok(Self { folder, options, files, sources: String::new(), daemon_endpoint: None, settings: settings("2s") })
    }

    /// An archive in a bucket of a real S3 server.
    pub fn on_s3(server: &S3Server, bucket: &str) -> Result<Self> {
        server.make_bucket(bucket)?;
        let options = StoreOptions {
            endpoint: Some(server.endpoint()),
            region: Some(S3Server::REGION.to_owned()),
            ..StoreOptions::at(format!("s3://{bucket}/prod"))
        };
        let files = format!("file://{}/prod", server.bucket_dir(bucket).display());
        Ok(Self { options, files, ..Self::on_disk()? })
    }

    /// Adds a Kafka source; `more` are further lines of its `kafka:` block, in flow style.
    pub fn source(mut self, name: &str, bootstrap: &str, group: &str, topics: &[&str], more: &str) -> Self {
        let topics = topics.iter().map(|topic| format!("'{topic}'")).collect::<Vec<_>>().join(", ");
        let comma = if more.is_empty() { "" } else { ", " };
        self.sources.push_str(&format!(
            "  - {{ name: {name}, kafka: {{ brokers: ['{bootstrap}'], group: {group}, topics: [{topics}]{comma}{more} }} }}\n"
        ));
        self
    }

    /// Adds a RabbitMQ source; `what` are further lines of its `rabbitmq:` block, in flow style.
    pub fn rabbit_source(mut self, name: &str, server: &RabbitServer, what: &str) -> Self {
        let (host, user) = (server.amqp(), RabbitServer::USER);
        self.sources.push_str(&format!(
            "  - {{ name: {name}, rabbitmq: {{ hosts: ['{host}'], user: {user}, password: {user}, {what} }} }}\n"
        ));
        self
    }

    /// The same archive, with this source in place of all others.
    pub fn rabbit_source_only(mut self, name: &str, server: &RabbitServer, what: &str) -> Self {
        self.sources.clear();
        self.rabbit_source(name, server, what)
    }

    /// The archive's address.
    pub fn url(&self) -> &str {
        &self.options.url
    }

    /// A file beside the archive.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the configuration and names it.
    pub fn config(&self) -> Result<PathBuf> {
        let endpoint = self.daemon_endpoint.as_ref().or(self.options.endpoint.as_ref());
        let endpoint = endpoint.map(|endpoint| format!(", endpoint: '{endpoint}'")).unwrap_or_default();
        let archive =
            format!("archive: {{ url: '{}'{endpoint} }}\nsources:\n{}{}", self.options.url, self.sources, self.settings);
        let path = self.file("archiver.yaml");
        // In one step: another replica may be reading it this moment.
        std::fs::write(self.file("archiver.yaml.new"), archive)?;
        std::fs::rename(self.file("archiver.yaml.new"), &path)?;
        Ok(path)
    }

    /// The program with any arguments, in the environment that the archive needs.
    pub fn program(&self, arguments: &[&str]) -> Program {
        self.other_program(env!("CARGO_BIN_EXE_archiver"), arguments)
    }

    /// Another program, in the same environment.
    pub fn other_program(&self, path: &str, arguments: &[&str]) -> Program {
        let logs = [("RUST_LOG", "info,archiver=debug")];
        Program::at(path).args(arguments).envs(S3Server::environment()).envs(logs)
    }

    /// The same archive, read where a copy of it lies.
    pub fn reading_from(&self, folder: &str) -> Copied {
        Copied { files: format!("file://{folder}") }
    }

    /// The daemon.
    pub fn archiver(&self) -> Result<Running> {
        self.archiver_in::<&str, &str>([])
    }

    /// The daemon, with more in its environment.
    pub fn archiver_in<N: AsRef<OsStr>, V: AsRef<OsStr>>(
        &self,
        environment: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Running> {
        let config = self.config()?;
        self.program(&["run", "-c", &config.display().to_string()]).envs(environment).start()
    }

    /// A command about the archive.
    pub fn about(&self, command: &str, more: &[&str]) -> Program {
        let mut arguments = vec![command, self.options.url.as_str()];
        if let Some(endpoint) = &self.options.endpoint {
            arguments.extend(["--endpoint", endpoint]);
        }
        arguments.extend(more);
        self.program(&arguments)
    }

    /// The store, for reading: the files themselves, also those below the S3 server, so that no client stands in between.
    pub fn store(&self) -> Result<Store> {
        Ok(open_store(&StoreOptions::at(self.files.clone()))?)
    }

    /// Rows that the log of a table vouches for; none if there is no such table yet.
    pub fn rows(&self, table: &str) -> Result<u64> {
        Ok(block_on(rows(&self.store()?, table)))
    }

    /// Waits until a table holds as many rows: as long as more come, however slow the machine is.
    pub fn wait_for_rows(&self, table: &str, rows: u64) -> Result<()> {
        let mut seen = 0;
        while seen < rows {
            let before = seen;
            wait_until(&format!("{rows} rows of {table}, which has {before}"), PATIENCE, || {
                seen = self.rows(table)?;
                Ok(seen > before)
            })?;
        }
        Ok(())
    }

    /// Holds the committed view of a topic against the truth.
    pub fn judge(&self, truth: &Truth, table: &str) -> Result<Report> {
        let store = self.store()?;
        block_on(judge(&store, truth, table))
    }

    /// The table's log as a reader sees it; none if there is no such table yet.
    pub fn view(&self, table: &str) -> Result<Option<TableView>> {
        let store = self.store()?;
        Ok(block_on(TableView::load(&store, table, None, History::Recent)).ok())
    }

    /// Every row that a view shows.
    pub fn yielded(&self, view: &TableView) -> Result<Yielded> {
        let store = self.store()?;
        block_on(Yielded::read(&store, view))
    }

    /// `archiver verify`, which must be content.
    pub fn verify(&self, more: &[&str]) -> Result<String> {
        let ended = self.about("verify", more).run(PATIENCE)?;
        ensure!(ended.code == Some(0), "verify: {:?}\n{}\n{}", ended.code, ended.stdout, ended.stderr);
        Ok(ended.stdout)
    }
}

/// A copy of an archive.
pub struct Copied {
    files: String,
}

impl Copied {
    /// Rows that the log of a table vouches for; none if there is no such table yet.
    pub fn rows(&self, table: &str) -> Result<u64> {
        Ok(block_on(rows(&open_store(&StoreOptions::at(self.files.clone()))?, table)))
    }

    /// Holds the committed view of a topic against the truth.
    pub fn judge(&self, truth: &Truth, table: &str) -> Result<Report> {
        block_on(judge(&open_store(&StoreOptions::at(self.files.clone()))?, truth, table))
    }
}

async fn rows(store: &Store, table: &str) -> u64 {
    let view = TableView::load(store, table, None, History::Recent).await;
    view.map_or(0, |view| view.segments.iter().map(|live| live.segment.rows).sum())
}

/// A number from the environment, so that the long runs are the same tests with larger numbers.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn settings(max_age: &str) -> String {
    format!("seal: {{ max_age: {max_age} }}\nmemory: {{ budget: 128MiB }}\nadmin: {{ listen: '127.0.0.1:0' }}\n")
}

/// Runs what waits for a store.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

async fn judge(store: &Store, truth: &Truth, table: &str) -> Result<Report> {
    let view = TableView::load(store, table, None, History::Recent).await?;
    Ok(Yielded::read(store, &view).await?.judge(truth))
}

/// What the segments of a table hold, lane by lane.
pub struct Yielded {
    topic: String,
    /// Partition, offset, digest; sorted.
    pub rows: Vec<(i32, i64, u64)>,
    /// Rows that stand in their segment after one that comes later in the same lane.
    reordered: u64,
}

impl Yielded {
    async fn read(store: &Store, view: &TableView) -> Result<Self> {
        let first = view.segments.first().context("the table holds segments")?;
        let mut read = Self { topic: first.segment.topic.to_string(), rows: Vec::new(), reordered: 0 };
        for live in &view.segments {
            read.add(store, &view.table, &live.segment).await?;
        }
        // Hours of one batch interleave, so the order is looked at within each segment; the judge wants growing offsets.
        read.rows.sort_by_key(|(partition, offset, _)| (*partition, *offset));
        Ok(read)
    }

    async fn add(&mut self, store: &Store, table: &str, segment: &SegmentRef) -> Result<()> {
        let key = layout::table_object(table, &segment.path);
        let reader = SegmentReader::open_vouched(std::sync::Arc::clone(&store.store), key, segment).await?;
        let mut scan = reader.scan(Scan::default());
        let mut last: BTreeMap<i32, i64> = BTreeMap::new();
        while let Some(batch) = scan.next().await? {
            let mut headers = Vec::new();
            for row in 0..batch.len() {
                let event = batch.row(row);
                batch.headers(row, &mut headers);
                let bytes = headers.iter().map(|(name, value)| (name.as_bytes(), *value));
                let digest = tapedeck_testbed::oracle::digest(event.key, event.value, bytes, event.time.millis_floor());
                let (partition, offset) = (event.partition, event.position.as_i64());
                let before = last.insert(partition, offset);
                self.reordered += u64::from(before.is_some_and(|before| before > offset));
                self.rows.push((partition, offset, digest));
            }
        }
        Ok(())
    }

    /// Holds the rows against the truth.
    pub fn judge(&self, truth: &Truth) -> Report {
        let rows = self.rows.iter().map(|(partition, offset, digest)| (self.topic.as_str(), *partition, *offset, *digest));
        let mut report = truth.compare(rows);
        report.reordered += self.reordered;
        report
    }
}

/// What a daemon tells at `/metrics`.
pub fn metrics(daemon: &Running) -> Result<String> {
    let log = daemon.stderr();
    let line = log.lines().find(|line| line.contains("admin endpoint")).context("no admin endpoint in the log")?;
    let address = line.split("\"address\":\"").nth(1).and_then(|rest| rest.split('"').next()).context("no address in it")?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1") && answer.contains(" 200 "), "{answer}");
    Ok(answer)
}

/// The sum of a metric over all its labels; those lines whose labels hold `label`.
pub fn metric(daemon: &Running, name: &str, label: &str) -> Result<f64> {
    let text = metrics(daemon)?;
    let values = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label));
    Ok(values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}
