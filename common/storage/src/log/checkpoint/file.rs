//! One checkpoint in the store: its footer and its head at once, its other row groups when they are asked for.
//!
//! Promises: bytes of a row group are used only if their checksum is the one in the footer, and only of the object that the
//! footer was read from. Never: panics on a file that is no checkpoint, or asks for bytes outside it; holds more of it than
//! a few row groups.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use tapedeck_common::ErrorKind;
use tapedeck_common::commit::SegmentRef;

use super::index::{Group, Holds, Index};
use super::rows::{self, Head};
use super::stats;
use crate::log::notes::Notes;
use crate::log::record::Removed;
use crate::log::tail::LogReader;
use crate::log::view::Slice;
use crate::store::{Outcome, StoreError, classify};

/// Enough for the footer of a checkpoint of some hundred thousand segments; a larger one is asked for again.
const FOOTER_GUESS: u64 = 256 * 1024;

/// A footer is not believed to be larger: it would be one of a billion segments.
const FOOTER_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// More than a row group of ours takes; past it a footer is not believed.
const GROUP_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Row groups that are fetched at once: about a megabyte each.
const GROUPS_AHEAD: usize = 4;

/// The end of every Parquet file: the footer's length, and a mark.
const TRAILER_BYTES: u64 = 8;

/// A checkpoint that is read.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    /// The record that it stands at.
    pub(in crate::log) version: u64,
    pub(super) size: u64,
    key: Path,
    /// Whatever tells this object from another under the same key.
    e_tag: Option<String>,
    parquet: ArrowReaderMetadata,
    index: Index,
}

impl CheckpointFile {
    /// Opens the checkpoint of `version`; `None` if it is not ours. `Corrupt` means that it does not serve, and nothing worse.
    pub(super) async fn open(reader: &LogReader, version: u64) -> Result<Option<(Self, Head)>, StoreError> {
        let key = reader.paths.checkpoint(version);
        let bad = |what: String| unreadable(reader, &key, what);
        let end = fetch_end(reader, &key).await?;
        let metadata = decode_footer(&end).map_err(bad)?;
        let Some(index) = Index::read(&metadata).map_err(bad)? else { return Ok(None) };
        stats::check_columns(&metadata).map_err(bad)?;
        for group in 0..metadata.num_row_groups() {
            place_of(&metadata, group, end.size).map_err(bad)?;
        }
        let parquet = guarded(|| ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new()));
        let parquet = parquet.map_err(bad)?.map_err(|error| bad(error.to_string()))?;
        let file = Self { version, size: end.size, key: key.clone(), e_tag: end.e_tag, parquet, index };
        let place = file.place(0);
        // Of a small file the end is all of it.
        let bytes = match place.start.checked_sub(end.from).map(|start| start as usize) {
            Some(start) => file.checked(reader, 0, end.bytes.slice(start..start + (place.end - place.start) as usize))?,
            None => file.fetch(reader, 0).await?,
        };
        let head = file.decode(0, bytes, rows::HEAD, rows::head).map_err(|what| file.bad(reader, what))?;
        Ok(Some((file, head)))
    }

    /// What its records noted.
    pub(in crate::log) fn notes(&self) -> &Notes {
        &self.index.notes
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.index.groups
    }

    /// The numbers of the row groups of one kind.
    pub(super) fn holding(&self, holds: Holds) -> impl Iterator<Item = usize> + '_ {
        let groups = self.index.groups.iter().enumerate();
        groups.filter(move |(_, group)| group.holds == holds).map(|(number, _)| number)
    }

    pub(super) fn metadata(&self) -> &ParquetMetaData {
        self.parquet.metadata()
    }

    /// How many rows the row groups of one kind have.
    pub(super) fn rows(&self, holds: Holds) -> u64 {
        self.holding(holds).map(|group| self.metadata().row_group(group).num_rows().unsigned_abs()).sum()
    }

    /// Where a row group lies; that it lies in the file was checked when this was opened.
    pub(super) fn place(&self, group: usize) -> Range<u64> {
        place_of(self.metadata(), group, self.size).unwrap_or_default()
    }

    /// Visits the live segments of a slice, in the order of the file.
    pub(in crate::log) async fn visit(
        &self,
        reader: &LogReader,
        slice: &Slice,
        take: &mut (dyn FnMut(SegmentRef) + Send),
    ) -> Result<(), StoreError> {
        let groups = self.holding(Holds::Add).filter(|group| stats::may_hold(self.metadata().row_group(*group), slice));
        let fetch = |group| async move { Ok::<_, StoreError>((group, self.fetch(reader, group).await?)) };
        let mut fetched = futures::stream::iter(groups).map(fetch).buffered(GROUPS_AHEAD);
        while let Some((group, bytes)) = fetched.try_next().await? {
            self.adds(group, bytes, slice, take).map_err(|what| self.bad(reader, what))?;
        }
        Ok(())
    }

    /// Visits the removed segments, in the order of the file.
    pub(in crate::log) async fn visit_removed(
        &self,
        reader: &LogReader,
        take: &mut (dyn FnMut(Removed) + Send),
    ) -> Result<(), StoreError> {
        for group in self.holding(Holds::Remove) {
            let bytes = self.fetch(reader, group).await?;
            let removed = self.removes(group, bytes).map_err(|what| self.bad(reader, what))?;
            removed.into_iter().for_each(&mut *take);
        }
        Ok(())
    }

    /// The segments of a slice in one row group.
    pub(super) fn adds(
        &self,
        group: usize,
        bytes: Bytes,
        slice: &Slice,
        take: &mut (dyn FnMut(SegmentRef) + Send),
    ) -> Result<(), String> {
        self.decode(group, bytes, rows::ADD, |batches| rows::adds(batches, slice, take))
    }

    /// The removed segments in one row group.
    pub(super) fn removes(&self, group: usize, bytes: Bytes) -> Result<Vec<Removed>, String> {
        self.decode(group, bytes, rows::REMOVE, rows::removes)
    }

    /// The bytes of a row group, checked.
    pub(super) async fn fetch(&self, reader: &LogReader, group: usize) -> Result<Bytes, StoreError> {
        let range = Some(GetRange::Bounded(self.place(group)));
        let options = GetOptions { range, if_match: self.e_tag.clone(), ..GetOptions::default() };
        let read = async { reader.store.get_opts(&self.key, options).await?.bytes().await };
        self.checked(reader, group, read.await.map_err(|error| unanswered(reader, &self.key, error))?)
    }

    fn checked(&self, reader: &LogReader, group: usize, bytes: Bytes) -> Result<Bytes, StoreError> {
        let is_right = blake3::hash(&bytes).to_hex().as_str() == self.index.groups[group].blake3;
        if is_right { Ok(bytes) } else { Err(self.bad(reader, format!("the checksum of its row group {group} is wrong"))) }
    }

    fn decode<T>(
        &self,
        group: usize,
        bytes: Bytes,
        columns: &[&str],
        read: impl FnOnce(&mut rows::Batches) -> Result<T, String>,
    ) -> Result<T, String> {
        let piece = Piece { length: self.size, start: self.place(group).start, bytes };
        let mask = ProjectionMask::columns(self.parquet.parquet_schema(), columns.iter().copied());
        let batches = || {
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(piece, self.parquet.clone());
            let mut batches = builder.with_row_groups(vec![group]).with_projection(mask).build().map_err(|e| e.to_string())?;
            read(&mut batches)
        };
        guarded(batches).and_then(|read| read)
    }

    fn bad(&self, reader: &LogReader, what: impl Into<String>) -> StoreError {
        unreadable(reader, &self.key, what)
    }
}

/// The end of a file, and which file that is.
struct End {
    size: u64,
    e_tag: Option<String>,
    /// Where `bytes` begin.
    from: u64,
    bytes: Bytes,
}

impl End {
    /// How much of the end the footer takes.
    fn footer_bytes(&self) -> Option<u64> {
        let (length, mark) = self.bytes.get(self.bytes.len().checked_sub(TRAILER_BYTES as usize)?..)?.split_at(4);
        let length = u64::from(u32::from_le_bytes(length.try_into().ok()?));
        (mark == b"PAR1").then_some(length + TRAILER_BYTES).filter(|bytes| *bytes <= self.size.min(FOOTER_BYTES_MAX))
    }
}

/// As much of the end as the footer takes, with two requests at most.
async fn fetch_end(reader: &LogReader, key: &Path) -> Result<End, StoreError> {
    let mut end = fetch_last(reader, key, FOOTER_GUESS).await?;
    let needed = |end: &End| end.footer_bytes().ok_or_else(|| unreadable(reader, key, "it has no footer"));
    if needed(&end)? > end.bytes.len() as u64 {
        end = fetch_last(reader, key, needed(&end)?).await?;
    }
    if needed(&end)? <= end.bytes.len() as u64 { Ok(end) } else { Err(unreadable(reader, key, "it changed while it was read")) }
}

async fn fetch_last(reader: &LogReader, key: &Path, bytes: u64) -> Result<End, StoreError> {
    let failed = |error| unanswered(reader, key, error);
    let options = GetOptions { range: Some(GetRange::Suffix(bytes)), ..GetOptions::default() };
    let answer = reader.store.get_opts(key, options).await.map_err(failed)?;
    let (size, e_tag, from) = (answer.meta.size, answer.meta.e_tag.clone(), answer.range.start);
    Ok(End { size, e_tag, from, bytes: answer.bytes().await.map_err(failed)? })
}

fn decode_footer(end: &End) -> Result<ParquetMetaData, String> {
    let footer = end.footer_bytes().map(|bytes| end.bytes.len() - bytes as usize..end.bytes.len() - TRAILER_BYTES as usize);
    let footer = &end.bytes[footer.ok_or("it has no footer")?];
    let options = ParquetMetaDataOptions::new().with_column_stats_policy(stats::policy());
    let decoded = guarded(|| ParquetMetaDataReader::decode_metadata_with_options(footer, Some(&options)))?;
    decoded.map_err(|error| error.to_string())
}

/// Whatever the decoder does with damaged bytes, it ends here.
fn guarded<T>(decode: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(decode)).map_err(|_| "the decoder gave up on it".to_owned())
}

/// Where a row group lies: within the file, or its footer is damaged.
fn place_of(metadata: &ParquetMetaData, group: usize, size: u64) -> Result<Range<u64>, String> {
    let row_group = metadata.row_group(group);
    let mut whole: Option<Range<u64>> = None;
    for chunk in row_group.columns() {
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let place = u64::try_from(start).ok().zip(u64::try_from(chunk.compressed_size()).ok());
        let place = place.and_then(|(start, length)| Some(start..start.checked_add(length)?)).filter(|place| place.end <= size);
        let is_sane = row_group.num_rows() >= 0 && u64::try_from(chunk.uncompressed_size()).is_ok_and(|b| b <= GROUP_BYTES_MAX);
        let place =
            place.filter(|_| is_sane).ok_or_else(|| format!("{}: its size or place is impossible", chunk.column_path()))?;
        whole = Some(whole.map_or(place.clone(), |whole| whole.start.min(place.start)..whole.end.max(place.end)));
    }
    whole.filter(|place| place.end - place.start <= GROUP_BYTES_MAX).ok_or_else(|| "it has no columns".to_owned())
}

fn unreadable(reader: &LogReader, key: &Path, what: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Corrupt, format!("table {}: {key}: {}", reader.table, what.into()))
}

/// A checkpoint that was not answered: one that is gone, or was written anew meanwhile, does not serve; everything else is
/// the store's trouble.
fn unanswered(reader: &LogReader, key: &Path, error: object_store::Error) -> StoreError {
    match classify(&error) {
        Outcome::NotFound => unreadable(reader, key, "it is gone"),
        Outcome::Exists => unreadable(reader, key, "it changed while it was read"),
        _ => StoreError::request(format!("cannot read {key}"), error),
    }
}

/// A file of which only one row group is here. Asking for more than that is an error.
#[derive(Debug, Clone)]
struct Piece {
    length: u64,
    start: u64,
    bytes: Bytes,
}

impl Length for Piece {
    fn len(&self) -> u64 {
        self.length
    }
}

impl Piece {
    fn from(&self, start: u64) -> ParquetResult<Bytes> {
        let at = start.checked_sub(self.start).filter(|at| *at <= self.bytes.len() as u64);
        at.map(|at| self.bytes.slice(at as usize..)).ok_or(ParquetError::NeedMoreData(1))
    }
}

impl ChunkReader for Piece {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let bytes = self.from(start)?;
        if bytes.len() < length { Err(ParquetError::NeedMoreData(length)) } else { Ok(bytes.slice(..length)) }
    }
}
