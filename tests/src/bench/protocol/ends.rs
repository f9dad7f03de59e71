//! Who waits for which job's end. The end may be known before anybody asks for it: a job may be settled before
//! its client has the answer to the submit.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, bail};
use tokio::sync::oneshot;

/// When a worker had a job, and when it had settled it; in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// When its lease was there.
    pub claimed: u64,
    /// When everything was done that belongs to its end.
    pub settled: u64,
}

/// The jobs that have ended and nobody asked for, and those that somebody waits for.
#[derive(Default)]
pub struct Ends(Mutex<HashMap<String, Place>>);

enum Place {
    Ended(End),
    Awaited(oneshot::Sender<End>),
}

impl Ends {
    /// The job `id` has ended. It may do so once.
    pub fn tell(&self, id: &str, end: End) -> anyhow::Result<()> {
        match self.swap(id, Place::Ended(end)) {
            None => {}
            Some(Place::Awaited(waiting)) => {
                self.remove(id);
                // Whoever waited may have lost patience.
                let _ = waiting.send(end);
            }
            Some(Place::Ended(_)) => bail!("`{id}` ended twice"),
        }
        Ok(())
    }

    /// The end of the job `id`, once it is there.
    pub async fn of(&self, id: &str) -> anyhow::Result<End> {
        let (sender, end) = oneshot::channel();
        match self.swap(id, Place::Awaited(sender)) {
            None => end.await.context("nobody tells of it any more"),
            Some(Place::Ended(end)) => {
                self.remove(id);
                Ok(end)
            }
            Some(Place::Awaited(_)) => bail!("`{id}` was given to two clients"),
        }
    }

    fn swap(&self, id: &str, place: Place) -> Option<Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), place)
    }

    fn remove(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: End = End { claimed: 1, settled: 2 };

    #[tokio::test]
    async fn an_end_reaches_who_waits_and_who_asks_later() {
        let ends = Ends::default();

        ends.tell("early", END).expect("its first end");
        let (late, told) = tokio::join!(ends.of("late"), async { ends.tell("late", END) });

        told.expect("its first end");
        assert_eq!(late.ok(), Some(END));
        assert_eq!(ends.of("early").await.ok(), Some(END));
        assert!(ends.0.lock().expect("nobody panicked").is_empty());
    }

    #[test]
    fn a_second_end_is_noticed() {
        let ends = Ends::default();

        ends.tell("job", END).expect("its first end");

        assert!(ends.tell("job", END).is_err());
    }
}
