//! How fast a client is listened to: what it says beyond that waits in its network.

use std::time::Duration;

use tokio::time::Instant;

/// How often a client may say something, in the long run: 50 times a second.
const EACH: Duration = Duration::from_millis(20);
/// How many messages it may send at once.
const BURST: u32 = 200;

/// The pace of one client.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// When all that it said would have been said at an even pace.
    even: Instant,
}

impl Pace {
    /// Nothing was said yet.
    pub fn from(now: Instant) -> Self {
        Self { even: now }
    }

    /// From when on it may say the next thing after this one, which it says `now`.
    pub fn next_after(&mut self, now: Instant) -> Instant {
        self.even = self.even.max(now) + EACH;
        self.even.checked_sub(EACH * (BURST - 1)).unwrap_or(now).max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_come_at_once_and_the_rest_at_an_even_pace() {
        let begun = Instant::now();
        let (mut pace, mut now) = (Pace::from(begun), begun);

        for _ in 1..BURST {
            assert_eq!(pace.next_after(now), begun);
        }
        for n in 1..=100 {
            now = pace.next_after(now);
            assert_eq!(now, begun + EACH * n);
        }
        // Whoever was silent for long may be quick again, and no quicker than at first.
        now += EACH * BURST * 2;
        for _ in 1..BURST {
            assert_eq!(pace.next_after(now), now);
        }
        assert_eq!(pace.next_after(now), now + EACH);
    }
}
