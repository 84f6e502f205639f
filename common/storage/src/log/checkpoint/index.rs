//! What the footer of a checkpoint of ours says beyond Parquet: what each row group holds, where its segments begin in the
//! order of the file, its checksum; the notes that stand only in records; and a checksum of the footer itself.
//!
//! Promises: what is parsed is whole, of the right number of groups and in order, and nothing that readers go by has changed since
//! it was written. A checkpoint without it is somebody else's.

use parquet::file::metadata::{KeyValue, ParquetMetaData, RowGroupMetaData};
use serde::{Deserialize, Serialize};
use tapedeck_common::commit::{GapCause, SegmentRef};
use tapedeck_common::{LaneId, Position, Span, Window};

use super::stats;
use crate::layout;
use crate::log::notes::{GapNote, Notes};

/// Marks the files that this version of the format describes.
const MARK: (&str, &str) = ("tapedeck.checkpoint", "2");

const GROUPS: &str = "tapedeck.groups";

const NOTES: &str = "tapedeck.notes";

const CHECK: &str = "tapedeck.check";

/// What a row group holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Holds {
    /// Protocol, metaData and positions: always the first group, and all that writers read.
    Head,
    /// Segments that were taken out.
    Remove,
    /// Live segments.
    Add,
}

/// A segment's place in the order of a checkpoint. The topic stands in the path, before everything else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(String, String)", into = "(String, String)")]
pub(super) struct Place {
    window: Window,
    path: String,
}

impl Place {
    pub(super) fn of(segment: &SegmentRef) -> Self {
        Self { window: segment.window, path: segment.path.clone() }
    }

    /// Where a segment of this path stands, if the path tells its hour, as ours do.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        Some(Self { window: layout::segment_window(path)?, path: path.to_owned() })
    }
}

impl From<Place> for (String, String) {
    fn from(place: Place) -> Self {
        (place.window.to_string(), place.path)
    }
}

impl TryFrom<(String, String)> for Place {
    type Error = &'static str;

    fn try_from((hour, path): (String, String)) -> Result<Self, Self::Error> {
        let window = hour.split_once('T').filter(|(date, _)| date.len() == 10);
        let window = window.and_then(|(date, hour)| Window::parse(date, hour));
        Ok(Self { window: window.ok_or("a place begins with no hour")?, path })
    }
}

/// One row group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Group {
    pub(super) holds: Holds,
    /// BLAKE3 of its bytes, so that no damage is ever copied into the next checkpoint.
    pub(super) blake3: String,
    /// Its first segment, where it holds live ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) first: Option<Place>,
}

/// Everything of ours in a footer.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) groups: Vec<Group>,
    pub(super) notes: Notes,
}

impl Index {
    /// As the footer of these row groups carries it.
    pub(super) fn metadata<'a>(
        groups: &[Group],
        notes: &Notes,
        row_groups: impl Iterator<Item = &'a RowGroupMetaData>,
    ) -> [KeyValue; 4] {
        let pair = |key: &str, value: String| KeyValue { key: key.to_owned(), value: Some(value) };
        let text = |value: serde_json::Result<String>| value.expect("plain data always serialises");
        let (groups, notes) = (text(serde_json::to_string(groups)), text(serde_json::to_string(&WireNotes::of(notes))));
        let check = checksum([&groups, &notes], row_groups);
        [pair(MARK.0, MARK.1.to_owned()), pair(GROUPS, groups), pair(NOTES, notes), pair(CHECK, check)]
    }

    /// Out of a footer; `None` if the file is not ours.
    pub(super) fn read(footer: &ParquetMetaData) -> Result<Option<Self>, String> {
        let pairs = footer.file_metadata().key_value_metadata().map_or(&[][..], Vec::as_slice);
        let value = |key: &str| pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.as_deref());
        if value(MARK.0) != Some(MARK.1) {
            return Ok(None);
        }
        let text = |key: &str| value(key).ok_or_else(|| format!("its footer has no {key}"));
        let texts = [text(GROUPS)?, text(NOTES)?];
        // The first checkpoints had none.
        if value(CHECK).is_some_and(|check| check != checksum(texts, footer.row_groups().iter())) {
            return Err("the checksum of its footer is wrong".to_owned());
        }
        let bad = |error: serde_json::Error| format!("its footer: {error}");
        let groups: Vec<Group> = serde_json::from_str(texts[0]).map_err(bad)?;
        let notes: WireNotes = serde_json::from_str(texts[1]).map_err(bad)?;
        check(&groups, footer.num_row_groups())?;
        Ok(Some(Self { groups, notes: notes.notes().ok_or("its notes cannot be read")? }))
    }
}

/// Over everything in a footer that readers go by, and that no row group's own checksum covers.
fn checksum<'a>(texts: [&str; 2], row_groups: impl Iterator<Item = &'a RowGroupMetaData>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut take = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    texts.iter().for_each(|text| take(text.as_bytes()));
    for group in row_groups {
        take(&group.num_rows().to_le_bytes());
        for (column, with_statistics) in group.columns().iter().zip(stats::has_statistics()) {
            let dictionary = column.dictionary_page_offset().unwrap_or(-1);
            let sizes = [column.num_values(), column.compressed_size(), column.uncompressed_size()];
            for number in sizes.into_iter().chain([column.data_page_offset(), dictionary]) {
                take(&number.to_le_bytes());
            }
            if let Some(statistics) = column.statistics().filter(|_| *with_statistics) {
                take(statistics.min_bytes_opt().unwrap_or_default());
                take(statistics.max_bytes_opt().unwrap_or_default());
                take(&statistics.null_count_opt().unwrap_or(u64::MAX).to_le_bytes());
            }
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// Head, then what was removed, then what is live, in order.
fn check(groups: &[Group], row_groups: usize) -> Result<(), String> {
    let heads = groups.iter().take_while(|group| group.holds == Holds::Head).count();
    let adds = groups.partition_point(|group| group.holds != Holds::Add);
    let in_kind = heads == 1
        && groups[1..adds].iter().all(|group| group.holds == Holds::Remove)
        && groups[adds..].iter().all(|group| group.holds == Holds::Add && group.first.is_some());
    let in_order = groups.get(adds..).is_some_and(|adds| adds.is_sorted_by(|a, b| a.first < b.first));
    if groups.len() == row_groups && in_kind && in_order { Ok(()) } else { Err("its groups are not what it says".to_owned()) }
}

#[derive(Debug, Serialize, Deserialize)]
struct WireNotes {
    /// Lane, from, until, cause, record.
    gaps: Vec<(String, u64, u64, String, u64)>,
    /// Lane, events left out.
    skipped: Vec<(String, u64)>,
}

impl WireNotes {
    fn of(notes: &Notes) -> Self {
        let gap = |gap: &GapNote| {
            let (from, until) = (gap.span.from().get(), gap.span.until().get());
            (gap.lane.to_string(), from, until, gap.cause.as_str().to_owned(), gap.version)
        };
        let skipped = notes.skipped.iter().map(|(lane, events)| (lane.to_string(), *events));
        Self { gaps: notes.gaps.iter().map(gap).collect(), skipped: skipped.collect() }
    }

    fn notes(&self) -> Option<Notes> {
        let mut notes = Notes::default();
        for (lane, from, until, cause, version) in &self.gaps {
            let span = Span::new(Position::new(*from), Position::new(*until)).ok()?;
            let (lane, cause) = (LaneId::parse(lane)?, GapCause::parse(cause)?);
            notes.gaps.push(GapNote { lane, span, cause, version: *version });
        }
        for (lane, events) in &self.skipped {
            notes.skipped.insert(LaneId::parse(lane)?, *events);
        }
        Some(notes)
    }
}
