//! What the server was asked, for tests to look at. Bounded, and without `Debug`: requests carry keys.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use hyper::{HeaderMap, Method};
use serde_json::Value;
use tokio::sync::watch;

/// One request.
pub struct Received {
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body; null when it had none.
    pub body: Value,
}

impl Received {
    /// The header `name` as text, if it is there.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The latest requests and how many answers are under way.
pub(super) struct Log {
    keep: usize,
    latest: Mutex<VecDeque<Arc<Received>>>,
    count: watch::Sender<u64>,
    open: watch::Sender<usize>,
}

/// An answer under way; dropped when it is given, or its client left.
pub(super) struct Open(watch::Sender<usize>);

impl Log {
    pub(super) fn new(keep: usize) -> Self {
        Self { keep, latest: Mutex::default(), count: watch::Sender::new(0), open: watch::Sender::new(0) }
    }

    /// Note `request`; its answer is under way until the returned value is dropped.
    pub(super) fn note(&self, request: Received) -> Open {
        let open = self.open.clone();
        open.send_modify(|open| *open += 1);
        if self.keep > 0 {
            let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            if latest.len() == self.keep {
                latest.pop_front();
            }
            latest.push_back(Arc::new(request));
        }
        self.count.send_modify(|count| *count += 1);
        Open(open)
    }

    pub(super) fn all(&self) -> Vec<Arc<Received>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(super) async fn reached(&self, count: u64) {
        let reached = self.count.subscribe().wait_for(|now| *now >= count).await.is_ok();
        debug_assert!(reached, "the sender lives in `self`");
    }

    pub(super) async fn idle(&self) {
        let idle = self.open.subscribe().wait_for(|open| *open == 0).await.is_ok();
        debug_assert!(idle, "the sender lives in `self`");
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}
