"""What somebody would write in an afternoon instead of us: confluent-kafka to zstd Parquet by date and hour, offsets committed
at the end. No crash safety, no headers, all partitions in one process.
usage: archive.py BROKERS TOPIC FOLDER [ZSTD_LEVEL]      prints the number of events"""
import os
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, TopicPartition

brokers, topic, folder = sys.argv[1:4]
level = int(sys.argv[4]) if len(sys.argv) > 4 else 1
ROWS_AT_ONCE = 50_000
SCHEMA = pa.schema([("partition", pa.int32()), ("offset", pa.int64()), ("timestamp", pa.timestamp("ms", "UTC")),
                    ("key", pa.binary()), ("value", pa.binary())])

consumer = Consumer({"bootstrap.servers": brokers, "group.id": f"peer-{time.time_ns()}", "auto.offset.reset": "earliest",
                     "enable.auto.commit": False, "enable.partition.eof": True})
partitions = sorted(consumer.list_topics(topic, 30).topics[topic].partitions)
consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
waiting, writers, events, ends = {}, {}, 0, 0


def write(group):
    rows = waiting.pop(group)
    if group not in writers:
        partition, hour = group
        when = time.strftime("date=%Y-%m-%d/hour=%H", time.gmtime(hour * 3600))
        os.makedirs(f"{folder}/{when}", exist_ok=True)
        writers[group] = pq.ParquetWriter(f"{folder}/{when}/p{partition}-{rows[0][1]}.parquet", SCHEMA, compression="zstd",
                                          compression_level=level, use_dictionary=False)
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows), SCHEMA)]
    writers[group].write_table(pa.table(columns, schema=SCHEMA))


while ends < len(partitions):
    for message in consumer.consume(5_000, 1.0):
        if message.error():
            ends += 1
            continue
        millis = message.timestamp()[1]
        group = (message.partition(), millis // 3_600_000)
        rows = waiting.setdefault(group, [])
        rows.append((message.partition(), message.offset(), millis, message.key(), message.value()))
        events += 1
        if len(rows) >= ROWS_AT_ONCE:
            write(group)
for group in list(waiting):
    write(group)
for writer in writers.values():
    writer.close()
consumer.commit(asynchronous=False)
print(events)
