//! `replayer verify`.

use std::sync::Arc;

use tapedeck_common::{ByteBudget, Position};
use tapedeck_daemon::{Exit, Failure};

use super::{chance, job_failed, open_archive, system_clock};
use crate::cli::JobArgs;
use crate::config::Config;
use crate::job::{JobError, Jobs};
use crate::plan::Plan;
use crate::progress::Counters;
use crate::render;
use crate::request::{job_name, usage};
use crate::stream::{self, Source};
use crate::target::{Target, TargetBus};
use crate::verify::{TargetReader, TargetSeen, VerifyError, compare};

pub(super) async fn run(args: JobArgs) -> Result<Exit, Failure> {
    let job = job_name(&args.job)?;
    let config = Config::load(&args.place, args.memory.as_deref())?;
    let archive = open_archive(&config).await?;
    let unknown = || JobError::Unknown { job: job.to_owned(), archive: archive.store.url.to_string() };
    let stored = Jobs::of(archive.store.clone()).plan(job).await.map_err(|error| Failure::new(error.kind(), error))?;
    let plan = Arc::new(stored.ok_or_else(unknown).map_err(job_failed)?.plan);
    let failed = |error: VerifyError| Failure::new(error.kind(), error);
    let seen = read_back(bus(&config, &plan, args.to.as_deref())?, &plan, job).await.map_err(failed)?;
    let clock = system_clock();
    let source = Source {
        resume_at: vec![Position::default(); plan.lanes.len()],
        plan: Arc::clone(&plan),
        store: archive.store.clone(),
        budget: ByteBudget::new(config.memory),
        rng: chance(clock.as_ref()),
        clock,
        counters: Arc::new(Counters::default()),
    };
    let verdict = compare(plan, job, seen, stream::open(source)).await.map_err(failed)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&verdict).expect("plain data"));
    } else {
        print!("{}", render::verdict(&verdict));
    }
    Ok(if verdict.good { Exit::Done } else { Exit::Unfinished })
}

/// Where the target is: the flag, or the configuration, or the plan.
fn bus(config: &Config, plan: &Plan, to: Option<&str>) -> Result<Arc<dyn TargetBus>, Failure> {
    let flag = to.map(Target::parse).transpose().map_err(|error| usage(error.to_string()))?;
    let target = flag.as_ref().or(config.target.as_ref()).unwrap_or(&plan.target);
    config.bus(target).ok_or_else(|| usage("the job went to stdout: there is nothing to read back"))
}

async fn read_back(bus: Arc<dyn TargetBus>, plan: &Arc<Plan>, job: &str) -> Result<TargetSeen, VerifyError> {
    let (plan, job) = (Arc::clone(plan), job.to_owned());
    let reading = tokio::task::spawn_blocking(move || {
        let mut reader = TargetReader::new(&plan, &job);
        bus.read_back(&plan, &job, &mut reader).map(|()| reader.finish())
    });
    reading.await.map_err(|error| VerifyError::Stopped(Box::new(error)))?
}
