//! The law of the hourly window, and a window in memory that keeps it. Requests are counted by the minute,
//! and a minute counts until 60 whole ones have passed after it: no 60 minutes see more than the limit, all
//! of which may be used at once. `limit.lua` keeps the same law in Redis.

use std::collections::VecDeque;

/// What is done to a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Count a request, if the limit allows it.
    Charge,
    /// Take back one that was counted in this minute.
    Refund(i64),
    /// Nothing.
    Peek,
}

/// Where a window stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many requests the limit still allows.
    pub remaining: u32,
    /// Until the oldest that counts does so no more; 0 when none does.
    pub reset_ms: u64,
    /// Until one more is allowed.
    pub wait_ms: u64,
}

/// What became of an operation on a user's window and perhaps that of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether all windows had room.
    pub granted: bool,
    /// Where a charge was counted.
    pub minute: i64,
    /// The user's window, after it.
    pub user: Standing,
    /// The key's window, after it.
    pub key: Option<Standing>,
}

/// One window in memory.
#[derive(Debug, Default)]
pub struct Window {
    /// The minutes that were used and how often, oldest first.
    minutes: VecDeque<(i64, u32)>,
    sum: u32,
}

impl Window {
    /// Do `operation` on the window of a user and perhaps that of a key, each with its limit: both or neither
    /// are charged.
    pub fn run(operation: Operation, user: (&mut Self, u32), key: Option<(&mut Self, u32)>, now_ms: i64) -> Outcome {
        let minute = now_ms.div_euclid(60_000);
        let mut windows: Vec<_> = std::iter::once(user).chain(key).collect();
        for (window, _) in &mut windows {
            window.forget_before(minute - 60);
        }
        let granted = windows.iter().all(|(window, limit)| window.sum < *limit);
        for (window, _) in &mut windows {
            match operation {
                Operation::Charge if granted => window.charge(minute),
                Operation::Refund(minute) => window.refund(minute),
                Operation::Charge | Operation::Peek => {}
            }
        }
        let mut standings = windows.iter().map(|(window, limit)| window.standing(*limit, now_ms));
        let user = standings.next().expect("the user's window is the first");
        Outcome { granted, minute, user, key: standings.next() }
    }

    fn forget_before(&mut self, first: i64) {
        while let Some((_, count)) = self.minutes.pop_front_if(|(minute, _)| *minute < first) {
            self.sum -= count;
        }
    }

    fn charge(&mut self, minute: i64) {
        self.sum += 1;
        match self.minutes.back_mut() {
            Some((newest, count)) if *newest == minute => *count += 1,
            _ => self.minutes.push_back((minute, 1)),
        }
    }

    fn refund(&mut self, minute: i64) {
        let Some((_, count)) = self.minutes.iter_mut().find(|(used, _)| *used == minute) else { return };
        *count -= 1;
        self.sum -= 1;
        self.minutes.retain(|(_, count)| *count > 0);
    }

    fn standing(&self, limit: u32, now_ms: i64) -> Standing {
        let leaves = |minute: i64| u64::try_from((minute + 61) * 60_000 - now_ms).unwrap_or(0);
        let oldest = self.minutes.front().map(|(minute, _)| *minute);
        Standing {
            remaining: limit.saturating_sub(self.sum),
            reset_ms: oldest.map_or(0, leaves),
            wait_ms: if self.sum < limit { 0 } else { self.makes_room(limit).map_or(61 * 60_000, leaves) },
        }
    }

    /// The minute with which enough is gone for one more; after the limit was lowered, perhaps a later one
    /// than the oldest.
    fn makes_room(&self, limit: u32) -> Option<i64> {
        let mut left = self.sum;
        let enough = self.minutes.iter().find(|(_, count)| {
            left -= count;
            left < limit
        });
        enough.or(self.minutes.back()).map(|(minute, _)| *minute)
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;

    fn charge(window: &mut Window, limit: u32, now_ms: i64) -> Outcome {
        Window::run(Operation::Charge, (window, limit), None, now_ms)
    }

    fn granted(window: &mut Window, limit: u32, now_ms: i64) -> usize {
        (0..limit + 5).filter(|_| charge(window, limit, now_ms).granted).count()
    }

    /// One step of a story: so long after the one before, this is done.
    #[derive(Clone, Debug)]
    pub struct Step {
        pub after_ms: i64,
        pub deed: Deed,
        pub with_key: bool,
    }

    #[derive(Clone, Copy, Debug)]
    pub enum Deed {
        Charge,
        /// Take back one of the charges before, counted from the last.
        Refund(usize),
        Peek,
    }

    /// Any story of an hour or several, dense and sparse.
    pub fn story() -> impl Strategy<Value = Vec<Step>> {
        let pause = prop_oneof![6 => 0..1_000i64, 3 => 0..3 * MINUTE, 2 => 0..30 * MINUTE, 1 => 0..3 * HOUR];
        let deed = prop_oneof![8 => Just(Deed::Charge), 1 => (0..4usize).prop_map(Deed::Refund), 1 => Just(Deed::Peek)];
        let step = (pause, deed, any::<bool>()).prop_map(|(after_ms, deed, with_key)| Step { after_ms, deed, with_key });
        prop::collection::vec(step, 1..80)
    }

    /// What a user did, and a judge of it.
    #[derive(Default)]
    pub struct Book {
        pub charges: Vec<(i64, i64, bool)>,
    }

    impl Book {
        /// The most charges in any 60 minutes, of all or of those with the key.
        pub fn most_in_an_hour(&self, with_key_only: bool) -> usize {
            let times: Vec<i64> = self.charges.iter().filter(|(_, _, with_key)| *with_key || !with_key_only).map(|(at, ..)| *at).collect();
            let within = |from: i64| times.iter().filter(|at| (from..from + HOUR).contains(at)).count();
            times.iter().map(|at| within(*at)).max().unwrap_or(0)
        }
    }

    proptest! {
        #[test]
        fn no_hour_sees_more_than_the_limit(story in story(), per_user in 1..12u32, per_key in 1..12u32) {
            let (mut user, mut key, mut book, mut now) = (Window::default(), Window::default(), Book::default(), 7 * HOUR);

            for step in story {
                now += step.after_ms;
                let with_key = step.with_key;
                let (operation, with_key) = match step.deed {
                    Deed::Charge => (Operation::Charge, with_key),
                    Deed::Peek => (Operation::Peek, with_key),
                    Deed::Refund(back) if back < book.charges.len() => {
                        let (_, minute, with_key) = book.charges.remove(book.charges.len() - 1 - back);
                        (Operation::Refund(minute), with_key)
                    }
                    Deed::Refund(_) => continue,
                };
                let outcome = Window::run(operation, (&mut user, per_user), with_key.then_some((&mut key, per_key)), now);
                if operation == Operation::Charge && outcome.granted {
                    book.charges.push((now, outcome.minute, with_key));
                }
            }

            prop_assert!(book.most_in_an_hour(false) <= per_user as usize);
            prop_assert!(book.most_in_an_hour(true) <= per_key as usize);
            // After an hour and a minute of silence all of it is there at once.
            prop_assert_eq!(granted(&mut user, per_user, now + 61 * MINUTE), per_user as usize);
        }
    }

    #[test]
    fn one_more_is_allowed_exactly_when_it_was_said() {
        let (mut window, start) = (Window::default(), 7 * HOUR + 12_345);
        charge(&mut window, 2, start);
        charge(&mut window, 2, start + 5 * MINUTE);

        let refused = charge(&mut window, 2, start + 6 * MINUTE);

        assert!(!refused.granted && refused.user.remaining == 0);
        let wait = i64::try_from(refused.user.wait_ms).expect("short");
        assert!(!charge(&mut window, 2, start + 6 * MINUTE + wait - 1).granted);
        assert!(charge(&mut window, 2, start + 6 * MINUTE + wait).granted);
    }

    #[test]
    fn after_the_limit_was_lowered_enough_has_to_leave() {
        let mut window = Window::default();
        for n in 0..5 {
            charge(&mut window, 5, 7 * HOUR + n * MINUTE);
        }

        let refused = charge(&mut window, 2, 7 * HOUR + 5 * MINUTE);

        assert_eq!((refused.user.remaining, refused.user.reset_ms), (0, 56 * 60_000));
        // The fourth of five has to leave before there are fewer than two.
        assert_eq!(refused.user.wait_ms, 59 * 60_000);
        assert!(!charge(&mut window, 0, 7 * HOUR).granted);
        assert_eq!(charge(&mut Window::default(), 0, 7 * HOUR).user.wait_ms, 61 * 60_000);
    }

    #[test]
    fn neither_window_is_charged_when_one_is_full() {
        let (mut user, mut key) = (Window::default(), Window::default());
        assert!(Window::run(Operation::Charge, (&mut user, 10), Some((&mut key, 1)), HOUR).granted);

        let refused = Window::run(Operation::Charge, (&mut user, 10), Some((&mut key, 1)), HOUR);

        assert!(!refused.granted);
        assert_eq!((refused.user.remaining, refused.user.wait_ms), (9, 0));
        assert_eq!(refused.key.map(|key| (key.remaining, key.wait_ms)), Some((0, 61 * 60_000)));
    }
}
