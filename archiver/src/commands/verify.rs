//! `archiver verify`: the proof that an archive is complete, for people or for machines; with `--against-bus` also against the brokers.

use serde_json::{Value as Json, json};
use tapedeck_daemon::{Exit, Failure};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::log::verify::TableReport;
use tapedeck_storage::log::{VerifyOptions, verify_table};
use tapedeck_storage::store::StoreOptions;

use crate::against_bus::{Comparison, Verdict};
use crate::cli::VerifyArgs;
use crate::config::Config;
use crate::wiring;

mod bus;
mod print;

/// The shape of the JSON report (docs/verifying.md). Raised when a field changes its meaning or goes, not when one is added.
const REPORT_VERSION: u32 = 1;

/// Verifies, and prints what was found.
pub(super) fn run(what: VerifyArgs) -> Result<Exit, Failure> {
    let config = match &what.config {
        Some(path) => Some(super::load(path)?.1),
        None => None,
    };
    let options = options(&what, config.as_ref())?;
    super::on_runtime(verify(what, config, options))
}

/// Where the archive lies: what the command line says comes before what the configuration says.
fn options(what: &VerifyArgs, config: Option<&Config>) -> Result<StoreOptions, Failure> {
    let named = config.map(|config| wiring::store_options(&config.archive));
    let url = what.url.clone().or_else(|| named.as_ref().map(|named| named.url.clone()));
    let url = url.ok_or_else(|| Failure::new(Exit::Usage, "name the archive, or a configuration (-c) that does"))?;
    let said = super::store_options(url, &what.store);
    let Some(named) = named else { return Ok(said) };
    Ok(StoreOptions {
        url: said.url,
        endpoint: said.endpoint.or(named.endpoint),
        region: said.region.or(named.region),
        path_style: said.path_style.or(named.path_style),
        ca_file: said.ca_file.or(named.ca_file),
    })
}

async fn verify(what: VerifyArgs, config: Option<Config>, options: StoreOptions) -> Result<Exit, Failure> {
    let archive = super::open_at(&options).await?;
    let reports = tables(&archive, &what).await?;
    let complete = reports.iter().all(TableReport::is_complete);
    if !what.json {
        match reports.is_empty() {
            true => outln!("{}: no tables yet, nothing to verify", archive.store.url),
            false => outln!("{}", if complete { "complete" } else { "NOT COMPLETE" }),
        }
    }
    let compared = match &config {
        Some(config) if what.against_bus => Some(bus::compare(&archive, config, &what, &reports).await),
        _ => None,
    };
    let exit = exit(complete, compared.as_ref());
    if what.json {
        let head = json!({ "report": REPORT_VERSION, "archive": &*archive.store.url, "deep": what.deep, "complete": complete });
        outln!("{:#}", report(head, exit, &reports, compared.as_ref()));
    } else if let Some(Ok(compared)) = &compared {
        print::comparison(compared);
    }
    match compared {
        Some(Err(failure)) if complete => Err(failure),
        Some(Err(failure)) => {
            eprintln!("error: {failure}");
            Ok(exit)
        }
        _ => Ok(exit),
    }
}

/// The whole report, for machines.
fn report(mut head: Json, exit: Exit, tables: &[TableReport], compared: Option<&Result<Comparison, Failure>>) -> Json {
    head["exit_code"] = json!(exit.code());
    head["tables"] = json!(tables);
    match compared {
        Some(Ok(compared)) => head["bus"] = json!(compared),
        Some(Err(failure)) => head["bus"] = json!({ "error": failure.to_string() }),
        None => {}
    }
    head
}

/// Damage outweighs everything: what the log says is then no base for a comparison.
fn exit(complete: bool, compared: Option<&Result<Comparison, Failure>>) -> Exit {
    match compared {
        _ if !complete => Exit::Corrupt,
        None => Exit::Done,
        Some(Err(failure)) => failure.exit(),
        Some(Ok(compared)) => match compared.verdict {
            Verdict::Fine => Exit::Done,
            Verdict::Unarchived => Exit::Unfinished,
            Verdict::Unknown => Exit::Unavailable,
            Verdict::Broken => Exit::Corrupt,
        },
    }
}

async fn tables(archive: &Archive, what: &VerifyArgs) -> Result<Vec<TableReport>, Failure> {
    let options = VerifyOptions { deep: what.deep, ..VerifyOptions::default() };
    let mut reports = Vec::new();
    for table in super::tables_of(archive, what.table.as_deref()).await? {
        let report = verify_table(&archive.store, &table, &options).await;
        let report = report.map_err(|error| Failure::new(error.kind(), error))?;
        if !what.json {
            print::table(&report, what.deep);
        }
        reports.push(report);
    }
    Ok(reports)
}
