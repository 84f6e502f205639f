//! How names become keys: folders of tables, paths of segments, and the archive's own objects.
//!
//! Promises: two names never share a key; a key holds only `[A-Za-z0-9._=!/-]`, so that no store client encodes it again.
//! Never: trusts a name read back out of a key unless it gives that key again; the true name stands in the record.

use object_store::path::Path;
use tapedeck_common::Window;
use uuid::Uuid;

use crate::gap_table;
use crate::log::LogPaths;

/// The longest escaped name: three of them and the fixed parts stay far below the 255 bytes that file systems give a name.
const NAME_BYTES_MAX: usize = 120;

/// Hex digits of the hash that stands for the end of a name that is too long.
const HASH_DIGITS: usize = 16;

/// A name as one folder of a key. Every byte outside `[A-Za-z0-9._=-]`, and a leading `_` or `.`, becomes `!XX`.
pub fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for (index, byte) in name.bytes().enumerate() {
        let plain = match byte {
            b'_' | b'.' => index > 0,
            _ => byte.is_ascii_alphanumeric() || byte == b'=' || byte == b'-',
        };
        if plain {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("!{byte:02X}"));
        }
    }
    match escaped.len() {
        // No other name becomes a lone mark.
        0 => "!".to_owned(),
        length if length > NAME_BYTES_MAX || looks_shortened(&escaped) => shortened(name, &escaped),
        _ => escaped,
    }
}

/// The longest whole prefix that leaves room, and the hash of the name itself.
fn shortened(name: &str, escaped: &str) -> String {
    let room = NAME_BYTES_MAX - 1 - HASH_DIGITS;
    let mut end = escaped.len().min(room);
    // Never through the middle of an escape.
    if let Some(mark) = escaped[..end].rfind('!').filter(|mark| mark + 3 > end) {
        end = mark;
    }
    let hash = blake3::hash(name.as_bytes()).to_hex();
    format!("{}!{}", &escaped[..end], &hash[..HASH_DIGITS])
}

/// A short name that reads like a shortened one is hashed as well; otherwise the two could meet in one key.
fn looks_shortened(escaped: &str) -> bool {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let tail = escaped.len().checked_sub(HASH_DIGITS + 1).and_then(|at| escaped.as_bytes().get(at..));
    tail.is_some_and(|tail| tail[0] == b'!' && tail[1..].iter().all(|byte| lower_hex(*byte)))
}

/// True if the lanes of a source count what arrived by one channel of a queue: such a lane ends with its channel and stands still
/// for ever after, while others go on.
pub fn counts_arrivals(source: &str) -> bool {
    source.starts_with("rabbitmq/")
}

/// The folder of a table, below the archive's root.
pub fn table_folder(table: &str) -> String {
    escape(table)
}

/// The table whose folder this is, for a log whose record 0 is gone; `None` if the name was too long to stand in a key.
pub fn table_of_folder(folder: &str) -> Option<String> {
    let mut name = Vec::with_capacity(folder.len());
    let mut rest = folder.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'!' {
            name.push(*byte);
        } else if !rest.is_empty() {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            name.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        }
    }
    String::from_utf8(name).ok().filter(|name| table_folder(name) == folder)
}

/// The path of a segment below its table's folder, as records name it.
pub fn segment_path(topic: &str, window: Window, name: &Uuid) -> String {
    format!("topic={}/date={}/hour={:02}/{name}.parquet", escape(topic), window.date(), window.hour())
}

/// The hour that stands in a segment's path; `None` where it names none.
pub fn segment_window(path: &str) -> Option<Window> {
    let mut folders = path.rsplit('/').skip(1);
    let (hour, date) = (folders.next()?.strip_prefix("hour=")?, folders.next()?.strip_prefix("date=")?);
    // Only four-digit years: anything longer would overflow a calendar's arithmetic.
    (date.len() == 10).then(|| Window::parse(date, hour))?
}

/// True if a record may name a segment like this: any other path is no key, or the key of something else.
pub fn is_segment_path(path: &str) -> bool {
    !path.is_empty() && Path::parse(path).is_ok_and(|parsed| parsed.as_ref() == path)
}

/// The key of an object of a table, from the table's true name and the path that a record holds ([`is_segment_path`]).
pub fn table_object(table: &str, path: &str) -> Path {
    key(&format!("{}/{path}", table_folder(table)))
}

/// The archive's identity: id, format, how topics become tables.
pub fn archive_config() -> Path {
    key("_archive/config.json")
}

/// An object of the start-up probe.
pub fn archive_probe(probe: &Uuid) -> Path {
    key(&format!("_archive/probe/{probe}"))
}

/// Which table a topic went to, once and for all.
pub fn archive_topic(topic: &str) -> Path {
    key(&format!("_archive/topics/{}.json", escape(topic)))
}

/// An object of a replay job: its plan, cursor, lease, report.
pub fn archive_job(job: &str, object: &str) -> Path {
    key(&format!("_archive/jobs/{}/{object}", escape(job)))
}

/// A replay in progress that holds on to a version of a table.
pub fn archive_pin(holder: &str) -> Path {
    key(&format!("_archive/pins/{}.json", escape(holder)))
}

/// A record of the derived table of gaps.
pub fn gap_table_record(version: u64) -> Path {
    LogPaths::in_folder(gap_table::FOLDER).record(version)
}

/// A file of the derived table of gaps.
pub fn gap_table_file(name: &str) -> Path {
    key(&format!("{}/{name}", gap_table::FOLDER))
}

fn key(text: &str) -> Path {
    Path::parse(text).expect("escaped names and fixed words hold no empty, relative or encoded part")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tapedeck_common::Timestamp;

    use super::*;

    #[test]
    fn names_become_the_keys_that_the_format_page_shows() {
        let cases = [
            ("orders", "orders"),
            ("audit.eu_west-1", "audit.eu_west-1"),
            ("_archive", "!5Farchive"),
            ("..", "!2E."),
            (".", "!2E"),
            ("a/b", "a!2Fb"),
            ("a!b", "a!21b"),
            ("50%~", "50!25!7E"),
            ("größe", "gr!C3!B6!C3!9Fe"),
            ("k=v", "k=v"),
            ("", "!"),
        ];
        for (name, escaped) in cases {
            assert_eq!(escape(name), escaped, "{name}");
            assert_eq!(table_of_folder(escaped).as_deref(), Some(name));
        }
        for folder in [escape(&"x".repeat(300)).as_str(), "_archive", "a!2", "a!2f", "größe"] {
            assert_eq!(table_of_folder(folder), None, "{folder}");
        }
    }

    #[test]
    fn a_long_name_keeps_its_beginning_and_ends_in_its_hash() {
        let name = format!("{}/tail", "a".repeat(102));
        let escaped = escape(&"x".repeat(300));
        assert_eq!(escaped.len(), 120);
        assert!(escaped.starts_with("xxxx"));
        // The escape of '/' would straddle the cut, so the whole of it goes.
        let straddling = escape(&format!("{name}{}", "b".repeat(60)));
        assert!(straddling.starts_with(&"a".repeat(102)) && straddling.as_bytes()[102] == b'!', "{straddling}");
    }

    #[test]
    fn a_name_made_to_look_shortened_meets_no_other() {
        let long = (0..).map(|n| format!("{}{n}", "x".repeat(200))).find(|long| {
            let tail = escape(long)[104..].to_owned();
            tail.as_bytes()[..2].iter().all(u8::is_ascii_digit)
        });
        let escaped = escape(&long.expect("every third hash begins with two digits"));
        let byte = u8::from_str_radix(&escaped[104..106], 16).expect("hex");
        let forged = format!("{}{}{}", "x".repeat(103), char::from(byte), &escaped[106..]);
        assert_ne!(escape(&forged), escaped);
    }

    #[test]
    fn a_segment_lies_in_the_folder_of_its_hour() {
        let window = Window::of(Timestamp::from_micros(1_795_082_400_123_000));
        let path = segment_path("a/b", window, &Uuid::nil());
        assert_eq!(path, "topic=a!2Fb/date=2026-11-19/hour=10/00000000-0000-0000-0000-000000000000.parquet");
        assert_eq!(table_object("_t", &path).as_ref(), format!("!5Ft/{path}"));
        assert_eq!(segment_window(&path), Some(window));
        for path in ["x.parquet", "date=2026-11-19/hour=24/x", "hour=10/date=2026-11-19/x", "date=99999999999-01-01/hour=1/x"] {
            assert_eq!(segment_window(path), None, "{path}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn two_names_never_share_a_key(names in proptest::collection::vec(".{0,60}|[_.!/=a]{0,8}|[a!/]{90,200}|(ab|!){40,90}", 2..12)) {
            let mut seen = BTreeMap::new();
            for name in names {
                let escaped = escape(&name);
                prop_assert!(escaped.len() <= NAME_BYTES_MAX);
                prop_assert!(table_of_folder(&escaped).is_none_or(|read| read == name));
                prop_assert!(!escaped.starts_with(['_', '.']) && !escaped.is_empty());
                prop_assert!(escaped.bytes().all(|b| b.is_ascii_alphanumeric() || b"._=!-".contains(&b)));
                if let Some(other) = seen.insert(escaped, name.clone()) {
                    prop_assert_eq!(other, name);
                }
            }
        }

        #[test]
        fn the_store_client_leaves_a_key_as_it_is(name in ".{0,200}") {
            let key = table_object(&name, &segment_path(&name, Window::of(Timestamp::default()), &Uuid::nil()));
            let text = format!("{0}/topic={0}/date=1970-01-01/hour=00/{1}.parquet", escape(&name), Uuid::nil());
            prop_assert_eq!(key.as_ref(), text.as_str());
            let encoded = Path::from(text.as_str());
            prop_assert_eq!(encoded.as_ref(), text.as_str());
        }
    }
}
