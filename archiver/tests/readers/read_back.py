"""Reads a table of an archive with an engine that knows nothing of us, and writes every event down for the test to judge.

usage: read_back.py deltalake|polars|duckdb|spark TABLE_FOLDER OUT
       read_back.py checkpoint TABLE_FOLDER    delta-rs writes a checkpoint of its own into our log
Each event: partition i32, offset i64, time in ms i64, key, value, header count i32, then name and value of each header.
A byte string is its length (i32, -1 for null) and its bytes. All little endian.
"""
import os
import struct
import sys

COLUMNS = ["source_partition", "source_offset", "event_time", "key", "value", "headers"]


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


def arrow_rows(table):
    import pyarrow as pa
    for batch in table.select(COLUMNS).to_batches():
        time = batch.column(2).cast(pa.int64()).to_pylist()
        rest = [batch.column(i).to_pylist() for i in (0, 1, 3, 4, 5)]
        for (partition, offset, key, value, headers), at in zip(zip(*rest), time):
            yield partition, offset, at, key, value, headers


def deltalake(folder):
    from deltalake import DeltaTable
    yield from arrow_rows(DeltaTable(folder).to_pyarrow_table())


def polars(folder):
    import polars as pl
    import pyarrow as pa
    table = pl.scan_delta(folder).select(COLUMNS).collect().to_arrow()
    times = table.column("event_time").cast(pa.timestamp("us", "UTC"))
    yield from arrow_rows(table.set_column(COLUMNS.index("event_time"), "event_time", times))


def duckdb(folder):
    """By the files that the log says are live: DuckDB's own delta extension has to be downloaded."""
    import duckdb as engine
    from deltalake import DeltaTable
    files = DeltaTable(folder).file_uris()
    columns = ", ".join(c if c != "event_time" else "epoch_us(event_time) as event_time" for c in COLUMNS)
    for row in engine.execute(f"select {columns} from read_parquet($1)", [files]).fetchall():
        yield row


def spark(folder):
    from pyspark.sql import SparkSession
    jars = os.environ["TAPEDECK_SPARK_JARS"]
    session = (SparkSession.builder.master("local[2]")
               .config("spark.jars", ",".join(os.path.join(jars, name) for name in os.listdir(jars) if name.endswith(".jar")))
               .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
               .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
               .config("spark.sql.session.timeZone", "UTC").config("spark.ui.enabled", "false").getOrCreate())
    session.sparkContext.setLogLevel("ERROR")
    micros = [c if c != "event_time" else "unix_micros(event_time) as event_time" for c in COLUMNS]
    for row in session.read.format("delta").load(folder).selectExpr(*micros).toLocalIterator():
        yield tuple(row)


if __name__ == "__main__":
    if sys.argv[1] == "checkpoint":
        from deltalake import DeltaTable
        DeltaTable(sys.argv[2]).create_checkpoint()
        sys.exit()
    engine, folder, path = sys.argv[1:]
    count = 0
    with open(path, "wb") as out:
        for row in globals()[engine](folder):
            write(out, *row)
            count += 1
    print(engine, count)
