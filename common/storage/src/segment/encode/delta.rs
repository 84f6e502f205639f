//! DELTA_BINARY_PACKED: blocks of 128 differences, each packed as narrow as its quarter allows.
//! Pure: numbers in, bytes out. Numbers are not negative, so differences of 32-bit ones fit 32 bits.

use super::rle::{varint, zigzag};

const BLOCK: usize = 128;
const QUARTERS: usize = 4;
const QUARTER: usize = BLOCK / QUARTERS;

/// Appends `values`.
pub(crate) fn encode<T: Copy + Into<i64>>(values: &[T], out: &mut Vec<u8>) {
    varint(BLOCK as u64, out);
    varint(QUARTERS as u64, out);
    varint(values.len() as u64, out);
    let mut last: i64 = values.first().map_or(0, |first| (*first).into());
    zigzag(last, out);
    for block in values.get(1..).unwrap_or_default().chunks(BLOCK) {
        let mut differences = [0_i64; BLOCK];
        for (difference, value) in differences.iter_mut().zip(block) {
            let value = (*value).into();
            *difference = value.wrapping_sub(last);
            last = value;
        }
        encode_block(&differences[..block.len()], out);
    }
}

fn encode_block(differences: &[i64], out: &mut Vec<u8>) {
    let least = differences.iter().copied().min().unwrap_or(0);
    zigzag(least, out);
    let mut above = [0_u64; BLOCK];
    for (above, difference) in above.iter_mut().zip(differences) {
        *above = difference.wrapping_sub(least) as u64;
    }
    let widths_at = out.len();
    out.extend_from_slice(&[0; QUARTERS]);
    // A quarter beyond the end has width 0 and takes no room.
    for (quarter, values) in above.chunks_exact(QUARTER).enumerate().take(differences.len().div_ceil(QUARTER)) {
        let all = values.iter().fold(0, |all, value| all | value);
        let width = (u64::BITS - all.leading_zeros()) as u8;
        out[widths_at + quarter] = width;
        pack(values, u32::from(width), out);
    }
}

/// Packs `width` bits of each value, lowest first.
fn pack(values: &[u64], width: u32, out: &mut Vec<u8>) {
    let mut word = 0_u64;
    let mut filled = 0;
    for value in values {
        word |= value << filled;
        let taken = 64 - filled;
        if width >= taken {
            out.extend_from_slice(&word.to_le_bytes());
            word = value.checked_shr(taken).unwrap_or(0);
            filled = width - taken;
        } else {
            filled += width;
        }
    }
    out.extend_from_slice(&word.to_le_bytes()[..filled.div_ceil(8) as usize]);
}
