//! Made-up words, drawn as natural text draws them: few of them often, most of them seldom.
//! So the events pack about as well as real text does; uniformly drawn words would not.

use fastrand::Rng;

const SYLLABLES: [&str; 24] = [
    "ba", "cor", "del", "en", "fi", "gan", "hu", "ir", "jo", "kes", "lum", "mar", "no", "ost", "pel", "qui", "ras", "sol", "tem",
    "ul", "ven", "wi", "yar", "zo",
];
const COUNT: usize = 5_000;
/// So fine that even the rarest word has a slot; a draw is then one look-up.
const SLOTS: u32 = 1 << 16;

/// The dictionary.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    words: Vec<String>,
    /// Which word a draw of 16 bits stands for; a word has as many slots as it has weight.
    slots: Vec<u16>,
}

impl Words {
    pub(crate) fn new() -> Self {
        let mut rng = Rng::with_seed(20_261_119);
        let word = |_| (0..rng.usize(1..=4)).map(|_| SYLLABLES[rng.usize(0..SYLLABLES.len())]).collect();
        let words = (0..COUNT).map(word).collect();
        // A word's weight falls with its rank.
        let weight = |rank: usize| 1.0 / (rank as f64 + 3.0);
        let sum: f64 = (0..COUNT).map(weight).sum();
        let (mut slots, mut upto) = (Vec::with_capacity(SLOTS as usize), 0.0);
        for rank in 0..COUNT {
            upto += weight(rank) / sum * f64::from(SLOTS);
            slots.resize(upto.round() as usize, rank as u16);
        }
        Self { words, slots }
    }

    /// A word, frequent ones more often.
    pub(crate) fn draw(&self, rng: &mut Rng) -> &str {
        &self.words[usize::from(self.slots[usize::from(rng.u16(..))])]
    }

    /// One of the `most` most frequent words, all alike.
    pub(crate) fn common(&self, rng: &mut Rng, most: usize) -> &str {
        &self.words[rng.usize(0..most.min(COUNT))]
    }

    /// Appends `count` words, spaces between them.
    pub(crate) fn phrase(&self, rng: &mut Rng, count: usize, out: &mut String) {
        for number in 0..count {
            if number > 0 {
                out.push(' ');
            }
            out.push_str(self.draw(rng));
        }
    }
}
