//! `replayer plan`.

use std::io::Write as _;
use std::path::Path;

use tapedeck_common::ByteBudget;
use tapedeck_daemon::{Exit, Failure};

use super::{open_archive, planner_failed, system_clock};
use crate::cli::PlanArgs;
use crate::config::Config;
use crate::plan::Plan;
use crate::planner::{Ask, plan};
use crate::render;
use crate::request::{limits, selection, target};
use crate::stream::whole_object_max;

/// Nothing pins a plan before it runs.
const GOOD_FOR: &str = "it is good for 7 d: that long sweeps keep files that are merged or expired after it was made, unless \
     their --removed-after says otherwise; from its start on a replay pins what it reads";

pub(super) async fn run(args: PlanArgs) -> Result<Exit, Failure> {
    let config = Config::load(&args.place, args.memory.as_deref())?;
    let now = system_clock().now();
    let ask = Ask {
        selection: selection(&args.which, now)?,
        target: target(&args.how, config.target.as_ref())?,
        limits: limits(&args.how)?,
        whole_object_max: whole_object_max(&ByteBudget::new(config.memory)),
        now,
    };
    let plan = plan(&open_archive(&config).await?, ask).await.map_err(planner_failed)?;
    if let Some(file) = &args.output {
        write(file, &plan)?;
    }
    let text = if args.json { json(&plan) } else { render::plan(&plan) };
    let mut out = std::io::stdout().lock();
    // A reader that has seen enough is no failure.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let (Some(file), false) = (&args.output, args.json) {
        let _ = writeln!(out, "written to {0}; `replayer run {0}` publishes it", file.display());
        let _ = writeln!(out, "{GOOD_FOR}");
    }
    Ok(Exit::Done)
}

fn json(plan: &Plan) -> String {
    serde_json::to_string_pretty(plan).expect("plain data with text keys") + "\n"
}

fn write(file: &Path, plan: &Plan) -> Result<(), Failure> {
    std::fs::write(file, json(plan))
        .map_err(|error| Failure::new(Exit::Config, format!("cannot write the plan to {}: {error}", file.display())))
}
