//! `archiver sql`: statements with which outside engines read the archive.
//! The exact form goes through the table log; files alone would show orphans and, one day, compaction's twins.

use std::fmt::Write as _;

use tapedeck_daemon::{Exit, Failure};
use tapedeck_storage::layout;
use tapedeck_storage::log::TableView;
use tapedeck_storage::log::view::History;

use crate::cli::{self, Engine};

/// Prints the statements, or the live files.
pub(super) async fn run(archive: cli::Archive, engine: Engine, table: Option<String>, files: bool) -> Result<Exit, Failure> {
    let opened = super::open_archive(&archive).await?;
    let names = super::tables_of(&opened, table.as_deref()).await?;
    let url = |name: &str| format!("{}/{}", opened.store.url.trim_end_matches('/'), layout::table_folder(name));
    if files {
        for name in &names {
            let view = TableView::load(&opened.store, name, None, History::Recent).await;
            let view = view.map_err(|error| Failure::new(error.kind(), error))?;
            view.segments.iter().for_each(|live| outln!("{}/{}", url(name), live.segment.path));
        }
        return Ok(Exit::Done);
    }
    let tables: Vec<_> = names.iter().map(|name| SqlTable { name: name.clone(), url: url(name) }).collect();
    out!("{}", statements(engine, &tables, &SqlStore { endpoint: archive.store.endpoint, region: archive.store.region }));
    Ok(Exit::Done)
}

/// A table, as an engine must know it.
#[derive(Debug, Clone)]
pub(super) struct SqlTable {
    /// Its name in the archive.
    pub(super) name: String,
    /// Its URL.
    pub(super) url: String,
}

/// What an engine must know of the store.
#[derive(Debug, Clone, Default)]
pub(super) struct SqlStore {
    /// The address of an S3-compatible server.
    pub(super) endpoint: Option<String>,
    /// The region.
    pub(super) region: Option<String>,
}

/// Ready statements for all tables.
pub(super) fn statements(engine: Engine, tables: &[SqlTable], store: &SqlStore) -> String {
    match engine {
        Engine::Duckdb => duckdb(tables, store),
        Engine::Polars => polars(tables, store),
        Engine::Spark => spark(tables, store),
    }
}

/// An SQL name that needs no quoting, as close to the table's as can be.
fn view_name(table: &str) -> String {
    let mut name: String = table.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    name
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// What DuckDB calls the endpoint: host and port, TLS apart.
fn host_of(endpoint: &str) -> (&str, bool) {
    match endpoint.split_once("://") {
        Some(("http", host)) => (host.trim_end_matches('/'), false),
        Some((_, host)) => (host.trim_end_matches('/'), true),
        None => (endpoint, true),
    }
}

fn duckdb(tables: &[SqlTable], store: &SqlStore) -> String {
    let mut sql = String::from("-- DuckDB 1.4 or newer. Exact: reads through the table log.\nINSTALL delta; LOAD delta;\n");
    if tables.iter().any(|table| table.url.starts_with("s3://")) {
        sql.push_str("INSTALL httpfs; LOAD httpfs;\nINSTALL aws; LOAD aws;\nCREATE SECRET (TYPE s3, PROVIDER credential_chain");
        if let Some(region) = &store.region {
            let _ = write!(sql, ", REGION {}", text(region));
        }
        if let Some(endpoint) = &store.endpoint {
            let (host, tls) = host_of(endpoint);
            let _ = write!(sql, ", ENDPOINT {}, URL_STYLE 'path', USE_SSL {tls}", text(host));
        }
        sql.push_str(");\n");
    }
    sql.push_str(duckdb_secret(tables));
    for table in tables {
        let _ = writeln!(sql, "CREATE VIEW {} AS SELECT * FROM delta_scan({});", view_name(&table.name), text(&table.url));
    }
    if let Some(table) = tables.first() {
        let name = view_name(&table.name);
        let _ = write!(
            sql,
            "\n-- Events by hour, and one field of a JSON payload:\n\
             SELECT topic, date, hour, count(*) AS events FROM {name} GROUP BY ALL ORDER BY ALL;\n\
             SELECT source_partition, source_offset, event_time, try(decode(value))::JSON->>'$.type' AS type FROM {name} LIMIT 5;\n"
        );
    }
    sql
}

/// What DuckDB must know to reach a store that is not S3.
fn duckdb_secret(tables: &[SqlTable]) -> &'static str {
    match tables.first().and_then(|table| table.url.split_once("://")) {
        Some(("gs", _)) => {
            "INSTALL httpfs; LOAD httpfs;\n-- HMAC keys of a service account; DuckDB takes no others for gs://.\n\
             CREATE SECRET (TYPE gcs, KEY_ID 'GOOG...', SECRET '...');\n"
        }
        Some(("az" | "abfss", _)) => {
            "INSTALL azure; LOAD azure;\nCREATE SECRET (TYPE azure, PROVIDER credential_chain, ACCOUNT_NAME '...');\n"
        }
        _ => "",
    }
}

fn polars(tables: &[SqlTable], store: &SqlStore) -> String {
    let mut code =
        String::from("# Polars with the deltalake package. Exact: reads through the table log.\nimport polars as pl\n\n");
    let mut options = Vec::new();
    if let Some(endpoint) = &store.endpoint {
        options.push(format!("\"AWS_ENDPOINT_URL\": {endpoint:?}"));
        options.push(format!("\"AWS_ALLOW_HTTP\": \"{}\"", endpoint.starts_with("http://")));
    }
    if let Some(region) = &store.region {
        options.push(format!("\"AWS_REGION\": {region:?}"));
    }
    let argument = match options.is_empty() {
        true => String::new(),
        false => format!(", storage_options={{{}}}", options.join(", ")),
    };
    for table in tables {
        let _ = writeln!(code, "{} = pl.scan_delta({:?}{argument})", view_name(&table.name), table.url);
    }
    if let Some(table) = tables.first() {
        let name = view_name(&table.name);
        let _ =
            writeln!(code, "\nprint({name}.group_by(\"topic\", \"date\", \"hour\").len().sort(\"date\", \"hour\").collect())");
    }
    code
}

fn spark(tables: &[SqlTable], store: &SqlStore) -> String {
    let mut sql = String::from(
        "-- Spark SQL with Delta Lake (package io.delta:delta-spark). Exact: reads through the table log.\n\
         -- spark.sql.extensions=io.delta.sql.DeltaSparkSessionExtension\n\
         -- spark.sql.catalog.spark_catalog=org.apache.spark.sql.delta.catalog.DeltaCatalog\n",
    );
    if let Some(endpoint) = &store.endpoint {
        let _ = writeln!(sql, "-- spark.hadoop.fs.s3a.endpoint={endpoint}\n-- spark.hadoop.fs.s3a.path.style.access=true");
    }
    for table in tables {
        // Hadoop's clients go by other schemes for the same addresses, and Azure's wants the account in it.
        let url = match table.url.split_once("://") {
            Some(("s3", rest)) => format!("s3a://{rest}"),
            Some(("az", rest)) => format!("abfss://{}", rest.replacen('/', "@ACCOUNT.dfs.core.windows.net/", 1)),
            _ => table.url.clone(),
        };
        let _ = writeln!(sql, "CREATE OR REPLACE TEMPORARY VIEW {} AS SELECT * FROM delta.`{url}`;", view_name(&table.name));
    }
    if let Some(table) = tables.first() {
        let _ = writeln!(
            sql,
            "\nSELECT topic, date, hour, count(*) AS events FROM {} GROUP BY topic, date, hour ORDER BY date, hour;",
            view_name(&table.name)
        );
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, url: &str) -> SqlTable {
        SqlTable { name: name.to_owned(), url: url.to_owned() }
    }

    #[test]
    fn a_table_is_read_through_its_log_by_every_engine() {
        let tables = [table("audit.a-b", "s3://bucket/prod/audit.a-b")];
        let store = SqlStore { endpoint: Some("http://127.0.0.1:9000".to_owned()), region: None };
        let cases = [
            (Engine::Duckdb, "CREATE VIEW audit_a_b AS SELECT * FROM delta_scan('s3://bucket/prod/audit.a-b');"),
            (Engine::Duckdb, "ENDPOINT '127.0.0.1:9000', URL_STYLE 'path', USE_SSL false"),
            (Engine::Polars, "audit_a_b = pl.scan_delta(\"s3://bucket/prod/audit.a-b\", storage_options={"),
            (Engine::Spark, "AS SELECT * FROM delta.`s3a://bucket/prod/audit.a-b`;"),
        ];
        for (engine, part) in cases {
            let text = statements(engine, &tables, &store);
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn each_cloud_has_the_scheme_and_the_secret_that_the_engine_wants() {
        let cases = [
            (Engine::Duckdb, "gs://bucket/prod/t", "CREATE SECRET (TYPE gcs"),
            (Engine::Duckdb, "az://container/prod/t", "CREATE SECRET (TYPE azure"),
            (Engine::Spark, "az://container/prod/t", "delta.`abfss://container@ACCOUNT.dfs.core.windows.net/prod/t`"),
            (Engine::Spark, "gs://bucket/prod/t", "delta.`gs://bucket/prod/t`"),
        ];
        for (engine, url, part) in cases {
            let text = statements(engine, &[table("t", url)], &SqlStore::default());
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn names_become_plain_sql_names() {
        assert_eq!(view_name("1.x"), "_1_x");
        assert_eq!(view_name("orders"), "orders");
    }
}
