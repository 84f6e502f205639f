//! `replayer status` and `replayer list`.

use serde_json::{Value as Json, json};
use tapedeck_daemon::{Exit, Failure};
use tapedeck_storage::store::StoreError;

use super::{job_failed, open_archive, system_clock};
use crate::cli::{JobArgs, ListArgs};
use crate::config::Config;
use crate::cursor::{Cursor, State};
use crate::job::{JobError, Jobs, Lease, StoredPlan};
use crate::render;
use crate::report::Report;
use crate::request::job_name;
use crate::show::line;

fn failed(error: StoreError) -> Failure {
    Failure::new(error.kind(), error)
}

pub(super) async fn status(args: JobArgs) -> Result<Exit, Failure> {
    let job = job_name(&args.job)?;
    let config = Config::load(&args.place, args.memory.as_deref())?;
    let archive = open_archive(&config).await?;
    let jobs = Jobs::of(archive.store.clone());
    let unknown = || JobError::Unknown { job: job.to_owned(), archive: archive.store.url.to_string() };
    let stored = jobs.plan(job).await.map_err(failed)?.ok_or_else(unknown).map_err(job_failed)?;
    let newest = jobs.newest(job).await.map_err(failed)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&as_json(job, &stored, newest.as_ref())).expect("plain data"));
        return Ok(Exit::Done);
    }
    let cursor = newest.as_ref().map(|(_, cursor)| cursor);
    println!("job {job}: {}", render::job(&stored.plan, cursor, system_clock().now()));
    println!("{} -> {}", stored.plan.archive, stored.plan.target.describe().replace("{job}", job));
    if let Some(cursor) = cursor {
        let report = Report::of(&stored.plan, cursor);
        for lane in &report.lanes {
            let (done, planned) = (render::count(lane.confirmed), render::count(lane.planned));
            let last = lane.last.map_or_else(|| "-".to_owned(), |last| last.to_string());
            println!("  {} partition {}: {done} of {planned}, to offset {last}", lane.topic, lane.partition);
        }
    }
    Ok(Exit::Done)
}

fn as_json(job: &str, stored: &StoredPlan, newest: Option<&(Lease, Cursor)>) -> Json {
    let state = newest.map_or(State::Planned, |(_, cursor)| cursor.state);
    json!({
        "job": job,
        "state": state,
        "planned": stored.plan.totals.events,
        "confirmed": newest.map_or(0, |(_, cursor)| cursor.events()),
        "plan_hash": stored.plan.hash,
        "request": stored.request,
        "target": stored.plan.target.describe().replace("{job}", job),
        "owner": newest.map(|(lease, _)| lease),
        "cursor": newest.map(|(_, cursor)| cursor),
    })
}

pub(super) async fn list(args: ListArgs) -> Result<Exit, Failure> {
    let config = Config::load(&args.place, None)?;
    let archive = open_archive(&config).await?;
    let jobs = Jobs::of(archive.store.clone());
    let now = system_clock().now();
    for job in jobs.list().await.map_err(failed)? {
        let Some(stored) = jobs.plan(&job).await.map_err(failed)? else { continue };
        let newest = jobs.newest(&job).await.map_err(failed)?;
        if args.json {
            line(&as_json(&job, &stored, newest.as_ref()));
        } else {
            println!("{job}  {}", render::job(&stored.plan, newest.as_ref().map(|(_, cursor)| cursor), now));
        }
    }
    Ok(Exit::Done)
}
