//! What may never change: the columns, their types and their ids, and what a segment says about itself.

use bytes::Bytes;
use parquet::file::properties::ReaderProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::serialized_reader::ReadOptionsBuilder;
use parquet::schema::types::Type;
use tapedeck_storage::schema::{self, metadata};
use tapedeck_storage::segment::{SegmentReader, WriterOptions};

use crate::kit::{Event, write};

fn segment() -> Bytes {
    write(&WriterOptions::default(), &[vec![Event::plain(2, 5, b"v".to_vec()), Event::plain(2, 9, b"w".to_vec())]]).0
}

fn ids(node: &Type, depth: usize, text: &mut String) {
    for field in node.get_fields() {
        let info = field.get_basic_info();
        let id = if info.has_id() { info.id().to_string() } else { "-".to_owned() };
        text.push_str(&format!("{}{id} {}\n", "  ".repeat(depth), field.name()));
        if field.is_group() {
            ids(field, depth + 1, text);
        }
    }
}

#[test]
fn the_columns_are_those_of_layout_1_for_ever() {
    let reader = SerializedFileReader::new(segment()).expect("a Parquet file");
    let root = reader.metadata().file_metadata().schema();
    let mut text = Vec::new();
    parquet::schema::printer::print_schema(&mut text, root);
    let mut text = String::from_utf8(text).expect("text");
    text.push_str("\nfield ids\n");
    ids(root, 0, &mut text);
    assert_eq!(text, include_str!("../golden/layout-1.txt"), "layout 1 never changes:\n{text}");
    assert_eq!(root, schema::parquet_schema().root_schema());
}

/// A key that is there is always found, and the filter shrinks to the number of keys.
#[test]
fn the_filter_knows_every_key() {
    for count in [3_u64, 5_000, 60_000] {
        let events = (0..count).map(|n| Event::plain(0, n, vec![b'v'; 20])).collect();
        let (object, _) = write(&WriterOptions::default(), &[events]);
        let reader = SerializedFileReader::new_with_options(
            object,
            ReadOptionsBuilder::new()
                .with_reader_properties(ReaderProperties::builder().set_read_bloom_filter(true).build())
                .build(),
        )
        .expect("a Parquet file");
        let group = reader.get_row_group(0).expect("one row group");
        let filter = group.get_column_bloom_filter(7).expect("keys have a filter");
        assert!((0..count).all(|n| filter.check(n.to_string().as_bytes())));
        let in_vain = (count..count + 10_000).filter(|n| filter.check(n.to_string().as_bytes())).count();
        assert!(in_vain < 1_000, "{in_vain} of 10,000 strangers pass with {count} keys");
        assert!(filter.num_blocks() as u64 * 32 <= 64 + count * 4, "{} blocks for {count} keys", filter.num_blocks());
    }
}

#[test]
fn a_segment_says_what_it_holds() {
    let reader = SegmentReader::from_bytes("golden", segment()).expect("opens");
    let notes = [(metadata::LAYOUT, "1"), (metadata::TOPIC, "orders"), (metadata::LANES, "2:5-9:2")];
    for (key, value) in notes {
        assert_eq!(reader.note(key), Some(value));
    }
    assert_eq!(reader.note(metadata::WRITER), Some(concat!("tapedeck/", env!("CARGO_PKG_VERSION"))));
    assert_eq!((reader.topic(), reader.rows()), (Some("orders"), 2));
}
