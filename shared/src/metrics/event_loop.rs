//! Whether the runtime of this process still turns. A task that blocks it, where it should wait, holds up
//! everything else; nothing that waits for the database or for Redis does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::task::AbortOnDropHandle;

use super::Durations;

/// How often the runtime is asked for a turn.
const TICK: Duration = Duration::from_millis(250);
/// Without a turn for so long the process is better started anew.
const STUCK: Duration = Duration::from_secs(10);
/// Where buckets of lateness end, in seconds.
const LAGS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// Asks the runtime for a turn again and again, as long as a clone of this lives.
#[derive(Clone, Debug)]
pub struct EventLoop {
    turns: Arc<Turns>,
    _asking: Arc<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct Turns {
    begun: Instant,
    /// Milliseconds from `begun` to the last turn.
    last: AtomicU64,
    lags: Durations,
}

impl EventLoop {
    /// Watch the runtime that this is called in.
    pub fn watch() -> Self {
        let turns = Arc::new(Turns { begun: Instant::now(), last: AtomicU64::new(0), lags: Durations::new(&LAGS) });
        let asking = tokio::spawn(ask(turns.clone()));
        Self { turns, _asking: Arc::new(AbortOnDropHandle::new(asking)) }
    }

    /// Whether it has not turned for ten seconds.
    pub fn is_stuck(&self) -> bool {
        self.silence() > STUCK
    }

    /// By how much its turns came late.
    pub fn lags(&self) -> Durations {
        self.turns.lags.clone()
    }

    fn silence(&self) -> Duration {
        self.turns.begun.elapsed().saturating_sub(Duration::from_millis(self.turns.last.load(Ordering::Relaxed)))
    }
}

async fn ask(turns: Arc<Turns>) {
    loop {
        let asked = Instant::now();
        tokio::time::sleep(TICK).await;
        turns.lags.observe(asked.elapsed().saturating_sub(TICK));
        let since = u64::try_from(turns.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        turns.last.store(since, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_is_not_turned_falls_silent_and_tells_how_late_it_is() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let watched = runtime.block_on(async { EventLoop::watch() });
        let turn = || {
            let known = watched.lags().count();
            runtime.block_on(async {
                while watched.lags().count() == known {
                    tokio::task::yield_now().await;
                }
            });
        };
        turn();
        assert!(watched.silence() < TICK);

        // Nobody turns it: what a task that blocks it does.
        while watched.silence() < TICK * 3 {
            std::thread::yield_now();
        }
        assert!(!watched.is_stuck());
        let late = Instant::now();
        turn();

        // The last turn is known to the millisecond.
        assert!(watched.silence() <= late.elapsed() + Duration::from_millis(1), "it turns again");
    }
}
