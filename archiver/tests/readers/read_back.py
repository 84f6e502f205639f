"""Reads a table of an archive with an engine that knows nothing of us, and writes every event down for the test to judge.

usage: read_back.py ENGINE TABLE_FOLDER OUT     an engine is a function of this file that takes a folder
       read_back.py gaps ENGINE TABLE_FOLDER    prints how many rows `_gaps` has, and how many positions they say are lost
       read_back.py checkpoint TABLE_FOLDER     delta-rs writes a checkpoint of its own into our log
Prints the engine, how it came to the files, and the count. Each event: partition i32, offset i64, time in ms i64, key, value,
header count i32, then name and value of each header. A byte string is its length (i32, -1 for null) and its bytes. All little endian.
"""
import os
import shutil
import struct
import sys
import tempfile

TIME = "event_time"
COLUMNS = ["source_partition", "source_offset", TIME, "key", "value", "headers"]
ROWS = 8192
BY_LOG = "by the log"
BY_LIST = "by the list of live files"


def text(data):
    if data is None:
        return struct.pack("<i", -1)
    data = data.encode() if isinstance(data, str) else bytes(data)
    return struct.pack("<i", len(data)) + data


def millis(time):
    """Microseconds come as numbers, or as times that know their zone."""
    if isinstance(time, int):
        return time // 1000
    whole = int(time.timestamp())
    return whole * 1000 + time.microsecond // 1000


def write(out, partition, offset, time, key, value, headers):
    pairs = [(h["key"], h["value"]) for h in headers or []]
    out.write(struct.pack("<iqq", partition, offset, millis(time)))
    out.write(text(key) + text(value) + struct.pack("<i", len(pairs)))
    for name, data in pairs:
        out.write(text(name) + text(data))


def columns_with(micros):
    """The columns, with the time in microseconds by the engine's own function."""
    return [c if c != TIME else f"{micros}({TIME}) as {TIME}" for c in COLUMNS]


def arrow_rows(batches):
    import pyarrow as pa
    for batch in batches:
        columns = [batch.column(name) for name in COLUMNS]
        if TIME in COLUMNS:
            columns[COLUMNS.index(TIME)] = columns[COLUMNS.index(TIME)].cast(pa.int64())
        yield from zip(*[column.to_pylist() for column in columns])


def live_files(folder):
    from deltalake import DeltaTable
    return DeltaTable(folder).file_uris()


def deltalake(folder):
    """delta-rs, by the engine that it carries."""
    import pyarrow as pa
    from deltalake import DeltaTable, QueryBuilder
    reader = QueryBuilder().register("events", DeltaTable(folder)).execute(f"select {', '.join(COLUMNS)} from events")
    return BY_LOG, arrow_rows(pa.RecordBatchReader.from_stream(reader))


def pyarrow(folder):
    """Arrow's own Parquet reader; delta-rs reads the log for it."""
    from deltalake import DeltaTable
    return BY_LOG, arrow_rows(DeltaTable(folder).to_pyarrow_dataset().to_batches(columns=COLUMNS))


def delta_kernel(folder):
    """delta-kernel-rs, as Delta Sharing's client carries it."""
    import delta_kernel_rust_sharing_wrapper as kernel
    url = "file://" + os.path.abspath(folder) + "/"
    interface = kernel.PythonInterface(url)
    snapshot = kernel.Table(url).snapshot(interface)
    return BY_LOG, arrow_rows(kernel.ScanBuilder(snapshot).build().execute(interface))


def polars(folder):
    import polars as pl
    import pyarrow as pa
    table = pl.scan_delta(folder).select(COLUMNS).collect().to_arrow()
    if TIME in COLUMNS:
        table = table.set_column(COLUMNS.index(TIME), TIME, table.column(TIME).cast(pa.timestamp("us", "UTC")))
    return BY_LOG, arrow_rows(table.to_batches())


def duckdb(folder):
    """DuckDB's own delta extension has to be downloaded from a place that not everybody reaches."""
    import duckdb as engine
    found = engine.execute(f"select {', '.join(columns_with('epoch_us'))} from read_parquet($1)", [live_files(folder)])

    def rows():
        while some := found.fetchmany(ROWS):
            yield from some
    return BY_LIST, rows()


def datafusion(folder):
    from datafusion import SessionContext
    from deltalake import DeltaTable
    context = SessionContext()
    context.register_table("events", DeltaTable(folder))
    found = context.sql(f"select {', '.join(COLUMNS)} from events")
    return BY_LOG, arrow_rows(batch.to_pyarrow() for batch in found.execute_stream())


def chdb(folder):
    """ClickHouse. It reads only below the folder that it stands in; its strings are bytes, and as Arrow must not be taken for text."""
    import chdb as engine
    import pyarrow as pa
    columns = ", ".join(columns_with("toUnixTimestamp64Micro"))
    os.chdir("/")
    found = engine.query(f"select {columns} from deltaLakeLocal('{folder}') settings output_format_arrow_string_as_string = 0",
                         "ArrowStream")
    return BY_LOG, arrow_rows(pa.ipc.open_stream(found.bytes()))


def spark(folder):
    return BY_LOG, spark_rows(folder)


def spark_rows(folder):
    from pyarrow import dataset
    from pyspark.sql import SparkSession
    jars = os.environ["TAPEDECK_SPARK_JARS"]
    session = (SparkSession.builder.master("local[2]")
               .config("spark.jars", ",".join(os.path.join(jars, name) for name in os.listdir(jars) if name.endswith(".jar")))
               .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
               .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
               .config("spark.sql.session.timeZone", "UTC").config("spark.ui.enabled", "false")
               .config("spark.driver.memory", "1g").getOrCreate())
    session.sparkContext.setLogLevel("ERROR")
    found = session.read.format("delta").load(folder).selectExpr(*columns_with("unix_micros"))
    # Its tasks write what they read: rows that come back to the driver are held there in whole files.
    copy = tempfile.mkdtemp(prefix="tapedeck-spark-")
    try:
        found.write.mode("overwrite").parquet(copy)
        yield from arrow_rows(dataset.dataset(copy, format="parquet").to_batches(columns=COLUMNS))
    finally:
        shutil.rmtree(copy)


if __name__ == "__main__":
    if sys.argv[1] == "checkpoint":
        from deltalake import DeltaTable
        DeltaTable(sys.argv[2]).create_checkpoint()
        sys.exit()
    if sys.argv[1] == "gaps":
        COLUMNS = ["from_position", "until_position"]
        way, rows = globals()[sys.argv[2]](sys.argv[3])
        lost = [until - since for since, until in rows]
        print(sys.argv[2], way, len(lost), sum(lost))
        sys.exit()
    engine, folder, path = sys.argv[1:]
    # Modules of the same names as these functions are imported by them, not found beside this file.
    way, rows = globals()[engine](folder)
    count = 0
    with open(path, "wb") as out:
        for row in rows:
            write(out, *row)
            count += 1
    print(engine, way, count)
