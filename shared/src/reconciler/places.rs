//! Who gets the next place. There are as many as the workers have slots; while more jobs wait, each place that
//! becomes free goes to the user whose turn it is, and of that user's jobs to the first by priority, then by
//! arrival. So ten thousand jobs of one user hold nobody else's first one back.

use std::collections::HashMap;

use crate::{
    Result,
    db::jobs::{self as table, Waiter},
    ending, failpoint,
    id::{JobId, UserId},
    redis::queue::{self, Turn},
    store::Store,
};

/// What weights are compared by.
const COMMON: u64 = 1_000;
/// The most places given at once: what more there are is given in the next round.
const BATCH: u64 = 500;

/// The order of users, and what they have in common.
#[derive(Default)]
pub struct Places {
    turns: Turns,
    /// How many there are.
    slots: u64,
}

impl Places {
    /// Give away what is free of `slots` places.
    pub async fn give(&mut self, store: &Store, slots: u64) -> Result<()> {
        self.slots = slots;
        self.give_again(store).await
    }

    /// Give away what is free by now.
    pub async fn give_again(&mut self, store: &Store) -> Result<()> {
        let room = self.slots.saturating_sub(queue::len(store.redis()).await?).min(BATCH);
        if room == 0 {
            return Ok(());
        }
        // First, so that whoever begins to wait from here on is not overlooked.
        queue::clear_backlog(store.redis()).await?;
        let mut waiters = table::without_place(store.db()).await?;
        let mut room = room;
        while room > 0 && !waiters.is_empty() {
            let mut next = Vec::new();
            for (user, wanted) in self.turns.next(&waiters, room) {
                let jobs = table::next_of(store.db(), user, wanted).await?;
                let found = jobs.len() as u64;
                if found < wanted {
                    // Nothing more of theirs may run now.
                    self.turns.give_back(user);
                    waiters.retain(|waiter| waiter.user != user);
                }
                next.extend(jobs);
            }
            room = room.saturating_sub(next.len() as u64);
            if !next.is_empty() {
                self.ring(store, &next).await?;
            }
        }
        if !waiters.is_empty() {
            queue::note_backlog(store.redis()).await?;
        }
        Ok(())
    }

    async fn ring(&self, store: &Store, next: &[JobId]) -> Result<()> {
        let given = table::give_places(store.db(), next).await?;
        failpoint::pass("leader.after_mark");
        for (job, attempt) in given {
            if attempt == 0 {
                ending::ring(store, job, Turn::Next).await?;
            } else {
                // One that ran before may have left an entry somewhere: only a new one is heard.
                queue::requeue(store.redis(), job).await?;
            }
        }
        Ok(())
    }
}

/// Weighted round-robin: every place moves its user's pass on, by less the heavier they are, and the next place goes to
/// the user who is furthest behind ("stride scheduling", Waldspurger 1995).
#[derive(Default)]
struct Turns {
    passes: HashMap<UserId, f64>,
    /// The pass of who had the last place: whoever comes to wait begins here, and not with the turns they missed.
    now: f64,
}

impl Turns {
    /// Who of `waiters` gets how many of `room` places.
    fn next(&mut self, waiters: &[Waiter], room: u64) -> Vec<(UserId, u64)> {
        let now = self.now;
        self.passes.retain(|user, pass| *pass > now || waiters.iter().any(|waiter| waiter.user == *user));
        let mut places: Vec<u64> = vec![0; waiters.len()];
        for _ in 0..room {
            let pass = |waiter: &Waiter| self.passes.get(&waiter.user).copied().unwrap_or(now).max(now);
            // Of those whose turn it is, who has the fewest places.
            let has = |at: usize| (waiters[at].jobs + places[at]) * COMMON / u64::from(waiters[at].weight);
            let order = |one: &usize, other: &usize| {
                pass(&waiters[*one]).total_cmp(&pass(&waiters[*other])).then_with(|| has(*one).cmp(&has(*other)))
            };
            let Some(first) = (0..waiters.len()).min_by(order) else { break };
            let waiter = &waiters[first];
            self.now = pass(waiter);
            self.passes.insert(waiter.user, self.now + 1.0 / f64::from(waiter.weight));
            places[first] += 1;
        }
        waiters.iter().zip(places).filter(|(_, places)| *places > 0).map(|(waiter, places)| (waiter.user, places)).collect()
    }

    /// `user` had no use for all of these places: their next turn is as if they came to wait then.
    fn give_back(&mut self, user: UserId) {
        self.passes.remove(&user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(weight: u32) -> Waiter {
        Waiter { user: UserId::new(), weight, jobs: 0 }
    }

    /// Whose places these are, one after the other.
    fn one_by_one(turns: &mut Turns, waiters: &[Waiter], rounds: usize) -> Vec<UserId> {
        (0..rounds).flat_map(|_| turns.next(waiters, 1)).map(|(user, _)| user).collect()
    }

    #[test]
    fn users_take_turns_however_many_places_there_are() {
        let (one, two) = (waiter(1), waiter(1));
        let mut turns = Turns::default();

        let singly = one_by_one(&mut turns, &[one, two], 4);
        assert_eq!(singly, [one.user, two.user, one.user, two.user]);
        assert_eq!(turns.next(&[one, two], 10), [(one.user, 5), (two.user, 5)]);
    }

    #[test]
    fn of_those_whose_turn_it_is_who_has_nothing_goes_first() {
        let (busy, idle) = (Waiter { jobs: 4, ..waiter(1) }, waiter(1));

        assert_eq!(one_by_one(&mut Turns::default(), &[busy, idle], 2), [idle.user, busy.user]);
    }

    #[test]
    fn a_heavy_user_has_as_many_turns_as_their_weight() {
        let (light, heavy) = (waiter(1), waiter(3));

        assert_eq!(Turns::default().next(&[light, heavy], 40), [(light.user, 10), (heavy.user, 30)]);
    }

    #[test]
    fn who_comes_late_has_the_next_place_and_none_of_those_they_missed() {
        let (early, late) = (waiter(1), waiter(1));
        let mut turns = Turns::default();
        turns.next(&[early], 10_000);

        assert_eq!(one_by_one(&mut turns, &[early, late], 4), [late.user, early.user, late.user, early.user]);
    }
}
