//! Times of one kind, and how they compare.

use std::time::Duration;

/// What is told of the runs: the time that so many percent of them did not exceed. 0 is the fastest.
const SHARES: [usize; 4] = [0, 50, 90, 99];

/// A figure for each column of a table.
pub type Columns = [f64; SHARES.len()];

/// Times in order, never none.
pub struct Figures(Vec<Duration>);

impl Figures {
    /// The figures of `times`, if there are any.
    pub fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        (!times.is_empty()).then_some(Self(times))
    }

    /// The columns in milliseconds.
    pub fn columns(&self) -> Columns {
        SHARES.map(|share| self.at(share).as_secs_f64() * 1000.0)
    }

    /// The time that `share` percent of the runs did not exceed: one that was measured, not one between two.
    fn at(&self, share: usize) -> Duration {
        let rank = (self.0.len() * share).div_ceil(100).max(1);
        self.0[rank - 1]
    }
}

/// The head of a table.
pub fn head() -> String {
    head_of(SHARES.map(|share| if share == 0 { "min".to_owned() } else { format!("p{share}") }))
}

/// The head of a table with columns of its own.
pub fn head_of(names: impl IntoIterator<Item: AsRef<str>>) -> String {
    names.into_iter().fold(" ".repeat(36), |line, name| line + &format!("{:>10}", name.as_ref()))
}

/// One row of a table, each figure with so many `decimals`.
pub fn row(name: &str, columns: impl AsRef<[f64]>, decimals: usize) -> String {
    columns.as_ref().iter().fold(format!("  {name:<34}"), |row, figure| row + &format!("{figure:>10.decimals$}"))
}

/// The least, the middle and the most of `figures`, of which there is one at least.
pub fn spread(mut figures: Vec<f64>) -> [f64; 3] {
    figures.sort_by(f64::total_cmp);
    [figures[0], figures[figures.len() / 2], figures[figures.len() - 1]]
}

/// What part of `whole` each figure of `part` is.
pub fn ratio<const N: usize>(part: [f64; N], whole: [f64; N]) -> [f64; N] {
    std::array::from_fn(|column| part[column] / whole[column])
}

/// How much more each figure of `more` is than that of `less`.
pub fn difference<const N: usize>(more: [f64; N], less: [f64; N]) -> [f64; N] {
    std::array::from_fn(|column| more[column] - less[column])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_a_time_that_was_measured() {
        let times = |count: u64| (1..=count).rev().map(Duration::from_millis).collect();

        let columns = |count| Figures::of(times(count)).map(|figures| figures.columns());

        assert_eq!(columns(200), Some([1.0, 100.0, 180.0, 198.0]));
        assert_eq!(columns(1), Some([1.0; 4]));
        assert_eq!(columns(0), None);
    }
}
