//! Parquet's hybrid of runs and bit-packed groups: definition and repetition levels, and dictionary indices.
//! Pure: values in, bytes out. Promise: any reader of the format gives back exactly the values.

/// Values of one bit-packed group.
const GROUP: usize = 8;

/// Appends `values`, each below 2^`width`.
pub(crate) fn encode(values: &[u8], width: u8, out: &mut Vec<u8>) {
    let mut at = 0;
    let mut literals = 0;
    while at + literals < values.len() {
        let next = at + literals;
        let run = run_length(&values[next..]);
        let is_last = next + run == values.len();
        if literals == 0 && (run >= GROUP || is_last) {
            run_of(values[next], run, width, out);
            at += run;
        } else if run >= 2 * GROUP {
            // Literals end at a whole group: the run lends the values that are missing.
            let lent = literals.next_multiple_of(GROUP) - literals;
            packed(&values[at..next + lent], width, out);
            at = next + lent;
            literals = 0;
        } else {
            literals += run;
        }
    }
    if literals > 0 {
        packed(&values[at..], width, out);
    }
}

/// Appends `count` times the same value.
pub(crate) fn encode_constant(value: u8, count: usize, width: u8, out: &mut Vec<u8>) {
    if count > 0 {
        run_of(value, count, width, out);
    }
}

fn run_length(values: &[u8]) -> usize {
    values.iter().take_while(|value| **value == values[0]).count()
}

fn run_of(value: u8, count: usize, width: u8, out: &mut Vec<u8>) {
    varint((count as u64) << 1, out);
    if width > 0 {
        out.push(value);
    }
}

fn packed(values: &[u8], width: u8, out: &mut Vec<u8>) {
    let groups = values.len().div_ceil(GROUP);
    varint((groups as u64) << 1 | 1, out);
    for group in values.chunks(GROUP) {
        // Eight values of at most eight bits are one number of at most 64 bits, lowest bits first.
        let word = group.iter().rev().fold(0_u64, |word, value| word << width | u64::from(*value));
        out.extend_from_slice(&word.to_le_bytes()[..usize::from(width)]);
    }
}

/// Appends an unsigned number, seven bits a byte, lowest first.
pub(crate) fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a signed number: small ones of either sign become short.
pub(crate) fn zigzag(number: i64, out: &mut Vec<u8>) {
    varint((number << 1 ^ number >> 63) as u64, out);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The format's own words, read back the slow way.
    fn decode(mut bytes: &[u8], width: u8, count: usize) -> Vec<u8> {
        let mut values = Vec::new();
        while values.len() < count {
            let header = take_varint(&mut bytes);
            if header & 1 == 0 {
                let value = if width > 0 { take(&mut bytes, 1)[0] } else { 0 };
                values.extend(std::iter::repeat_n(value, (header >> 1) as usize));
                continue;
            }
            for _ in 0..header >> 1 {
                let group = take(&mut bytes, usize::from(width));
                let bit = |at: usize| group[at / 8] >> (at % 8) & 1;
                let width = usize::from(width);
                values.extend((0..8).map(|n| (0..width).fold(0, |value, b| value | bit(n * width + b) << b)));
            }
        }
        assert!(bytes.is_empty() && values.len() < count + 8);
        values.truncate(count);
        values
    }

    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (head, tail) = bytes.split_at(count);
        *bytes = tail;
        head
    }

    fn take_varint(bytes: &mut &[u8]) -> u64 {
        let length = bytes.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
        take(bytes, length).iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f))
    }

    proptest! {
        #[test]
        fn levels_read_back_as_they_were(
            runs in proptest::collection::vec((0_u8..=3, prop_oneof![1_usize..4, 6_usize..20, 60_usize..300]), 0..40),
        ) {
            let values: Vec<u8> = runs.iter().flat_map(|(value, count)| std::iter::repeat_n(*value, *count)).collect();
            for width in [2, 5] {
                let mut out = Vec::new();
                encode(&values, width, &mut out);
                prop_assert_eq!(decode(&out, width, values.len()), values.clone());
            }
        }
    }

    #[test]
    fn equal_levels_cost_nothing() {
        let mut out = Vec::new();
        encode(&[1; 20_000], 1, &mut out);
        assert!(out.len() <= 4);
        let mut constant = Vec::new();
        encode_constant(1, 20_000, 1, &mut constant);
        assert_eq!(out, constant);
    }
}
