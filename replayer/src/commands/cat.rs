//! `replayer cat`, and the way to stdout of `run --to stdout:`.

use std::io::BufWriter;
use std::sync::Arc;

use tapedeck_common::{ByteBudget, Clock, Position};
use tapedeck_daemon::{Exit, Failure};
use tapedeck_storage::archive::Archive;

use super::{chance, open_archive, planner_failed, system_clock};
use crate::cat::{CatError, print};
use crate::cli::CatArgs;
use crate::config::Config;
use crate::pacer::Limits;
use crate::plan::Plan;
use crate::planner::{Ask, plan};
use crate::progress::Counters;
use crate::request::{selection, usage};
use crate::stream::{self, Source, whole_object_max};
use crate::target::Target;

pub(super) async fn run(mut args: CatArgs) -> Result<Exit, Failure> {
    if args.url.is_some() && args.place.archive.is_some() {
        return Err(usage("the archive is named twice: once as ARCHIVE, once by --archive"));
    }
    args.place.archive = args.url.take().or(args.place.archive);
    let config = Config::load(&args.place, args.memory.as_deref())?;
    let clock = system_clock();
    let budget = ByteBudget::new(config.memory);
    let ask = Ask {
        selection: selection(&args.which, clock.now())?,
        target: Target::Stdout,
        limits: Limits::default(),
        whole_object_max: whole_object_max(&budget),
        now: clock.now(),
    };
    let archive = open_archive(&config).await?;
    let plan = plan(&archive, ask).await.map_err(planner_failed)?;
    to_stdout(&archive, plan, budget, clock, args.limit).await
}

/// Prints the events of a plan.
pub(super) async fn to_stdout(
    archive: &Archive,
    plan: Plan,
    budget: ByteBudget,
    clock: Arc<dyn Clock>,
    limit: Option<u64>,
) -> Result<Exit, Failure> {
    let plan = Arc::new(plan);
    let source = Source {
        resume_at: vec![Position::default(); plan.lanes.len()],
        plan: Arc::clone(&plan),
        store: archive.store.clone(),
        budget,
        rng: chance(clock.as_ref()),
        clock,
        counters: Arc::new(Counters::default()),
    };
    let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    match print(&plan, stream::open(source), &mut out, limit).await {
        Ok(_) => Ok(Exit::Done),
        Err(CatError::Stream(error)) => Err(Failure::new(error.kind(), error)),
        Err(error @ CatError::Write(_)) => Err(Failure::new(Exit::Unfinished, error)),
    }
}
