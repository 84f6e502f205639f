use proptest::prelude::*;

use super::*;

fn text(table: &FieldTable) -> String {
    let mut text = String::new();
    write(table.into_iter(), &mut text);
    text
}

fn table(entries: Vec<(&str, AMQPValue)>) -> FieldTable {
    let entries: BTreeMap<_, _> = entries.into_iter().map(|(name, value)| (ShortString::from(name), value)).collect();
    FieldTable::from(entries)
}

#[test]
fn the_text_is_what_the_format_says() {
    let inner = table(vec![("k", AMQPValue::Void)]);
    let all = table(vec![
        ("a", AMQPValue::Boolean(true)),
        ("b", AMQPValue::Float(0.1)),
        ("c", AMQPValue::Double(f64::NEG_INFINITY)),
        ("d", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 })),
        ("e", AMQPValue::LongString(LongString::from("\"\u{1}\\"))),
        ("f", AMQPValue::LongString(LongString::from(vec![0xFF]))),
        ("g", AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongLongInt(i64::MIN), AMQPValue::FieldTable(inner)]))),
        ("h", AMQPValue::ByteArray(ByteArray::from(vec![]))),
        ("i", AMQPValue::Timestamp(u64::MAX)),
    ]);
    let expected = r#"{"a":["t",true],"b":["f","0.1"],"c":["d","bits:fff0000000000000"],"d":["D",[2,314]],"#.to_owned()
        + r#""e":["S","\"\u0001\\"],"f":["S64","/w=="],"g":["A",[["l",-9223372036854775808],["F",{"k":["V",null]}]]],"#
        + r#""h":["x",""],"i":["T",18446744073709551615]}"#;
    assert_eq!(text(&all), expected);
    assert_eq!(read(&expected), Some(all));
}

#[test]
fn what_is_no_table_is_not_read() {
    for bad in ["", "[]", r#"{"a":1}"#, r#"{"a":["b",128]}"#, r#"{"a":["?",1]}"#, r#"{"a":["t",true,1]}"#, r#"{"a":["x","%"]}"#] {
        assert_eq!(read(bad), None, "{bad}");
    }
}

/// Equal bit for bit, so that a NaN equals itself.
fn same(one: &AMQPValue, other: &AMQPValue) -> bool {
    match (one, other) {
        (AMQPValue::Float(one), AMQPValue::Float(other)) => one.to_bits() == other.to_bits(),
        (AMQPValue::Double(one), AMQPValue::Double(other)) => one.to_bits() == other.to_bits(),
        (AMQPValue::FieldArray(one), AMQPValue::FieldArray(other)) => {
            let (one, other) = (one.as_slice(), other.as_slice());
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (AMQPValue::FieldTable(one), AMQPValue::FieldTable(other)) => same_table(one, other),
        _ => one == other,
    }
}

fn same_table(one: &FieldTable, other: &FieldTable) -> bool {
    let (one, other) = (one.inner(), other.inner());
    one.len() == other.len() && one.iter().zip(other).all(|((a, one), (b, other))| a == b && same(one, other))
}

fn any_table(value: impl Strategy<Value = AMQPValue> + Clone) -> impl Strategy<Value = FieldTable> {
    prop::collection::btree_map(".{0,20}".prop_map(ShortString::from), value, 0..6).prop_map(FieldTable::from)
}

fn any_value() -> impl Strategy<Value = AMQPValue> + Clone {
    let leaf = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u8>().prop_map(AMQPValue::ShortShortUInt),
        any::<i16>().prop_map(AMQPValue::ShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<u32>().prop_map(|bits| AMQPValue::Float(f32::from_bits(bits))),
        any::<u64>().prop_map(|bits| AMQPValue::Double(f64::from_bits(bits))),
        (any::<u8>(), any::<u32>()).prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
        ".{0,30}".prop_map(|text| AMQPValue::LongString(LongString::from(text))),
        prop::collection::vec(any::<u8>(), 0..30).prop_map(|bytes| AMQPValue::LongString(LongString::from(bytes))),
        prop::collection::vec(any::<u8>(), 0..30).prop_map(|bytes| AMQPValue::ByteArray(ByteArray::from(bytes))),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        Just(AMQPValue::Void),
    ];
    leaf.prop_recursive(6, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|values| AMQPValue::FieldArray(FieldArray::from(values))),
            any_table(inner).prop_map(AMQPValue::FieldTable),
        ]
    })
}

proptest! {
    #[test]
    fn a_table_reads_back_bit_for_bit(table in any_table(any_value())) {
        let text = text(&table);
        let again = read(&text).expect("what was written reads back");
        prop_assert!(same_table(&table, &again), "{text}");
    }
}
