//! The documents of the workloads. Written field by field into one string: it must make a million in seconds.

use std::fmt::Write;

use fastrand::Rng;

use super::Event;
use super::words::Words;

const KINDS: [&str; 8] =
    ["page_view", "page_view", "page_view", "search", "add_to_cart", "order_placed", "order_shipped", "refund"];
const COUNTRIES: [&str; 10] = ["DE", "US", "FR", "GB", "PL", "ES", "IT", "NL", "SE", "JP"];
const CURRENCIES: [&str; 5] = ["EUR", "USD", "GBP", "PLN", "SEK"];
const SYSTEMS: [&str; 5] = [
    "Windows NT 10.0; Win64; x64",
    "Macintosh; Intel Mac OS X 14_5",
    "X11; Linux x86_64",
    "iPhone; CPU iPhone OS 18_1 like Mac OS X",
    "Linux; Android 15; Pixel 8",
];

/// Writing to a string can't fail, so its result says nothing.
macro_rules! put {
    ($out:expr, $($part:tt)*) => { let _ = write!($out, $($part)*); };
}

/// Makes the document of one event.
pub(crate) struct Maker<'a> {
    pub(crate) words: &'a Words,
    pub(crate) index: u64,
    pub(crate) timestamp: i64,
}

impl Maker<'_> {
    /// What a shop sends: a customer does something, perhaps with a basket.
    pub(crate) fn shop(&self, rng: &mut Rng) -> Event {
        let customer = frequent_customer(rng);
        let mut text = String::with_capacity(2_048);
        self.head(rng, customer, &mut text);
        self.visit(rng, customer, &mut text);
        self.basket(rng, customer, &mut text);
        text.push_str(",\"note\":\"");
        let words = rng.usize(44..70);
        self.words.phrase(rng, words, &mut text);
        put!(text, "\",\"trace\":\"{:032x}\"}}", rng.u128(..));
        Event {
            key: Some(format!("c{customer:06}").into_bytes()),
            value: Some(text.into_bytes()),
            headers: Vec::new(),
            timestamp: self.timestamp,
        }
    }

    /// A document of exactly `size` bytes: the same fields, then line items until it is full.
    pub(crate) fn sized(&self, rng: &mut Rng, size: usize) -> Event {
        let customer = frequent_customer(rng);
        let mut text = String::with_capacity(size + 256);
        self.head(rng, customer, &mut text);
        self.visit(rng, customer, &mut text);
        text.push_str(",\"lines\":[");
        let mut number = 0;
        while text.len() + 200 < size {
            if number > 0 {
                text.push(',');
            }
            number += 1;
            self.line_item(rng, &mut text);
        }
        text.push_str("],\"note\":\"");
        while text.len() + 2 < size {
            text.push_str(self.words.common(rng, 400));
            text.push(' ');
        }
        text.truncate(size - 2);
        text.push_str("\"}");
        self.wrapped(rng, text.into_bytes())
    }

    /// A short document, as counters and sensors send it.
    pub(crate) fn small(&self, rng: &mut Rng) -> Event {
        let device = rng.u32(0..2_000);
        let mut text = String::with_capacity(128);
        put!(text, "{{\"device\":\"d-{device:05}\",\"seq\":{:09},\"ts\":{}", self.index, self.timestamp);
        put!(text, ",\"temp\":{:.2},\"load\":{:.3}", 15.0 + rng.f64() * 20.0, rng.f64());
        put!(text, ",\"state\":\"{}\",\"site\":\"", ["idle", "busy", "down"][rng.usize(0..3)]);
        while text.len() + 2 < 114 {
            text.push_str(self.words.common(rng, 40));
        }
        text.truncate(112);
        text.push_str("\"}");
        let header = |name: &str, value: &str| (name.to_owned(), Some(value.as_bytes().to_vec()));
        Event {
            key: Some(format!("d-{device:05}").into_bytes()),
            value: Some(text.into_bytes()),
            headers: vec![header("schema", "device/2"), header("source", &format!("gateway-north-{:05}", device % 40))],
            timestamp: self.timestamp,
        }
    }

    /// What nothing compresses.
    pub(crate) fn noise(&self, rng: &mut Rng) -> Event {
        let mut value = vec![0; 1_024];
        rng.fill(&mut value);
        let mut event = self.wrapped(rng, value);
        // One header shorter than the documents have, so that the sum is what the docs say.
        event.headers[0].1 = Some(b"noise".to_vec());
        event
    }

    fn wrapped(&self, rng: &mut Rng, value: Vec<u8>) -> Event {
        let header = |name: &str, value: String| (name.to_owned(), Some(value.into_bytes()));
        let trace = format!("00-{:032x}-01", rng.u128(..));
        Event {
            key: Some(uuid(rng).into_bytes()),
            value: Some(value),
            headers: vec![
                header("type", KINDS[rng.usize(0..8)].to_owned()),
                header("schema", format!("shop/{}", rng.u32(1..4))),
                header("traceparent", trace),
            ],
            timestamp: self.timestamp,
        }
    }

    fn head(&self, rng: &mut Rng, customer: u32, text: &mut String) {
        put!(text, "{{\"event_id\":\"{}\",\"type\":\"{}\"", uuid(rng), KINDS[rng.usize(0..8)]);
        put!(text, ",\"schema\":3,\"ts\":{},\"seq\":{}", self.timestamp, self.index);
        let country = COUNTRIES[customer as usize % COUNTRIES.len()];
        put!(text, ",\"customer\":{{\"id\":\"c{customer:06}\",\"country\":\"{country}\"");
        put!(text, ",\"segment\":\"s{}\",\"known\":{}}}", customer % 9, rng.bool());
    }

    fn visit(&self, rng: &mut Rng, customer: u32, text: &mut String) {
        let session = u64::from(customer).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (self.index >> 12);
        put!(text, ",\"session\":\"{session:016x}\",\"client\":{{\"ip\":\"{}.{}", 10 + customer % 200, customer % 251);
        put!(text, ".{}.{}\",\"agent\":\"Mozilla/5.0 ({})", rng.u8(..), rng.u8(..), SYSTEMS[rng.usize(0..5)]);
        put!(text, " AppleWebKit/537.{} (KHTML, like Gecko)", rng.u32(30..38));
        put!(text, " Chrome/{}.0.{}.{} Safari/537.36\"", rng.u32(120..136), rng.u32(0..4096), rng.u32(0..128));
        put!(text, ",\"language\":\"{}\"", if rng.bool() { "en-US" } else { "de-DE" });
        put!(text, ",\"screen\":[{},{}]}}", rng.u32(800..1824), rng.u32(600..1112));
        let (section, item) = (self.words.common(rng, 32), self.words.common(rng, 2_048));
        put!(text, ",\"page\":{{\"url\":\"https://shop.example.com/{section}/{item}?from=");
        put!(text, "{}\",\"load_ms\":{}}}", self.words.common(rng, 16), rng.u32(20..4_000));
    }

    fn basket(&self, rng: &mut Rng, customer: u32, text: &mut String) {
        let currency = CURRENCIES[customer as usize % CURRENCIES.len()];
        put!(text, ",\"order\":{{\"id\":\"O-{:010}\",\"currency\":\"{currency}\",\"lines\":[", self.index);
        for number in 0..rng.usize(1..3) {
            if number > 0 {
                text.push(',');
            }
            self.line_item(rng, text);
        }
        put!(text, "],\"total\":{:.2}}}", f64::from(rng.u32(100..300_000)) / 100.0);
    }

    fn line_item(&self, rng: &mut Rng, text: &mut String) {
        put!(text, "{{\"sku\":\"SKU-{:07}\",\"title\":\"", rng.u32(0..1_000_000));
        self.words.phrase(rng, 3, text);
        put!(text, "\",\"quantity\":{}", rng.u32(1..5));
        put!(text, ",\"price\":{:.2},\"tags\":[\"", f64::from(rng.u32(100..40_000)) / 100.0);
        put!(text, "{}\",\"{}\"]}}", self.words.common(rng, 64), self.words.common(rng, 256));
    }
}

/// Few customers are frequent, most are seen once: a heavy tail, as shops have it.
fn frequent_customer(rng: &mut Rng) -> u32 {
    let chance = 1.0 - rng.f64();
    (chance.powf(-1.6) * 17.0) as u32 % 400_000
}

fn uuid(rng: &mut Rng) -> String {
    let bits = rng.u128(..);
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        (bits >> 96) as u32,
        (bits >> 80) as u16,
        (bits >> 64) as u16 & 0xfff,
        (bits >> 48) as u16 & 0x3fff | 0x8000,
        bits as u64 & 0xffff_ffff_ffff
    )
}
