//! The printed table: what was measured against what, the ratio, its bar and goal, and the command that repeats it.

use std::process::ExitCode;

use crate::meter::machine;
use crate::pairs::{Options, Pairs};

/// One bench's table; rows are printed as they come.
#[derive(Debug)]
pub struct Table {
    options: Options,
    below: Vec<String>,
}

/// What a ratio should reach.
#[derive(Debug, Clone, Copy, Default)]
pub struct Aim {
    /// The gate.
    pub bar: Option<f64>,
    /// What to work towards.
    pub goal: Option<f64>,
}

impl Aim {
    /// A bar and a goal.
    pub const fn of(bar: f64, goal: f64) -> Self {
        Self { bar: Some(bar), goal: Some(goal) }
    }

    /// A bar alone.
    pub const fn bar(bar: f64) -> Self {
        Self { bar: Some(bar), goal: None }
    }

    /// Only to be looked at.
    pub const NONE: Self = Self { bar: None, goal: None };
}

fn or_dash(number: Option<f64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| format!("{number:.2}"))
}

impl Table {
    /// Prints the head: the bench, what the ratio is of, and the command.
    pub fn begin(options: &Options, bench: &str, ratio: &str) -> Self {
        let scale = if options.scale == 1.0 { String::new() } else { format!(" --scale {}", options.scale) };
        let only = options.only.as_deref().map(|only| format!(" {only}")).unwrap_or_default();
        println!("{bench}: {ratio}");
        println!("  cargo bench -p tapedeck-benches --bench {bench} --{only} --rounds {}{scale}", options.rounds);
        println!("  {}", machine());
        println!(
            "  {:<22} {:>10} {:>10} {:>8}  {:>6} {:<13} {:>5} {:>5}",
            "", "yardstick", "subject", "subject", "ratio", "lowest-highest", "bar", "goal"
        );
        println!("  {:<22} {:>10} {:>10} {:>8}", "", "MB/CPU-s", "MB/CPU-s", "ns/event");
        Self { options: options.clone(), below: Vec::new() }
    }

    /// Prints a row of pairs that moved `bytes` in `events`.
    pub fn row(&mut self, name: &str, bytes: u64, events: u64, pairs: &Pairs, aim: Aim) {
        let rate = |cost: f64| bytes as f64 / 1e6 / cost.max(1e-9);
        let (lowest, ratio, highest) = pairs.ratios();
        let verdict = self.judge(name, ratio, aim);
        println!(
            "  {name:<22} {:>10.0} {:>10.0} {:>8.0}  {ratio:>6.3} {:<14} {:>5} {:>5}{verdict}",
            rate(pairs.yardstick().as_secs_f64()),
            rate(pairs.subject().as_secs_f64()),
            pairs.subject().as_nanos() as f64 / events.max(1) as f64,
            format!("{lowest:.3}-{highest:.3}"),
            or_dash(aim.bar),
            or_dash(aim.goal),
        );
    }

    /// Prints a figure that is exact, or no ratio of costs.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str, aim: Aim) {
        let verdict = self.judge(name, value, aim);
        println!("  {name:<52}  {value:>6.3} {unit:<14} {:>5} {:>5}{verdict}", or_dash(aim.bar), or_dash(aim.goal));
    }

    fn judge(&mut self, name: &str, value: f64, aim: Aim) -> &'static str {
        if aim.bar.is_none_or(|bar| value >= bar) {
            return "";
        }
        self.below.push(name.to_owned());
        "  below the bar"
    }

    /// Prints the end; the exit code says whether a bar was missed, if that was asked for.
    pub fn end(self) -> ExitCode {
        if !self.below.is_empty() {
            println!("  below the bar: {}", self.below.join(", "));
        }
        println!();
        if self.options.gate && !self.below.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
