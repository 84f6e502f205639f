//! The product itself on a real Kafka, beside its yardsticks, in turns: what `scripts/bars-speed.sh` runs.
//!
//! Archive: `archiver run` (groups, headers, checksums, fsync, commits) until every event is committed and it has left after
//! TERM; beside the fetch + zstd floor and a Python script at the same zstd level. Replay: `replayer run` at full speed with
//! markers and cursor, beside a Python script that reads the same files. CPU time and peak memory are the kernel's, of whole
//! processes. Promise: a run that does not end with every event accounted for is an error, not a figure.
#![allow(clippy::disallowed_methods, reason = "a tool that measures how long it took")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use serde_json::Value;
use tapedeck_benches::meter::machine;
use tapedeck_benches::pairs::median;
use tapedeck_testbed::{Admin, Ended, KafkaOptions, KafkaServer, Program, Running};

const PATIENCE: Duration = Duration::from_secs(600);
const TOPIC: &str = "orders";

/// Measures archiver and replayer on a real Kafka.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Rounds; each runs product and yardsticks once.
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Events.
    #[arg(long, default_value_t = 2_000_000)]
    count: u64,
    /// Partitions.
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// `memory.budget` of the archiver.
    #[arg(long, default_value = "128MiB")]
    budget: String,
    /// zstd level of the yardsticks: the one that the archiver chooses for these events.
    #[arg(long, default_value_t = 1)]
    level: i32,
    /// A Python with confluent-kafka and pyarrow; the rows of the scripts are left out without one.
    #[arg(long, env = "TAPEDECK_PYTHON")]
    python: Option<PathBuf>,
    /// Folder of archiver, replayer, generate and floor. Default: where this program lies.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Folder for the archives. Default: a new one under the system's temporary folder.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Leaves the replay out.
    #[arg(long)]
    no_replay: bool,
    /// Ends with code 1 if a bar is missed.
    #[arg(long)]
    gate: bool,
}

/// What one run cost.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    cpu_s: f64,
    wall_s: f64,
    rss: u64,
    out: u64,
}

struct Site {
    options: Options,
    bin: PathBuf,
    folder: PathBuf,
    bootstrap: String,
    _temporary: tempfile::TempDir,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    println!("product --pairs {} --count {} --budget {} --level {}", options.pairs, options.count, options.budget, options.level);
    println!("  {}", machine());
    let kafka = KafkaServer::start(KafkaOptions { heap: "1g".to_owned(), ..KafkaOptions::default() })?;
    let site = Site::new(options, &kafka)?;
    let bytes = site.load()?;
    let mut good = site.archives(bytes)?;
    if !site.options.no_replay {
        good &= site.replays(bytes)?;
    }
    Ok(if site.options.gate && !good { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Site {
    fn new(options: Options, kafka: &KafkaServer) -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        let folder = options.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
        std::fs::create_dir_all(&folder)?;
        let own = std::env::current_exe()?;
        let bin = options.bin.clone().or_else(|| Some(own.parent()?.to_owned())).context("a folder of programs")?;
        Ok(Self { options, bin, folder, bootstrap: kafka.bootstrap(), _temporary: temporary })
    }

    fn program(&self, name: &str, arguments: &[&str]) -> Program {
        Program::at(self.bin.join(name)).args(arguments)
    }

    /// Puts the events onto the bus; answers their bytes.
    fn load(&self) -> Result<u64> {
        let (count, partitions) = (self.options.count.to_string(), self.options.partitions.to_string());
        let arguments = ["--brokers", &self.bootstrap, "--topic", TOPIC, "--count", &count, "--partitions", &partitions];
        let ended = done(self.program("generate", &arguments).run(PATIENCE)?, "generate")?;
        let bytes =
            ended.stdout.split_whitespace().find_map(|word| word.strip_prefix("bytes=")).context("bytes of the events")?;
        println!(
            "  {} events, {} MB, {} partitions",
            self.options.count,
            bytes.parse::<u64>()? / 1_000_000,
            self.options.partitions
        );
        Ok(bytes.parse()?)
    }

    fn archives(&self, bytes: u64) -> Result<bool> {
        let mut runs: [Vec<Cost>; 3] = Default::default();
        for round in 0..self.options.pairs {
            // Who begins changes, so that a machine that slows down favours nobody.
            for turn in 0..3 {
                let who = ((round + turn) % 3) as usize;
                self.warm_up(bytes)?;
                let cost = match who {
                    0 => Some(self.floor()?),
                    1 => Some(self.archiver(round)?),
                    _ => self.python_archive(round)?,
                };
                runs[who].extend(cost);
            }
        }
        let [floor, ours, script] = runs;
        println!("archive");
        head();
        show("floor: fetch + zstd", bytes, &floor);
        show("archiver run", bytes, &ours);
        show("Python script", bytes, &script);
        let mut good = judge("floor / archiver", &floor, &ours, 0.72, 0.90);
        good &= judge("script / archiver", &script, &ours, 1.5, 2.0);
        if let (Some(script), Some(ours)) = (script.first(), ours.first()) {
            println!("  bytes: archiver / script {:.3}", ours.out as f64 / script.out as f64);
        }
        Ok(good)
    }

    fn replays(&self, bytes: u64) -> Result<bool> {
        let admin = Admin::new(&self.bootstrap)?;
        let mut runs: [Vec<Cost>; 2] = Default::default();
        for round in 0..self.options.pairs {
            for turn in 0..2 {
                let who = ((round + turn) % 2) as usize;
                self.warm_up(bytes)?;
                let cost = if who == 0 { Some(self.replayer(&admin, round)?) } else { self.python_replay(&admin, round)? };
                runs[who].extend(cost);
            }
        }
        let [ours, script] = runs;
        println!("replay");
        head();
        show("replayer run", bytes, &ours);
        show("Python script", bytes, &script);
        Ok(judge("script / replayer", &script, &ours, 2.0, 2.0))
    }

    fn floor(&self) -> Result<Cost> {
        let level = self.options.level.to_string();
        let arguments = ["--brokers", self.bootstrap.as_str(), "--topic", TOPIC, "--level", &level];
        let started = Instant::now();
        let ended = done(self.program("floor", &arguments).run(PATIENCE)?, "floor")?;
        let figures: Value = serde_json::from_str(&ended.stdout)?;
        ensure!(figures["events"] == self.options.count, "the floor read {} events", figures["events"]);
        Ok(Cost { out: figures["packed_bytes"].as_u64().unwrap_or(0), ..Cost::of(&ended, started) })
    }

    /// A machine in the cloud pays for memory when it uses it for the first time, five times what it pays later. Each contestant
    /// finds as much used memory as it may fill with files, so that none pays for another.
    fn warm_up(&self, bytes: u64) -> Result<()> {
        let path = self.folder.join("warm-up");
        let mut file = std::fs::File::create(&path)?;
        let block = vec![0; 8 << 20];
        for _ in 0..bytes / block.len() as u64 + 1 {
            file.write_all(&block)?;
        }
        drop(file);
        Ok(std::fs::remove_file(path)?)
    }

    /// The archive of the first round stays: the replays read it.
    fn archive(&self, round: u32) -> PathBuf {
        self.folder.join(format!("archive-{round}"))
    }

    fn archiver(&self, round: u32) -> Result<Cost> {
        let archive = self.archive(round);
        let url = format!("file://{}", archive.display());
        let config = self.folder.join("archiver.yaml");
        let kafka = format!("brokers: ['{}'], group: product-{round}, topics: [{TOPIC}]", self.bootstrap);
        let settings = format!("memory: {{ budget: {} }}\nadmin: {{ listen: '127.0.0.1:0' }}\n", self.options.budget);
        std::fs::write(
            &config,
            format!("archive: {{ url: '{url}' }}\nsources:\n  - {{ name: bars, kafka: {{ {kafka} }} }}\n{settings}"),
        )?;
        let started = Instant::now();
        let mut running =
            self.program("archiver", &["--log-format", "json", "run", "-c", &config.display().to_string()]).start()?;
        running.wait_for_text("admin endpoint", PATIENCE)?;
        let address = admin_address(&running)?;
        self.wait_until_taken_in(&mut running, &address)?;
        running.terminate()?;
        let cost = Cost::of(&done(running.wait(PATIENCE)?, "archiver run")?, started);
        ensure!(self.archived(&url)? == self.options.count, "not all events are archived");
        let out = parquet_bytes(&archive)?;
        if round > 0 {
            std::fs::remove_dir_all(&archive)?;
        }
        Ok(Cost { out, ..cost })
    }

    /// Until every event was read. TERM then seals and commits what is still open, which is counted too.
    fn wait_until_taken_in(&self, running: &mut Running, address: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            ensure!(!running.has_ended()?, "the archiver ended: {}", running.stderr());
            ensure!(Instant::now() < deadline, "the archiver is too slow");
            let status = http_json(address, "/api/v1/status")?;
            let sources = status["sources"].as_object().context("sources by name")?.values();
            let lanes = sources.filter_map(|source| source["lanes"].as_array()).flatten();
            if lanes.filter_map(|lane| lane["next"].as_u64()).sum::<u64>() >= self.options.count {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Events that the archive's log vouches for.
    fn archived(&self, url: &str) -> Result<u64> {
        let ended = done(self.program("archiver", &["status", url, "--json"]).run(PATIENCE)?, "archiver status")?;
        let status: Value = serde_json::from_str(&ended.stdout)?;
        let tables = status["tables"].as_array().into_iter().flatten();
        let topics = tables.filter_map(|table| table["topics"].as_array()).flatten();
        Ok(topics.filter_map(|topic| topic["events"].as_u64()).sum())
    }

    fn peer(&self, script: &str, arguments: &[&str]) -> Result<Option<(Ended, Instant)>> {
        let Some(python) = &self.options.python else { return Ok(None) };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script);
        let program = Program::at(python).args([script.as_os_str()]).args(arguments);
        let started = Instant::now();
        let ended = done(program.run(PATIENCE)?, "the Python script")?;
        ensure!(ended.stdout.trim() == self.options.count.to_string(), "the script moved {} events", ended.stdout.trim());
        Ok(Some((ended, started)))
    }

    fn python_archive(&self, round: u32) -> Result<Option<Cost>> {
        let folder = self.folder.join(format!("script-{round}"));
        let level = self.options.level.to_string();
        let ran = self.peer("archive.py", &[&self.bootstrap, TOPIC, &folder.display().to_string(), &level])?;
        let Some((ended, started)) = ran else { return Ok(None) };
        let out = parquet_bytes(&folder)?;
        std::fs::remove_dir_all(&folder)?;
        Ok(Some(Cost { out, ..Cost::of(&ended, started) }))
    }

    fn replayer(&self, admin: &Admin, round: u32) -> Result<Cost> {
        let (job, target) = (format!("bars-{round}"), format!("replayed-{round}"));
        admin.create_topic(&target, self.options.partitions, &[("retention.ms", "-1")])?;
        let (archive, to) = (format!("file://{}", self.archive(0).display()), format!("kafka://{}/{target}", self.bootstrap));
        let arguments = ["run", "--archive", &archive, "--topic", TOPIC, "--to", &to, "--job", &job, "--yes", "--json"];
        let started = Instant::now();
        let ended = done(self.program("replayer", &arguments).run(PATIENCE)?, "replayer run")?;
        self.all_there(admin, &target)?;
        Ok(Cost::of(&ended, started))
    }

    fn python_replay(&self, admin: &Admin, round: u32) -> Result<Option<Cost>> {
        let target = format!("scripted-{round}");
        admin.create_topic(&target, self.options.partitions, &[("retention.ms", "-1")])?;
        let Some((ended, started)) =
            self.peer("replay.py", &[&self.bootstrap, &self.archive(0).display().to_string(), &target])?
        else {
            return Ok(None);
        };
        self.all_there(admin, &target)?;
        Ok(Some(Cost::of(&ended, started)))
    }

    /// Every event is at the target; then the target goes, since disks are finite.
    fn all_there(&self, admin: &Admin, topic: &str) -> Result<()> {
        let events: i64 = admin.watermarks(topic)?.values().map(|(low, high)| high - low).sum();
        ensure!(events == i64::try_from(self.options.count)?, "topic {topic} has {events} events");
        admin.delete_topic(topic)
    }
}

impl Cost {
    fn of(ended: &Ended, started: Instant) -> Self {
        Self { cpu_s: ended.cpu.as_secs_f64(), wall_s: started.elapsed().as_secs_f64(), rss: ended.peak_rss, out: 0 }
    }
}

fn done(ended: Ended, what: &str) -> Result<Ended> {
    if ended.code == Some(0) {
        return Ok(ended);
    }
    let tail: Vec<&str> = ended.stderr.lines().rev().take(20).collect();
    bail!("{what} ended with {:?}: {}", ended.code, tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
}

/// Where the archiver says that its admin endpoint is.
fn admin_address(running: &Running) -> Result<String> {
    let said = running.stderr() + &running.stdout();
    let line = said.lines().find(|line| line.contains("admin endpoint")).context("it said where it listens")?;
    let from = line.find("127.0.0.1:").ok_or_else(|| anyhow!("no address in: {line}"))?;
    let address: String = line[from..].chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
    Ok(address)
}

fn http_json(address: &str, path: &str) -> Result<Value> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (from, until) = (answer.find('{').unwrap_or(0), answer.rfind('}').map_or(0, |at| at + 1));
    serde_json::from_str(&answer[from..until]).with_context(|| answer.clone())
}

/// Bytes of the data files below a folder; folders whose names begin with an underscore hold none.
fn parquet_bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            sum += if name.starts_with('_') { 0 } else { parquet_bytes(&entry.path())? };
        } else if name.ends_with(".parquet") {
            sum += entry.metadata()?.len();
        }
    }
    Ok(sum)
}

fn head() {
    println!(
        "  {:<22} {:>8} {:>15} {:>10} {:>8} {:>8} {:>8}",
        "median of runs", "CPU s", "lowest-highest", "MB/CPU-s", "wall s", "RSS MB", "out MB"
    );
}

fn show(name: &str, bytes: u64, runs: &[Cost]) {
    if runs.is_empty() {
        println!("  {name:<22} not run");
        return;
    }
    let of = |field: fn(&Cost) -> f64| median(runs.iter().map(field));
    let cpu = of(|cost| cost.cpu_s);
    let lowest = runs.iter().map(|cost| cost.cpu_s).fold(f64::INFINITY, f64::min);
    let highest = runs.iter().map(|cost| cost.cpu_s).fold(0.0, f64::max);
    let rss = runs.iter().map(|cost| cost.rss).max().unwrap_or(0) as f64 / 1e6;
    println!(
        "  {name:<22} {cpu:>8.2} {:>15} {:>10.0} {:>8.2} {rss:>8.0} {:>8.1}",
        format!("{lowest:.2}-{highest:.2}"),
        bytes as f64 / 1e6 / cpu,
        of(|cost| cost.wall_s),
        of(|cost| cost.out as f64) / 1e6,
    );
}

/// Prints the median of the paired ratios; true if it reaches the bar, or was not measured.
fn judge(name: &str, yardstick: &[Cost], subject: &[Cost], bar: f64, goal: f64) -> bool {
    if yardstick.is_empty() || subject.is_empty() {
        return true;
    }
    let ratio = median(yardstick.iter().zip(subject).map(|(yardstick, subject)| yardstick.cpu_s / subject.cpu_s));
    let verdict = if ratio >= bar { "" } else { "  below the bar" };
    println!("  {name:<22} {ratio:>8.3}   bar {bar}, goal {goal}{verdict}");
    ratio >= bar
}
