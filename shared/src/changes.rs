//! Whose rights changed lately. What was read of a user before its last change is void; each process
//! learns of its own changes at once and of the others' through Redis, which may lose them. Who stays for
//! longer than a request waits here for a change of its user, and is not woken by those of others.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{id::UserId, redis::signals, store::Store};

/// How long a change matters; what is read is used no longer.
const KEPT: Duration = Duration::from_secs(1);
/// The most users to remember. Beyond it, everybody counts as changed.
const MOST: usize = 4_096;

/// The changes of the last second.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<RwLock<Recent>>);

#[derive(Debug, Default)]
struct Recent {
    everyone: Option<Instant>,
    users: HashMap<UserId, Instant>,
    /// Who waits for a change of which user.
    waiting: HashMap<UserId, watch::Sender<()>>,
}

impl Changes {
    /// `user` has changed.
    pub fn note(&self, user: UserId) {
        let mut recent = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if recent.users.len() >= MOST {
            recent.users.retain(|_, at| at.elapsed() < KEPT);
        }
        let now = Instant::now();
        if recent.users.len() >= MOST {
            recent.users.clear();
            recent.everyone = Some(now);
        }
        recent.users.insert(user, now);
        if let Some(waiting) = recent.waiting.get(&user) {
            waiting.send_replace(());
        }
    }

    /// Anybody may have changed.
    pub fn note_everyone(&self) {
        let mut recent = self.0.write().unwrap_or_else(PoisonError::into_inner);
        recent.everyone = Some(Instant::now());
        // Who no longer waits is forgotten here, at the latest.
        recent.waiting.retain(|_, waiting| waiting.send(()).is_ok());
    }

    /// Hear of changes of `user` from here on.
    pub fn listen(&self, user: UserId) -> Listener {
        let mut recent = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let heard = recent.waiting.entry(user).or_default().subscribe();
        Listener { changes: self.clone(), user, heard }
    }

    /// Whether what was read of `user` from `moment` on still stands.
    pub fn is_current(&self, user: UserId, moment: Instant) -> bool {
        let recent = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let is_later = |change: Option<Instant>| change.is_none_or(|change| change < moment);
        is_later(recent.everyone) && is_later(recent.users.get(&user).copied())
    }
}

/// Somebody who waits for changes of a user.
#[derive(Debug)]
pub struct Listener {
    changes: Changes,
    user: UserId,
    heard: watch::Receiver<()>,
}

impl Listener {
    /// Wait until what was read at `moment` is void. Cancel-safe.
    pub async fn void(&mut self, moment: Instant) {
        loop {
            self.heard.mark_unchanged();
            if self.is_void(moment) {
                return;
            }
            // The sender stays while somebody listens.
            let _ = self.heard.changed().await;
        }
    }

    /// Whether what was read at `moment` is void.
    pub fn is_void(&self, moment: Instant) -> bool {
        !self.changes.is_current(self.user, moment)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut recent = self.changes.0.write().unwrap_or_else(PoisonError::into_inner);
        if recent.waiting.get(&self.user).is_some_and(|waiting| waiting.receiver_count() == 1) {
            recent.waiting.remove(&self.user);
        }
    }
}

/// Tell every process that `user` has changed, this one for certain. To be called after the commit.
pub async fn announce(store: &Store, user: UserId) {
    store.changes().note(user);
    match tokio::time::timeout(signals::NEWS_BUDGET, signals::announce_change(store.redis(), user)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "Could not announce a change of rights; others see it within a second"),
        Err(_) => tracing::debug!("Redis took too long to announce a change of rights; others see it within a second"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_change_is_void_and_what_was_read_after_stands() {
        let (changes, user, other) = (Changes::default(), UserId::new(), UserId::new());
        let before = Instant::now();

        changes.note(user);

        assert!(!changes.is_current(user, before));
        assert!(changes.is_current(other, before));
        assert!(changes.is_current(user, Instant::now() + Duration::from_nanos(1)));
        changes.note_everyone();
        assert!(!changes.is_current(other, before));
    }

    #[tokio::test]
    async fn who_waits_hears_of_its_own_user_and_leaves_nothing_behind() {
        let (changes, user) = (Changes::default(), UserId::new());
        let mut listener = changes.listen(user);
        let another = changes.listen(user);
        let moment = Instant::now();

        let mut heard = Box::pin(listener.void(moment));
        changes.note(UserId::new());
        assert!(still_waits(&mut heard), "another user changed");
        changes.note(user);
        heard.await;
        assert!(still_waits(&mut Box::pin(listener.void(Instant::now() + Duration::from_nanos(1)))));
        changes.note_everyone();
        listener.void(moment).await;

        drop((listener, another));
        assert!(changes.0.read().expect("no writer failed").waiting.is_empty());
    }

    /// Whether `future` still waits.
    fn still_waits(future: &mut (impl Future + Unpin)) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::Pin::new(future).poll(&mut context).is_pending()
    }

    #[test]
    fn more_changes_than_can_be_remembered_are_a_change_of_everyone() {
        let (changes, bystander, before) = (Changes::default(), UserId::new(), Instant::now());

        for _ in 0..=MOST {
            changes.note(UserId::new());
        }

        assert!(!changes.is_current(bystander, before));
        assert!(changes.0.read().expect("no writer failed").users.len() <= MOST);
    }
}
