//! Options of a bench, and the rounds: subject and yardstick take turns, and each pair gives one ratio.
//! Promise: the first pair warms up and is not counted; who begins changes from pair to pair.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;

/// What any bench can be told.
#[derive(Debug, Clone, Parser)]
#[command(disable_version_flag = true)]
pub struct Options {
    /// Only rows whose name holds this text.
    #[arg(value_name = "NAME")]
    pub only: Option<String>,
    /// Counted rounds, after one to warm up.
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// Share of the full work, for a quick look.
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Ends with code 1 if a ratio is below its bar. A gate should fail only after two such runs.
    #[arg(long)]
    pub gate: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// For the bench's own child processes.
    #[arg(long, hide = true)]
    pub child: Option<String>,
}

impl Options {
    /// Reads the command line. A child that was started to be the broker never comes back from here.
    pub fn read() -> Self {
        crate::broker::serve_if_asked();
        Self::parse()
    }

    /// True if the row is wanted.
    pub fn wants(&self, row: &str) -> bool {
        self.only.as_deref().is_none_or(|only| row.contains(only))
    }

    /// So much of the work.
    pub fn scaled(&self, count: u64) -> u64 {
        ((count as f64 * self.scale) as u64).max(1_000)
    }

    /// Runs the pairs.
    pub fn pairs(
        &self,
        mut yardstick: impl FnMut() -> Result<Duration>,
        mut subject: impl FnMut() -> Result<Duration>,
    ) -> Result<Pairs> {
        let mut pairs = Pairs::default();
        for round in 0..=self.rounds.max(1) {
            let (of_yardstick, of_subject);
            if round % 2 == 0 {
                of_yardstick = yardstick()?;
                of_subject = subject()?;
            } else {
                of_subject = subject()?;
                of_yardstick = yardstick()?;
            }
            if round > 0 {
                pairs.0.push((of_yardstick, of_subject));
            }
        }
        Ok(pairs)
    }
}

/// What the rounds cost: yardstick and subject.
#[derive(Debug, Default)]
pub struct Pairs(Vec<(Duration, Duration)>);

impl Pairs {
    /// The median cost of the yardstick.
    pub fn yardstick(&self) -> Duration {
        Duration::from_secs_f64(median(self.0.iter().map(|pair| pair.0.as_secs_f64())))
    }

    /// The median cost of the subject.
    pub fn subject(&self) -> Duration {
        Duration::from_secs_f64(median(self.0.iter().map(|pair| pair.1.as_secs_f64())))
    }

    /// Yardstick cost over subject cost, pair by pair: lowest, median, highest.
    pub fn ratios(&self) -> (f64, f64, f64) {
        let ratios = || self.0.iter().map(|(yardstick, subject)| yardstick.as_secs_f64() / subject.as_secs_f64().max(1e-9));
        (ratios().fold(f64::INFINITY, f64::min), median(ratios()), ratios().fold(0.0, f64::max))
    }
}

/// The middle one; of an even number the mean of the two.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_pairs() {
        let of = |yardstick, subject| (Duration::from_millis(yardstick), Duration::from_millis(subject));
        // Both sides slow down together in the second round: the ratio does not see it.
        let pairs = Pairs(vec![of(50, 100), of(500, 1_000), of(60, 100)]);
        assert_eq!(pairs.ratios(), (0.5, 0.5, 0.6));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }
}
