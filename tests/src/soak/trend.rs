//! Whether a quantity grows with time. The first third of a run fills caches and pools and is not judged: a leak
//! goes on in the last third, what was filled does not.

use std::time::Duration;

use crate::bench::figures::row;

/// By what share the mean of the last third may be above that of the middle one.
const SHARE: f64 = 0.1;

/// Something that is counted, for one of those who have it.
pub struct Series {
    name: String,
    decimals: usize,
    /// Growth that is no leak, whatever share it is.
    noise: f64,
    values: Vec<(Duration, f64)>,
}

/// What became of a quantity.
pub struct Trend {
    /// The means of the thirds.
    pub thirds: [f64; 3],
    /// By how much it grows in an hour: the slope of the line nearest to the last two thirds.
    pub an_hour: f64,
}

impl Series {
    /// A series called `name`, told with so many `decimals`, in which a growth by `noise` means nothing.
    pub fn new(name: String, decimals: usize, noise: f64) -> Self {
        Self { name, decimals, noise, values: Vec::new() }
    }

    /// It is `value` now, so long after the beginning.
    pub fn push(&mut self, at: Duration, value: f64) {
        self.values.push((at, value));
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What became of it. `None` where there are too few values to say.
    pub fn trend(&self) -> Option<Trend> {
        let third = self.values.len() / 3;
        if third < 2 {
            return None;
        }
        let begun = self.values.len() - 2 * third;
        let (first, later) = self.values.split_at(begun);
        let (middle, last) = later.split_at(third);
        Some(Trend { thirds: [first, middle, last].map(|third| mean(third.iter().map(|(_, value)| *value))), an_hour: slope(later) })
    }

    /// Whether it grew by more than it may.
    pub fn grew(&self) -> bool {
        let Some(Trend { thirds: [_, middle, last], .. }) = self.trend() else { return false };
        last > middle * (1.0 + SHARE) && last > middle + self.noise
    }

    /// How it is told, in the columns of [`HEAD`].
    pub fn line(&self) -> Option<String> {
        let Trend { thirds, an_hour } = self.trend()?;
        let ratio = if thirds[1] > 0.0 { format!("{:>10.3}", thirds[2] / thirds[1]) } else { format!("{:>10}", "-") };
        let mark = if self.grew() { "  grows" } else { "" };
        Some(row(&self.name, thirds, self.decimals) + &ratio + &format!("{an_hour:>+10.*}{mark}", self.decimals))
    }
}

/// The columns that a line has.
pub const HEAD: [&str; 5] = ["first", "middle", "last", "last/mid", "an hour"];

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = u32::try_from(values.len()).unwrap_or(u32::MAX);
    values.sum::<f64>() / f64::from(count)
}

/// The slope, an hour, of the line with the least squares.
fn slope(values: &[(Duration, f64)]) -> f64 {
    let hours = |at: &Duration| at.as_secs_f64() / 3600.0;
    let (middle, level) = (mean(values.iter().map(|(at, _)| hours(at))), mean(values.iter().map(|(_, value)| *value)));
    let across: f64 = values.iter().map(|(at, value)| (hours(at) - middle) * (value - level)).sum();
    let along: f64 = values.iter().map(|(at, _)| (hours(at) - middle).powi(2)).sum();
    across / along
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Megabytes, of which five mean nothing, each ten seconds of half an hour.
    fn series(value: impl Fn(f64) -> f64) -> Series {
        let mut series = Series::new("memory".to_owned(), 1, 5.0);
        for n in 0..180_u32 {
            series.push(Duration::from_secs(10) * n, value(f64::from(n) / 360.0));
        }
        series
    }

    #[test]
    fn what_grows_all_the_time_is_told_by_how_much_an_hour() {
        let leak = series(|hour| 50.0 + 60.0 * hour);

        let trend = leak.trend().expect("enough values");

        assert!((trend.an_hour - 60.0).abs() < 1e-6);
        assert!(leak.grew());
    }

    #[test]
    fn what_only_fills_up_does_not_grow() {
        assert!(!series(|hour| 50.0 + (600.0 * hour).min(80.0)).grew());
        assert!(!series(|hour| 50.0 + f64::from(u8::from((hour * 360.0) % 2.0 < 1.0)) * 30.0).grew());
    }

    #[test]
    fn growth_that_is_small_either_way_is_noise() {
        assert!(!series(|hour| 5.0 + 20.0 * hour).grew(), "three megabytes are more than a tenth, and nothing");
        assert!(!series(|hour| 500.0 + 60.0 * hour).grew(), "ten megabytes are little of so much");
    }

    #[test]
    fn a_handful_of_values_says_nothing() {
        let mut short = Series::new("memory".to_owned(), 1, 5.0);
        for n in 0..5_u32 {
            short.push(Duration::from_secs(n.into()), f64::from(n) * 100.0);
        }

        assert!(short.trend().is_none() && !short.grew());
    }
}
