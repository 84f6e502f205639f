//! A column chunk in the making: compressed pages, and what the footer and the page index say about them.
//!
//! Promises: pages are complete Parquet data pages (version 1, which every reader knows); nothing is written twice.
//! Never: looks into values.

use std::io::Read;

use bytes::Bytes;
use parquet::basic::{BoundaryOrder, Compression, Encoding, EncodingMask, PageType, Type, ZstdLevel};
use parquet::bloom_filter::Sbbf;
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder, PageEncodingStats};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnDescPtr;

use super::codec::Codec;
use super::rle::zigzag;

/// The smallest and largest value of a page, as the page index writes them.
pub(crate) type Bounds = (Vec<u8>, Vec<u8>);

/// What is known of a page beside its bytes.
pub(crate) struct PageFacts {
    /// Rows that begin in it.
    pub(crate) rows: usize,
    /// Values, nulls and empty lists included.
    pub(crate) values: usize,
    /// Nulls.
    pub(crate) nulls: usize,
    /// The bounds, where the column has them in the page index.
    pub(crate) bounds: Option<Bounds>,
}

struct PageRecord {
    size: usize,
    facts: PageFacts,
}

/// A column chunk in the making.
pub(crate) struct Chunk {
    column: ColumnDescPtr,
    encoding: Encoding,
    level: i32,
    pages: Vec<Vec<u8>>,
    records: Vec<PageRecord>,
    compressed: usize,
    uncompressed: usize,
}

impl Chunk {
    pub(crate) fn new(column: ColumnDescPtr, encoding: Encoding, level: i32) -> Self {
        Self { column, encoding, level, pages: Vec::new(), records: Vec::new(), compressed: 0, uncompressed: 0 }
    }

    /// Compresses one page: levels and values, end to end.
    pub(crate) fn add_page(&mut self, codec: &mut Codec, body: &[u8], facts: PageFacts) {
        let compressed = codec.compress(self.level, body);
        let mut header = Vec::with_capacity(compressed.len() + HEADER_BYTES_MAX);
        data_page_header(body.len(), compressed.len(), facts.values, self.encoding, &mut header);
        self.uncompressed += header.len() + body.len();
        header.extend_from_slice(compressed);
        codec.slim();
        header.shrink_to_fit();
        self.compressed += header.len();
        self.records.push(PageRecord { size: header.len(), facts });
        self.pages.push(header);
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.compressed
    }

    /// Rows in finished pages.
    pub(crate) fn rows(&self) -> usize {
        self.records.iter().map(|page| page.facts.rows).sum()
    }

    /// Nulls in finished pages.
    pub(crate) fn nulls(&self) -> usize {
        self.records.iter().map(|page| page.facts.nulls).sum()
    }

    /// The finished chunk. `dictionary` is the dictionary's values and their number.
    pub(crate) fn close(
        mut self,
        codec: &mut Codec,
        dictionary: Option<(&[u8], usize)>,
        statistics: Option<Statistics>,
        bloom_filter: Option<Sbbf>,
    ) -> (ChunkBytes, ColumnCloseResult) {
        let dictionary_page = dictionary.map(|(body, count)| self.dictionary_page(codec, body, count));
        let dictionary_size = dictionary_page.as_ref().map_or(0, Vec::len);
        let rows = self.rows();
        let close = ColumnCloseResult {
            bytes_written: self.compressed as u64,
            rows_written: rows as u64,
            metadata: self.metadata(dictionary_size, statistics),
            bloom_filter,
            column_index: self.column_index(),
            offset_index: Some(self.offset_index(dictionary_size)),
        };
        self.pages.splice(0..0, dictionary_page);
        (ChunkBytes { pages: self.pages.into_iter().map(Bytes::from).collect(), size: self.compressed }, close)
    }

    fn dictionary_page(&mut self, codec: &mut Codec, body: &[u8], count: usize) -> Vec<u8> {
        let compressed = codec.compress(self.level, body);
        let mut page = Vec::with_capacity(compressed.len() + HEADER_BYTES_MAX);
        dictionary_page_header(body.len(), compressed.len(), count, &mut page);
        self.uncompressed += page.len() + body.len();
        page.extend_from_slice(compressed);
        self.compressed += page.len();
        page
    }

    fn metadata(&self, dictionary_size: usize, statistics: Option<Statistics>) -> ColumnChunkMetaData {
        let mut encodings = vec![Encoding::RLE, self.encoding];
        let mut stats =
            vec![PageEncodingStats { page_type: PageType::DATA_PAGE, encoding: self.encoding, count: self.records.len() as i32 }];
        if dictionary_size > 0 {
            encodings.push(Encoding::PLAIN);
            stats.insert(0, PageEncodingStats { page_type: PageType::DICTIONARY_PAGE, encoding: Encoding::PLAIN, count: 1 });
        }
        let level = ZstdLevel::try_new(self.level).expect("only levels that zstd knows are used");
        let values: usize = self.records.iter().map(|page| page.facts.values).sum();
        let mut builder = ColumnChunkMetaData::builder(self.column.clone())
            .set_compression(Compression::ZSTD(level))
            .set_encodings_mask(EncodingMask::new_from_encodings(encodings.iter()))
            .set_page_encoding_stats(stats)
            .set_total_compressed_size(self.compressed as i64)
            .set_total_uncompressed_size(self.uncompressed as i64)
            .set_num_values(values as i64)
            .set_data_page_offset(dictionary_size as i64)
            .set_dictionary_page_offset((dictionary_size > 0).then_some(0));
        if let Some(statistics) = statistics {
            builder = builder.set_statistics(statistics);
        }
        builder.build().expect("the descriptor is of the same schema")
    }

    fn offset_index(&self, dictionary_size: usize) -> parquet::file::page_index::offset_index::OffsetIndexMetaData {
        let mut builder = OffsetIndexBuilder::new();
        let mut offset = dictionary_size;
        for page in &self.records {
            builder.append_row_count(page.facts.rows as i64);
            builder.append_offset_and_size(offset as i64, page.size as i32);
            offset += page.size;
        }
        builder.build()
    }

    fn column_index(&self) -> Option<parquet::file::page_index::column_index::ColumnIndexMetaData> {
        let mut builder = ColumnIndexBuilder::new(self.column.physical_type());
        for page in &self.records {
            let (least, most) = page.facts.bounds.clone()?;
            builder.append(false, least, most, page.facts.nulls as i64, None);
        }
        builder.set_boundary_order(self.boundary_order());
        Some(builder.build().expect("bounds have the column's own width"))
    }

    /// Ascending when no page's bounds lie below those of the page before; readers then search by halves.
    fn boundary_order(&self) -> BoundaryOrder {
        let number = |bytes: &[u8]| match self.column.physical_type() {
            Type::INT32 => bytes.try_into().map(i32::from_le_bytes).map_or(0, i64::from),
            _ => bytes.try_into().map_or(0, i64::from_le_bytes),
        };
        let bounds = |page: &PageRecord| page.facts.bounds.as_ref().map(|(least, most)| (number(least), number(most)));
        let grows = self.records.windows(2).all(|pair| match (bounds(&pair[0]), bounds(&pair[1])) {
            (Some(before), Some(after)) => before.0 <= after.0 && before.1 <= after.1,
            _ => false,
        });
        if grows { BoundaryOrder::ASCENDING } else { BoundaryOrder::UNORDERED }
    }
}

/// A finished chunk's bytes, page by page.
pub(crate) struct ChunkBytes {
    pages: Vec<Bytes>,
    size: usize,
}

impl Length for ChunkBytes {
    fn len(&self) -> u64 {
        self.size as u64
    }
}

impl ChunkReader for ChunkBytes {
    type T = PageReader;

    fn get_read(&self, start: u64) -> ParquetResult<PageReader> {
        // A chunk is always spliced as a whole, from its first byte.
        debug_assert_eq!(start, 0, "a chunk is read from its beginning");
        Ok(PageReader { pages: self.pages.clone().into_iter(), page: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let mut bytes = Vec::with_capacity(length);
        self.get_read(0)?.take(start + length as u64).read_to_end(&mut bytes)?;
        Ok(Bytes::from(bytes).slice(start as usize..))
    }
}

/// Reads the pages of a chunk one after the other.
pub(crate) struct PageReader {
    pages: std::vec::IntoIter<Bytes>,
    page: Bytes,
}

impl Read for PageReader {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.page.is_empty() {
            match self.pages.next() {
                Some(page) => self.page = page,
                None => return Ok(0),
            }
        }
        let count = into.len().min(self.page.len());
        into[..count].copy_from_slice(&self.page.split_to(count));
        Ok(count)
    }
}

/// The longest page header that the functions below write.
const HEADER_BYTES_MAX: usize = 40;

/// Thrift's compact protocol: a field is one byte, the distance to the field before and the type.
const FIELD_I32: u8 = 0x15;
const FIELD_STRUCT: u8 = 0x0c;
const STOP: u8 = 0;

fn header_start(page_type: PageType, body: usize, compressed: usize, out: &mut Vec<u8>) {
    for number in [page_type as i64, body as i64, compressed as i64] {
        out.push(FIELD_I32);
        zigzag(number, out);
    }
}

fn data_page_header(body: usize, compressed: usize, values: usize, encoding: Encoding, out: &mut Vec<u8>) {
    header_start(PageType::DATA_PAGE, body, compressed, out);
    // Field 5, two after the compressed size: the header of a data page.
    out.push(0x20 | FIELD_STRUCT);
    for number in [values as i64, encoding as i64, Encoding::RLE as i64, Encoding::RLE as i64] {
        out.push(FIELD_I32);
        zigzag(number, out);
    }
    out.extend_from_slice(&[STOP, STOP]);
}

fn dictionary_page_header(body: usize, compressed: usize, values: usize, out: &mut Vec<u8>) {
    header_start(PageType::DICTIONARY_PAGE, body, compressed, out);
    // Field 7: the header of a dictionary page.
    out.push(0x40 | FIELD_STRUCT);
    for number in [values as i64, Encoding::PLAIN as i64] {
        out.push(FIELD_I32);
        zigzag(number, out);
    }
    out.extend_from_slice(&[STOP, STOP]);
}

/// The bytes of levels in a page: their length, then their runs.
pub(crate) fn put_levels(levels: &[u8], width: u8, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    super::rle::encode(levels, width, out);
    set_length(at, out);
}

/// The same for levels that are all equal.
pub(crate) fn put_constant_levels(level: u8, count: usize, width: u8, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    super::rle::encode_constant(level, count, width, out);
    set_length(at, out);
}

fn set_length(at: usize, out: &mut [u8]) {
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}
