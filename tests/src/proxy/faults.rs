//! What is to go wrong in a proxy, which all of its connections share.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{contains, lock};

/// What is to go wrong, and what did.
pub(super) struct Faults {
    /// Whether nothing gets through.
    pub(super) hole: watch::Sender<bool>,
    /// Whether every connection is broken as soon as it is there.
    pub(super) refuses: AtomicBool,
    delay_ms: AtomicU64,
    budget: Mutex<Budget>,
    requests: Mutex<Option<Watched>>,
    answers: Mutex<Option<Watched>>,
    lost_replies: AtomicUsize,
}

/// What may go to clients before a connection breaks.
#[derive(Default)]
struct Budget {
    /// `None`: anything.
    left: Option<usize>,
    cuts: usize,
}

/// What is waited for in what goes one way.
pub(super) struct Watched {
    bytes: Vec<u8>,
    /// How many more of them, this one included.
    left: usize,
}

impl Watched {
    pub(super) fn new(bytes: &[u8], nth: usize) -> Self {
        Self { bytes: bytes.to_vec(), left: nth.max(1) }
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            hole: watch::Sender::new(false),
            refuses: AtomicBool::default(),
            delay_ms: AtomicU64::default(),
            budget: Mutex::default(),
            requests: Mutex::default(),
            answers: Mutex::default(),
            lost_replies: AtomicUsize::default(),
        }
    }
}

impl Faults {
    pub(super) fn cut_after(&self, bytes: usize) {
        lock(&self.budget).left = Some(bytes);
    }

    pub(super) fn cuts(&self) -> usize {
        lock(&self.budget).cuts
    }

    /// How many of `wanted` bytes may go; fewer than those mean that the connection breaks.
    pub(super) fn take(&self, wanted: usize) -> usize {
        let mut budget = lock(&self.budget);
        match budget.left {
            None => wanted,
            Some(left) if wanted <= left => {
                budget.left = Some(left - wanted);
                wanted
            }
            Some(left) => {
                *budget = Budget { left: None, cuts: budget.cuts + 1 };
                left
            }
        }
    }

    pub(super) fn watch_requests(&self, watched: Watched) {
        *lock(&self.requests) = Some(watched);
    }

    pub(super) fn watch_answers(&self, watched: Watched) {
        *lock(&self.answers) = Some(watched);
    }

    /// Whether what came is the request that is waited for; `before` is the end of what came before on its connection.
    pub(super) fn is_watched_request(&self, before: &mut Vec<u8>, came: &[u8]) -> bool {
        is_watched(&self.requests, before, came)
    }

    /// The same of an answer.
    pub(super) fn is_watched_answer(&self, before: &mut Vec<u8>, came: &[u8]) -> bool {
        is_watched(&self.answers, before, came)
    }

    pub(super) fn lose_reply(&self) {
        self.lost_replies.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lost_replies(&self) -> usize {
        self.lost_replies.load(Ordering::Relaxed)
    }

    pub(super) fn set_delay(&self, delay: Duration) {
        self.delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.load(Ordering::Relaxed))
    }
}

/// What comes may be cut anywhere: `before` keeps as much of it as could be the beginning of what is waited for.
fn is_watched(watched: &Mutex<Option<Watched>>, before: &mut Vec<u8>, came: &[u8]) -> bool {
    let mut slot = lock(watched);
    let Some(watched) = slot.as_mut() else {
        before.clear();
        return false;
    };
    before.extend_from_slice(came);
    let is_there = contains(before, &watched.bytes);
    let kept = if is_there { 0 } else { watched.bytes.len().saturating_sub(1).min(before.len()) };
    before.drain(..before.len() - kept);
    watched.left -= usize::from(is_there);
    let is_it = watched.left == 0;
    if is_it {
        *slot = None;
    }
    is_it
}
