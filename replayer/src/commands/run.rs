//! `replayer run`: from a plan, or flags, or the stored plan of a job that exists.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tapedeck_common::{ByteBudget, Clock};
use tapedeck_daemon::admin::{Admin, AdminServer, Component, Heartbeats, Readiness};
use tapedeck_daemon::shutdown::{self, Shutdown};
use tapedeck_daemon::telemetry::LogLevel;
use tapedeck_daemon::{Exit, Failure};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::ids::fresh_uuid;
use tracing::{info, warn};

use super::cat::to_stdout;
use super::{chance, for_machines, job_failed, open_archive, planner_failed, system_clock};
use crate::alive::alive;
use crate::cli::RunArgs;
use crate::config::Config;
use crate::cursor::{Cursor, State};
use crate::hold::Hold;
use crate::job::{Claim, JobError, Jobs, StoredPlan};
use crate::metrics;
use crate::pacer::Limits;
use crate::plan::Plan;
use crate::planner::{Ask, plan as make_plan};
use crate::progress::Counters;
use crate::render;
use crate::replay::{Ended, Ledger, LedgerError, ReplayError};
use crate::report::Report;
use crate::request::{is_empty, job_name, limits, refuse_later, request_text, selection, target, usage};
use crate::show::{Show, follow, line};
use crate::stream::whole_object_max;
use crate::target::{Advice, Target, TargetBus, check_names};
use crate::wiring::Replay;

/// From the first signal to the end: the drain takes 5 s at most, then the cursor and the report are written.
const GRACE: Duration = Duration::from_secs(20);

/// How long the replay waits for what a cluster says of existing topics' settings.
const ADVICE_WAIT: Duration = Duration::from_secs(1);

/// What will be run.
struct Chosen {
    job: String,
    stored: StoredPlan,
    limits: Limits,
}

pub(super) async fn run(args: RunArgs, level: LogLevel) -> Result<Exit, Failure> {
    let mut config = Config::load(&args.place, args.memory.as_deref())?;
    let from_file = args.plan.as_deref().map(read_plan).transpose()?;
    refuse_later(&args.how)?;
    if let (None, Some(plan)) = (&config.archive, &from_file) {
        config.archive = Some(tapedeck_storage::store::StoreOptions::at(plan.archive.clone()));
    }
    let clock = system_clock();
    let archive = open_archive(&config).await?;
    let jobs = Jobs::of(archive.store.clone());
    let chosen = choose(&args, &config, &archive, &jobs, from_file, clock.as_ref()).await?;
    if chosen.stored.plan.target == Target::Stdout {
        return to_stdout(&archive, chosen.stored.plan, ByteBudget::new(config.memory), clock, None).await;
    }
    let show = if for_machines(args.json) { Show::Lines } else { Show::Bar };
    Session { config, archive, jobs, clock, level, show }.run(chosen).await
}

fn read_plan(file: &Path) -> Result<Plan, Failure> {
    let text = std::fs::read(file).map_err(|error| usage(format!("cannot read the plan {}: {error}", file.display())))?;
    let plan: Plan = serde_json::from_slice(&text)
        .map_err(|error| usage(format!("{} is no plan of this replayer: {error}", file.display())))?;
    plan.check().map_err(|error| usage(format!("{}: {error}", file.display())))?;
    Ok(plan)
}

/// Settles which plan counts: the file's, the stored one of a job that exists, or a new one from the flags.
async fn choose(
    args: &RunArgs,
    config: &Config,
    archive: &Archive,
    jobs: &Jobs,
    from_file: Option<Plan>,
    clock: &dyn Clock,
) -> Result<Chosen, Failure> {
    let asked = limits(&args.how)?;
    let at = |plan: &Plan| Limits { events: asked.events.or(plan.limits.events), bytes: asked.bytes.or(plan.limits.bytes) };
    if let Some(plan) = from_file {
        if !is_empty(&args.which) || args.how.to.is_some() {
            return Err(usage(
                "a plan says what goes where: leave out --topic, --from, --until, --partition, --offsets, --key and --to, or the plan",
            ));
        }
        let job = args.job.clone().unwrap_or_else(|| job_of(&plan));
        return Ok(Chosen { job: job_name(&job)?.to_owned(), limits: at(&plan), stored: StoredPlan { request: None, plan } });
    }
    if let Some(job) = &args.job
        && let Some(stored) = jobs.plan(job_name(job)?).await.map_err(|error| Failure::new(error.kind(), error))?
    {
        stored.plan.check().map_err(|error| Failure::new(Exit::Corrupt, format!("the plan of job {job}: {error}")))?;
        same_request(args, config, job, &stored)?;
        return Ok(Chosen { job: job.clone(), limits: at(&stored.plan), stored });
    }
    if is_empty(&args.which) {
        return Err(usage(
            "what is to be replayed? a plan (`replayer plan ... -o plan.json`), or flags such as --topic, or --job of a job that exists",
        ));
    }
    let to = target(&args.how, config.target.as_ref())?;
    let ask = Ask {
        selection: selection(&args.which, clock.now())?,
        target: to.clone(),
        limits: asked,
        whole_object_max: whole_object_max(&ByteBudget::new(config.memory)),
        now: clock.now(),
    };
    let plan = make_plan(archive, ask).await.map_err(planner_failed)?;
    if !args.yes && to != Target::Stdout {
        print!("{}", render::plan(&plan));
        return Err(usage(
            "nothing was published: add --yes to publish this plan, or store it with `replayer plan -o` and run that",
        ));
    }
    let mut rng = chance(clock);
    let fresh = || format!("rp-{}-{:08x}", day(&plan), rng.u32(..));
    let job = args.job.clone().unwrap_or_else(fresh);
    let stored = StoredPlan { request: Some(request_text(&args.which, &to)), plan };
    Ok(Chosen { job: job_name(&job)?.to_owned(), limits: asked, stored })
}

/// Flags beside `--job` of a job that exists must be those that it was made with.
fn same_request(args: &RunArgs, config: &Config, job: &str, stored: &StoredPlan) -> Result<(), Failure> {
    if is_empty(&args.which) && args.how.to.is_none() {
        return Ok(());
    }
    let to = target(&args.how, config.target.as_ref().or(Some(&stored.plan.target)))?;
    let ours = request_text(&args.which, &to);
    if stored.request.as_ref() == Some(&ours) {
        return Ok(());
    }
    let theirs = stored.request.clone().unwrap_or_else(|| format!("a plan file with hash {}", stored.plan.hash));
    Err(usage(JobError::OtherPlan { job: job.to_owned(), theirs }.to_string()))
}

fn day(plan: &Plan) -> String {
    plan.made.unwrap_or_default().to_string()[..10].replace('-', "")
}

/// The job of a plan file: the same file is the same job.
fn job_of(plan: &Plan) -> String {
    format!("rp-{}-{}", day(plan), &plan.hash[..8.min(plan.hash.len())])
}

/// One run of one job.
struct Session {
    config: Config,
    archive: Archive,
    jobs: Jobs,
    clock: Arc<dyn Clock>,
    level: LogLevel,
    show: Show,
}

impl Session {
    async fn run(self, chosen: Chosen) -> Result<Exit, Failure> {
        let Chosen { job, stored, limits } = chosen;
        check_names(&stored.plan, &job).map_err(usage)?;
        self.say_start(&job, &stored.plan);
        let stored = self.jobs.settle_plan(&job, stored, self.clock.as_ref()).await.map_err(job_failed)?;
        let plan = Arc::new(stored.plan);
        let target = self.config.bus(&plan.target).ok_or_else(|| usage("this job went to stdout"))?;
        let mut rng = chance(self.clock.as_ref());
        let nonce = fresh_uuid(self.clock.now(), &mut rng).to_string();
        let (owner, cursor) = match self.jobs.claim(&job, &owner_name(), &nonce, self.clock.as_ref()).await.map_err(job_failed)? {
            Claim::Ours(owner, cursor) => (owner, cursor),
            Claim::Completed(cursor) => {
                self.say_end(&Report::of(&plan, &cursor), true);
                return Ok(Exit::Done);
            }
        };
        let ledger = owner.ledger();
        let counters = Arc::new(Counters::default());
        let pending = Arc::clone(&counters);
        let shutdown = shutdown::install(GRACE, move || format!("{} unconfirmed events", pending.now().unconfirmed));
        let shutdown = shutdown.map_err(|error| Failure::new(Exit::Bug, error))?;
        let _admin = self.admin(&job, &plan, limits, &counters)?;
        let hold = Hold::new(&self.archive.store, &job, &plan, &self.clock);
        let prepared = tokio::select! {
            prepared = self.prepare(&target, &plan, &job, &hold, ledger.as_ref(), &cursor) => prepared.map(Some),
            () = shutdown.stopping().cancelled() => Ok(None),
        };
        let (ended, cursor) = match prepared {
            Err(error) => (Err(error), cursor),
            Ok(None) => (Ok(Ended::Stopped), cursor),
            Ok(Some(is_held)) => {
                let replay = Replay {
                    job: job.clone(),
                    plan: Arc::clone(&plan),
                    limits,
                    store: self.archive.store.clone(),
                    target,
                    ledger: Arc::clone(&ledger),
                    budget: ByteBudget::new(self.config.memory),
                    clock: Arc::clone(&self.clock),
                    rng,
                    counters: Arc::clone(&counters),
                    shutdown: shutdown.clone(),
                };
                let (ended, cursor) = tokio::select! {
                    ended = replay.run(cursor) => ended,
                    () = hold.keep(is_held) => unreachable!("it holds for ever"),
                    () = follow(self.show, job.clone(), plan.totals.events, counters, Arc::clone(&self.clock)) => unreachable!("it follows for ever"),
                };
                if matches!(ended, Ok(Ended::Completed)) {
                    hold.release().await;
                }
                (ended.map_err(replay_failed), cursor)
            }
        };
        self.finish(&plan, ended, cursor, ledger.as_ref(), &shutdown).await
    }

    /// Looks after the target's topics and pins the plan, with signs of life while bus and store take their time. True if the
    /// pin is set.
    async fn prepare(
        &self,
        target: &Arc<dyn TargetBus>,
        plan: &Arc<Plan>,
        job: &str,
        hold: &Hold,
        ledger: &dyn Ledger,
        cursor: &Cursor,
    ) -> Result<bool, Failure> {
        let (bus, planned, name) = (Arc::clone(target), Arc::clone(plan), job.to_owned());
        let preparing = tokio::task::spawn_blocking(move || bus.prepare(&planned, &name));
        let both = async { tokio::join!(preparing, hold.begin()) };
        let (prepared, is_held) = alive(both, cursor, ledger, self.clock.as_ref()).await.map_err(ledger_failed)?;
        let prepared = prepared.map_err(|error| Failure::new(Exit::Bug, error))?;
        let prepared = prepared.map_err(|error| Failure::new(error.kind(), error))?;
        for text in prepared.said {
            info!(job, "{text}");
        }
        if let Some(advice) = prepared.advice {
            self.advise(advice, job).await;
        }
        Ok(is_held)
    }

    /// Warns of what existing topics will do to the events. The replay waits a moment for that, and no longer.
    async fn advise(&self, advice: Advice, job: &str) {
        let (job, now) = (job.to_owned(), self.clock.now());
        let advising = tokio::task::spawn_blocking(move || advice(now).iter().for_each(|text| warn!(job, "{text}")));
        tokio::select! {
            _ = advising => {}
            () = self.clock.sleep(ADVICE_WAIT) => {}
        }
    }

    /// Saves how it ended, and says it.
    async fn finish(
        &self,
        plan: &Plan,
        ended: Result<Ended, Failure>,
        mut cursor: Cursor,
        ledger: &dyn Ledger,
        shutdown: &Shutdown,
    ) -> Result<Exit, Failure> {
        let (state, reason) = match &ended {
            Ok(Ended::Completed) => (State::Completed, None),
            Ok(Ended::Stopped) => (State::Paused, Some("evicted".to_owned())),
            // It is somebody else's now: nothing of it is touched.
            Err(failure) if failure.exit() == Exit::TryAgain => {
                shutdown.ended();
                return ended.map(|_| Exit::Done);
            }
            Err(failure) => (State::Failed, Some(failure.to_string())),
        };
        (cursor.state, cursor.reason) = (state, reason);
        cursor.beat += 1;
        let report = self.jobs.end(plan, &cursor, ledger, self.clock.as_ref()).await;
        shutdown.ended();
        self.say_end(&report.map_err(ledger_failed)?, false);
        // A Job whose pod was evicted is not done: only what is complete ends with 0.
        ended.map(|ended| match ended {
            Ended::Completed => Exit::Done,
            Ended::Stopped => Exit::Unfinished,
        })
    }

    fn admin(&self, job: &str, plan: &Plan, limits: Limits, counters: &Arc<Counters>) -> Result<Option<AdminServer>, Failure> {
        let Some(listen) = &self.config.listen else { return Ok(None) };
        let registry = metrics::registry(job, plan, limits, counters);
        let (name, planned, counters) = (job.to_owned(), plan.totals.events, Arc::clone(counters));
        let status = move || {
            let now = counters.now();
            json!({ "job": name, "planned": planned, "confirmed": now.before + now.confirmed, "unconfirmed": now.unconfirmed })
        };
        let admin = Admin::new(Heartbeats::new(Arc::clone(&self.clock)))
            .metrics(Arc::new(registry))
            .ready(|| Readiness::from([("replay".to_owned(), Component { ready: true, detail: "publishing".to_owned() })]))
            .status(status)
            .log_level(self.level.clone());
        admin.start(listen).map(Some).map_err(|error| Failure::new(error.kind(), error))
    }

    fn say_start(&self, job: &str, plan: &Plan) {
        let to = plan.target.describe().replace("{job}", job);
        match self.show {
            Show::Lines => line(
                &json!({ "event": "started", "job": job, "planned": plan.totals.events, "bytes": plan.totals.bytes, "target": to, "plan_hash": plan.hash }),
            ),
            Show::Bar => {
                println!("job {job}: {} events ({}) to {to}", render::count(plan.totals.events), render::bytes(plan.totals.bytes))
            }
        }
    }

    fn say_end(&self, report: &Report, already: bool) {
        match self.show {
            Show::Lines => line(&json!({ "event": "ended", "already": already, "report": report })),
            Show::Bar => {
                println!("{}", render::report(report));
                match report.result {
                    State::Completed if already => println!("there is nothing left to do; to replay it again give another --job"),
                    State::Completed => println!("`replayer verify {}` reads it back and proves it", report.job),
                    _ => println!("`replayer run --job {}` resumes it", report.job),
                }
            }
        }
    }
}

fn ledger_failed(error: LedgerError) -> Failure {
    let exit = if matches!(error, LedgerError::Fenced { .. }) { Exit::TryAgain } else { Exit::Unfinished };
    Failure::new(exit, error)
}

/// A refused event or an absent bus is work that failed and can be resumed; the rest keeps its own code.
fn replay_failed(error: ReplayError) -> Failure {
    let exit = match (&error, error.kind().into()) {
        (ReplayError::Bus(_), Exit::Config | Exit::Unavailable) => Exit::Unfinished,
        (_, exit) => exit,
    };
    Failure::new(exit, error)
}

fn owner_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} process {}", host.trim(), std::process::id())
}
