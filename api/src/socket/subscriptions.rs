//! The jobs that one socket follows. Each is a watch, which holds nothing between two steps; only one that has
//! something to tell is asked.

use std::{collections::HashMap, pin::Pin};

use async_stream::stream;
use futures_util::{
    Stream, StreamExt as _,
    stream::{AbortHandle, Abortable, SelectAll},
};
use shared::id::{JobId, UserId};

use crate::watch::{Notice, Watch};

/// What a watch tells; `None` at its end.
type Told = (JobId, Option<Notice>);

/// The watches of a socket.
pub struct Subscriptions {
    most: usize,
    watches: SelectAll<Pin<Box<dyn Stream<Item = Told> + Send>>>,
    living: HashMap<JobId, Living>,
}

/// A watch that goes on.
struct Living {
    /// Whose job it watches.
    owner: UserId,
    stop: AbortHandle,
}

impl Subscriptions {
    /// None yet, and so many at most.
    pub fn new(most: usize) -> Self {
        Self { most, watches: SelectAll::new(), living: HashMap::new() }
    }

    /// Whether there may be one more, for `job`, in place of the one there is if there is one.
    pub fn has_room_for(&self, job: JobId) -> bool {
        self.living.len() < self.most || self.living.contains_key(&job)
    }

    /// Whether there may be one more.
    pub fn has_room(&self) -> bool {
        self.living.len() < self.most
    }

    /// Follow a job by `watch`, and no longer by the watch there was.
    pub fn add(&mut self, mut watch: Watch) {
        let (job, owner) = (watch.job(), watch.owner());
        let (stop, registration) = AbortHandle::new_pair();
        let told = stream! {
            while let Some(notice) = watch.next().await {
                yield (job, Some(notice));
            }
            yield (job, None);
        };
        self.watches.push(Box::pin(Abortable::new(told, registration)));
        if let Some(former) = self.living.insert(job, Living { owner, stop }) {
            former.stop.abort();
        }
    }

    /// Follow a job no more.
    pub fn remove(&mut self, job: JobId) {
        if let Some(living) = self.living.remove(&job) {
            living.stop.abort();
        }
    }

    /// Follow no more the jobs of those whom `may` does not allow; whether there was any.
    pub fn keep(&mut self, may: impl Fn(UserId) -> bool) -> bool {
        let others = self.living.extract_if(|_, living| !may(living.owner));
        others.map(|(_, living)| living.stop.abort()).count() > 0
    }

    /// What is told next. Waits for ever where nothing is followed. Cancel-safe.
    pub async fn next(&mut self) -> (JobId, Notice) {
        loop {
            match self.watches.next().await {
                Some((job, Some(notice))) => return (job, notice),
                Some((job, None)) => drop(self.living.remove(&job)),
                None => std::future::pending().await,
            }
        }
    }
}
