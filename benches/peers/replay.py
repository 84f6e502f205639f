"""What somebody would write in an afternoon instead of us: the archive's Parquet files back to Kafka, same partition, key, value
and time, idempotent. No order between files, no rate, no markers, no resuming.
usage: replay.py BROKERS FOLDER TOPIC      prints the number of events; ends with 1 if some were not delivered"""
import glob
import sys

import pyarrow.parquet as pq
from confluent_kafka import Producer

brokers, folder, topic = sys.argv[1:4]
producer = Producer({"bootstrap.servers": brokers, "acks": "all", "enable.idempotence": True, "linger.ms": 20,
                     "batch.size": 262144, "queue.buffering.max.kbytes": 262144})
COLUMNS = ["event_time", "source_partition", "key", "value"]
failed = events = 0


def report(error, _message):
    global failed
    failed += error is not None


# Folders whose names begin with an underscore are not data.
files = [name for name in sorted(glob.glob(folder + "/**/*.parquet", recursive=True)) if "/_" not in name]
for name in files:
    for batch in pq.ParquetFile(name).iter_batches(20_000, columns=COLUMNS):
        times = batch.column("event_time").cast("int64").to_pylist()
        rows = zip(times, *(batch.column(column).to_pylist() for column in COLUMNS[1:]))
        for micros, partition, key, value in rows:
            while True:
                try:
                    producer.produce(topic, value, key, partition=partition, timestamp=micros // 1_000, on_delivery=report)
                    break
                except BufferError:
                    producer.poll(0.1)
            events += 1
        producer.poll(0)
left = producer.flush(120)
print(events)
sys.exit(1 if left or failed else 0)
