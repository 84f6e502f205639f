//! Real servers, replicas and a producer, and the links and the proxy between them, on which the faults are brought about.
//!
//! replicas -> link -> Kafka; replicas -> link -> fault proxy -> S3. The producer and the judge reach both servers directly.
//! Promises: after `heal` everything is well again; each fault that was begun is counted, and how often it really struck.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tapedeck_testbed::ports::PortBlock;
use tapedeck_testbed::{
    Admin, FaultProxy, HttpFault, KafkaOptions, KafkaServer, Running, S3Server, SlowLink, Truth, WallClock, Weather, Which,
    Witness,
};

use crate::plan::{Act, Fault, What};
use crate::support::{Site, metric};
use crate::verdict::Verdict;

/// Replicas at all times, storms aside.
pub const REPLICAS: usize = 3;
/// Shortened, so that a zombie takes seconds: session, requests that nobody answers, topics that grow.
const CLIENT: &str = "client: { session.timeout.ms: '6000', heartbeat.interval.ms: '1000', socket.timeout.ms: '10000', \
                      topic.metadata.refresh.interval.ms: '1000' }";
/// From SIGTERM to the end, shortened as well.
const GRACE: Duration = Duration::from_secs(10);
/// What an exit may take beyond its grace, on a machine that is busy.
const GRACE_MARGIN: Duration = Duration::from_secs(4);
/// After all is well again, the archive must be complete within this.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(120);
/// Some HTTP requests suffer, others get through.
const RATE: f64 = 0.35;
const PARTITIONS_MAX: i32 = 8;
/// What a starved replica runs at a time; the plan says how often.
const SLICE: Duration = Duration::from_millis(20);

/// Replicas go by one of these in turn.
const CLOCKS: usize = 2;
/// A jump is as often of minutes, which the store still takes in a signature, as of hours, which it refuses.
const MINUTES_MAX: i64 = 14;
const HOURS_MAX: i64 = 48;

/// How often faults were begun, and how often they struck.
pub type Strikes = BTreeMap<Fault, (u64, u64)>;

/// See the head of this file.
pub struct World {
    // Dropped in this order: first who uses the servers, then the servers.
    pub replicas: Vec<Running>,
    extra: Option<Running>,
    leaving: Vec<(Running, Instant)>,
    pub witness: Witness,
    pub topic: &'static str,
    pub site: Site,
    pub struck: Strikes,
    /// How much was archived whenever a replica joined or left in a storm.
    pub archived_in_storm: Vec<u64>,
    admin: Admin,
    kafka: KafkaServer,
    s3: S3Server,
    proxy: FaultProxy,
    to_store: SlowLink,
    to_broker: SlowLink,
    _door: PortBlock,
    clocks: Vec<WallClock>,
    /// Replicas so far.
    started: usize,
    chance: fastrand::Rng,
    /// Frozen replicas, by their place.
    frozen: Vec<usize>,
    /// How far each partition was archived when the zombie was frozen.
    archived_before_zombie: BTreeMap<i32, i64>,
    /// What was struck on a link or by the proxy before a fault began there.
    before: BTreeMap<Fault, u64>,
    /// Positions in gaps so far.
    gaps: u64,
    /// Where each partition began when something was deleted from it. A broker that is killed soon afterwards forgets it, and what
    /// was gone is back.
    deleted: BTreeMap<i32, i64>,
    bad_ends: Vec<String>,
}

impl World {
    /// Servers, an archive, replicas and a producer, all running.
    pub fn start(topic: &'static str, seed: u64) -> Result<Self> {
        let door = PortBlock::claim(2)?;
        let to_broker = SlowLink::to(SocketAddr::from(([127, 0, 0, 1], door.first())), Duration::ZERO)?;
        let told = to_broker.address().port();
        let kafka = KafkaServer::start(KafkaOptions { door: Some((door.first(), told)), ..KafkaOptions::default() })?;
        let s3 = S3Server::start()?;
        let proxy = FaultProxy::before(s3.address())?;
        proxy.forget();
        let behind: SocketAddr = proxy.endpoint().trim_start_matches("http://").parse()?;
        let to_store = SlowLink::to(behind, Duration::ZERO)?;
        let admin = Admin::new(&kafka.bootstrap())?;
        admin.create_topic(topic, 4, &[("retention.ms", "-1")])?;
        let mut site = Site::on_s3(&s3, topic)?.source("main", &to_broker.address().to_string(), topic, &[topic], CLIENT);
        site.daemon_endpoint = Some(format!("http://{}", to_store.address()));
        site.settings.push_str(&format!("shutdown: {{ grace: {}s }}\n", GRACE.as_secs()));
        let clocks = (0..CLOCKS).map(|_| WallClock::new()).collect::<Result<Vec<_>>>()?;
        let witness = Witness::start(&kafka.bootstrap(), topic, seed)?;
        let mut world = Self {
            replicas: Vec::new(),
            extra: None,
            leaving: Vec::new(),
            witness,
            topic,
            site,
            struck: Strikes::new(),
            archived_in_storm: Vec::new(),
            admin,
            kafka,
            s3,
            proxy,
            to_store,
            to_broker,
            _door: door,
            clocks,
            started: 0,
            chance: fastrand::Rng::with_seed(seed),
            frozen: Vec::new(),
            archived_before_zombie: BTreeMap::new(),
            before: BTreeMap::new(),
            gaps: 0,
            deleted: BTreeMap::new(),
            bad_ends: Vec::new(),
        };
        world.replicas = (0..REPLICAS).map(|_| world.replica()).collect::<Result<_>>()?;
        world.site.wait_for_rows(topic, 1)?;
        Ok(world)
    }

    /// One more replica.
    fn replica(&mut self) -> Result<Running> {
        self.started += 1;
        self.site.archiver_in(self.clocks[self.started % CLOCKS].environment())
    }

    /// Plays a round, heals, waits until all is archived, and judges.
    pub fn round(&mut self, acts: &[Act]) -> Result<Verdict> {
        self.witness.go_on();
        let began = Instant::now();
        for act in acts {
            sleep(act.at.saturating_sub(began.elapsed()));
            self.tend()?;
            self.act(act.what).with_context(|| format!("{:?}", act.what))?;
        }
        self.heal()?;
        let verdict = self.judge()?;
        // Only the log tells how many positions retention took.
        let gaps = verdict.gaps - std::mem::replace(&mut self.gaps, verdict.gaps);
        if self.struck.contains_key(&Fault::Retention) {
            self.strike(Fault::Retention, gaps);
        }
        Ok(verdict)
    }

    fn act(&mut self, what: What) -> Result<()> {
        match what {
            What::Begin(fault) => {
                self.struck.entry(fault).or_default().0 += 1;
                self.before.insert(fault, self.counted(fault));
                self.begin(fault)
            }
            What::Again(fault) => self.again(fault),
            What::End(fault) => self.end(fault),
        }
    }

    fn begin(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill => {
                let (place, new) = (self.chance.usize(0..REPLICAS), self.replica()?);
                std::mem::replace(&mut self.replicas[place], new).kill9()?;
                self.strike(fault, 1);
            }
            Fault::Restart => {
                let (place, new) = (self.chance.usize(0..REPLICAS), self.replica()?);
                let old = std::mem::replace(&mut self.replicas[place], new);
                self.leave(old)?;
                self.strike(fault, 1);
            }
            Fault::Zombie => {
                let place = self.chance.usize(0..REPLICAS);
                self.freeze(place)?;
                self.archived_before_zombie = self.archived()?;
            }
            Fault::Storm => self.join_or_leave()?,
            Fault::Retention | Fault::Starved => (0..REPLICAS).try_for_each(|place| self.freeze(place))?,
            Fault::BrokerStopped => self.kafka.stop()?,
            Fault::BrokerKilled => self.kafka.kill9()?,
            Fault::StoreStopped => self.s3.stop()?,
            Fault::StoreKilled => self.s3.kill9()?,
            Fault::BrokerReset | Fault::StoreReset | Fault::Clocks => self.again(fault)?,
            // What these connections swallow is counted by the link.
            Fault::BrokerHalfOpen => {
                self.to_broker.half_open();
            }
            Fault::StoreHalfOpen => {
                self.to_store.half_open();
            }
            Fault::BrokerSlow => self.to_broker.set(narrow(100, 200_000)),
            Fault::StoreSlow => self.to_store.set(narrow(250, 60_000)),
            Fault::BrokerSilent => self.to_broker.set(Weather { silent: true, ..Weather::default() }),
            Fault::StoreSilent => self.to_store.set(Weather { silent: true, ..Weather::default() }),
            Fault::MorePartitions => {
                let count = self.admin.partition_count(self.topic)?;
                if count < PARTITIONS_MAX {
                    self.admin.add_partitions(self.topic, count + 1)?;
                    self.strike(fault, 1);
                }
            }
            http => {
                let (which, faults) = spoils(http);
                self.proxy.unleash(which, self.chance.u64(..), RATE, &faults);
            }
        }
        Ok(())
    }

    fn again(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Storm => self.join_or_leave()?,
            Fault::Starved => {
                self.thaw()?;
                sleep(SLICE);
                (0..REPLICAS).try_for_each(|place| self.freeze(place))?;
                self.strike(fault, 1);
            }
            Fault::Clocks => self.jump()?,
            Fault::LateLanding => drop(self.proxy.land()),
            Fault::BrokerReset => self.strike(fault, self.to_broker.reset() as u64),
            Fault::StoreReset => self.strike(fault, self.to_store.reset() as u64),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Zombie => {
                // Who stands still archives nothing: where every partition went on, others have taken its lanes over.
                let (before, now) = (std::mem::take(&mut self.archived_before_zombie), self.archived()?);
                self.strike(fault, u64::from(before.iter().all(|(partition, at)| now.get(partition) > Some(at))));
                self.thaw()?;
            }
            Fault::Storm => self.extra_leaves()?,
            Fault::Starved => self.thaw()?,
            Fault::Clocks => self.set_clocks_right()?,
            Fault::Retention => {
                for (partition, (_, end)) in self.admin.watermarks(self.topic)? {
                    self.admin.delete_records(self.topic, partition, end)?;
                    self.deleted.insert(partition, end);
                }
                self.thaw()?;
            }
            Fault::BrokerStopped | Fault::BrokerKilled => {
                self.kafka.start_again()?;
                self.strike(fault, 1);
            }
            Fault::StoreStopped | Fault::StoreKilled => {
                self.s3.start_again()?;
                self.strike(fault, 1);
            }
            Fault::BrokerSlow | Fault::BrokerSilent => self.to_broker.heal(),
            Fault::StoreSlow | Fault::StoreSilent => self.to_store.heal(),
            Fault::LateLanding => {
                self.proxy.heal();
                drop(self.proxy.land());
            }
            Fault::StoreErrors
            | Fault::StoreExpired
            | Fault::ErrorsAfter
            | Fault::Conflicts
            | Fault::LostReplies
            | Fault::CutReads => self.proxy.heal(),
            _ => {}
        }
        let struck = self.counted(fault) - self.before.remove(&fault).unwrap_or_default();
        self.strike(fault, struck);
        Ok(())
    }

    /// Faults that links and the proxy count themselves.
    fn counted(&self, fault: Fault) -> u64 {
        match fault {
            Fault::BrokerSlow | Fault::BrokerSilent | Fault::BrokerHalfOpen => self.to_broker.struck(),
            Fault::StoreSlow | Fault::StoreSilent | Fault::StoreHalfOpen => self.to_store.struck(),
            Fault::Clocks => self.clocks.iter().map(WallClock::struck).sum(),
            Fault::StoreErrors
            | Fault::StoreExpired
            | Fault::ErrorsAfter
            | Fault::Conflicts
            | Fault::LostReplies
            | Fault::LateLanding
            | Fault::CutReads => self.proxy.struck() as u64,
            _ => 0,
        }
    }

    fn strike(&mut self, fault: Fault, times: u64) {
        self.struck.entry(fault).or_default().1 += times;
    }

    fn freeze(&mut self, place: usize) -> Result<()> {
        self.replicas[place].freeze()?;
        self.frozen.push(place);
        Ok(())
    }

    fn thaw(&mut self) -> Result<()> {
        self.frozen.drain(..).try_for_each(|place| self.replicas[place].thaw())
    }

    fn jump(&mut self) -> Result<()> {
        for clock in &self.clocks {
            let minutes = if self.chance.bool() {
                self.chance.i64(-MINUTES_MAX..=MINUTES_MAX)
            } else {
                60 * self.chance.i64(-HOURS_MAX..=HOURS_MAX)
            };
            clock.set(minutes * 60_000)?;
        }
        Ok(())
    }

    fn set_clocks_right(&self) -> Result<()> {
        self.clocks.iter().try_for_each(|clock| clock.set(0))
    }

    fn leave(&mut self, replica: Running) -> Result<()> {
        replica.terminate()?;
        self.leaving.push((replica, Instant::now()));
        Ok(())
    }

    fn join_or_leave(&mut self) -> Result<()> {
        self.archived_in_storm.push(self.site.rows(self.topic)?);
        if self.extra.is_some() {
            return self.extra_leaves();
        }
        self.extra = Some(self.replica()?);
        self.strike(Fault::Storm, 1);
        Ok(())
    }

    fn extra_leaves(&mut self) -> Result<()> {
        match self.extra.take() {
            Some(extra) => {
                self.strike(Fault::Storm, 1);
                self.leave(extra)
            }
            None => Ok(()),
        }
    }

    /// Looks after the replicas: none may end by itself, and those that were told to must in time.
    fn tend(&mut self) -> Result<()> {
        for place in 0..self.replicas.len() {
            if let Err(error) = self.replicas[place].must_run() {
                self.bad_ends.push(format!("a replica {error}"));
                self.replicas[place] = self.replica()?;
            }
        }
        for (mut replica, told) in std::mem::take(&mut self.leaving) {
            if !replica.has_ended()? && told.elapsed() < GRACE + GRACE_MARGIN {
                self.leaving.push((replica, told));
                continue;
            }
            match replica.wait(Duration::ZERO) {
                Ok(ended) if matches!(ended.code, Some(0 | 1)) => {}
                Ok(ended) => self.bad_ends.push(format!("a replica that was told to end: {:?} {:?}", ended.code, ended.signal)),
                Err(error) => self.bad_ends.push(format!("a replica that was told to end is {error}")),
            }
        }
        Ok(())
    }

    fn heal(&mut self) -> Result<()> {
        self.thaw()?;
        self.extra_leaves()?;
        self.set_clocks_right()?;
        self.to_broker.heal();
        self.to_store.heal();
        self.proxy.heal();
        while !self.leaving.is_empty() {
            self.tend()?;
            sleep(Duration::from_millis(50));
        }
        drop(self.proxy.land());
        Ok(())
    }

    /// Waits until everything acknowledged is archived or on record as lost, and holds the archive against it.
    pub fn judge(&mut self) -> Result<Verdict> {
        let healed = Instant::now();
        self.witness.rest()?;
        let ends = self.witness.ends();
        let mut behind = self.behind(&ends)?;
        while !behind.is_empty() && healed.elapsed() < CAUGHT_UP_WITHIN {
            sleep(Duration::from_millis(200));
            self.tend()?;
            behind = self.behind(&ends)?;
        }
        let caught_up = healed.elapsed();
        let view = self.site.view(self.topic)?.context("the table is there")?;
        let yielded = self.site.yielded(&view)?;
        let (truth, deleted) = (self.witness.truth(), self.deleted()?);
        let mut verdict = Verdict::of(&truth, &view, &yielded, &deleted);
        if verdict.phantom > 0 {
            // What the producer sent twice is on the bus twice, and so it must be in the archive.
            let (with_twins, twins) = truth.with_twins(&Truth::from_bus(&self.kafka.bootstrap(), &[self.topic])?);
            println!("      {twins} events are on the bus a second time, unacknowledged");
            verdict = Verdict::of(&with_twins, &view, &yielded, &deleted);
        }
        verdict.caught_up = caught_up;
        for (partition, missing) in behind {
            verdict.note(|verdict| &mut verdict.stuck, format!("partition {partition} is {missing} positions behind"));
        }
        if let Err(error) = self.site.verify(&["--deep"]) {
            verdict.note(|verdict| &mut verdict.unverified, format!("{error:#}"));
        }
        for words in self.bad_ends.drain(..) {
            verdict.note(|verdict| &mut verdict.ended_badly, words);
        }
        Ok(verdict)
    }

    /// How far each partition is archived.
    fn archived(&self) -> Result<BTreeMap<i32, i64>> {
        let positions = self.site.view(self.topic)?.map(|view| view.positions).unwrap_or_default();
        Ok(positions.iter().map(|(lane, next)| (lane.partition, next.as_i64())).collect())
    }

    /// How many positions each partition still lacks.
    pub fn behind(&self, ends: &BTreeMap<i32, i64>) -> Result<BTreeMap<i32, i64>> {
        let at = self.archived()?;
        let missing = ends.iter().map(|(partition, end)| (*partition, end - at.get(partition).copied().unwrap_or(0)));
        Ok(missing.filter(|(_, missing)| *missing > 0).collect())
    }

    /// Up to where each partition was ever deleted on the bus.
    pub fn deleted(&self) -> Result<BTreeMap<i32, i64>> {
        let begins = self.admin.watermarks(self.topic)?.into_iter().map(|(partition, (begin, _))| (partition, begin));
        let ever = |(partition, begin): (i32, i64)| {
            (partition, self.deleted.get(&partition).map_or(begin, |deleted| begin.max(*deleted)))
        };
        Ok(begins.map(ever).collect())
    }

    /// A counter of the replicas that run, summed up.
    pub fn metric(&self, name: &str, label: &str) -> Result<f64> {
        self.replicas.iter().map(|replica| metric(replica, name, label)).sum()
    }

    /// All replicas end in time and in order.
    pub fn stop(mut self) -> Result<()> {
        for replica in &self.replicas {
            replica.terminate()?;
        }
        for replica in self.replicas.drain(..) {
            let ended = replica.wait(GRACE + GRACE_MARGIN)?;
            ensure!(ended.code == Some(0), "exit code {:?}: {}", ended.code, ended.stderr);
        }
        Ok(())
    }
}

fn narrow(latency_ms: u64, bytes_per_second: u64) -> Weather {
    Weather { latency: Duration::from_millis(latency_ms), bytes_per_second: Some(bytes_per_second), silent: false }
}

/// Which requests an HTTP fault is for, and what happens to them.
fn spoils(fault: Fault) -> (Which, Vec<HttpFault>) {
    let busy = [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")];
    let conflict = (409, "ConditionalRequestConflict");
    match fault {
        Fault::StoreErrors => {
            let answers = busy.map(|(status, code)| HttpFault::instead(status, code));
            (Which::all(), answers.into_iter().chain([HttpFault::CloseBefore]).collect())
        }
        Fault::StoreExpired => {
            let denied = ["ExpiredToken", "RequestTimeTooSkewed"].map(|code| HttpFault::instead(403, code));
            (Which::all(), denied.to_vec())
        }
        Fault::ErrorsAfter => (Which::of("PUT"), busy.map(|(status, code)| HttpFault::after(status, code)).to_vec()),
        Fault::Conflicts => {
            let both = vec![HttpFault::instead(conflict.0, conflict.1), HttpFault::after(conflict.0, conflict.1)];
            (Which::of("PUT").with("_delta_log").with(".json"), both)
        }
        Fault::LateLanding => (Which::of("PUT"), vec![HttpFault::Late]),
        Fault::CutReads => (Which::of("GET"), vec![HttpFault::Cut(100)]),
        _ => (Which::of("PUT"), vec![HttpFault::CloseAfter]),
    }
}
