//! How fast the queue moves, as this process sees it: from the places its waiting jobs gain while somebody
//! watches them. Nothing is estimated before a place was gained.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How much a fresh observation counts against the ones before.
const WEIGHT: f64 = 0.2;

/// The time a place in the queue takes.
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<Mutex<Option<f64>>>);

impl Pace {
    /// A job gained `places` in `elapsed`.
    pub fn observe(&self, places: u64, elapsed: Duration) {
        let Ok(places @ 1..) = u32::try_from(places) else { return };
        let seen = elapsed.as_secs_f64() / f64::from(places);
        let mut pace = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *pace = Some(pace.map_or(seen, |before| before + WEIGHT * (seen - before)));
    }

    /// How long the job at `position` (0: the next) will wait, in milliseconds.
    pub fn estimate_ms(&self, position: u64) -> Option<u64> {
        let secs = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        // Beyond four thousand million places an estimate says nothing.
        let places = f64::from(u32::try_from(position).ok()?) + 1.0;
        let wait = Duration::try_from_secs_f64(secs * places).ok()?;
        u64::try_from(wait.as_millis()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_estimated_before_a_place_was_gained() {
        let pace = Pace::default();
        pace.observe(0, Duration::from_secs(2));

        assert_eq!(pace.estimate_ms(3), None);
    }

    #[test]
    fn the_wait_grows_with_the_places_before() {
        let pace = Pace::default();
        pace.observe(4, Duration::from_secs(2));

        assert_eq!(pace.estimate_ms(0), Some(500));
        assert_eq!(pace.estimate_ms(9), Some(5_000));
        pace.observe(1, Duration::from_secs(1));
        assert_eq!(pace.estimate_ms(0), Some(600));
    }
}
