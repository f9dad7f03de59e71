//! One client's way through a job's events: from where it was, without a hole and without a repeat, to the
//! last one. It reads from the feed's ring; behind that, from the log at its own pace; of a job that has
//! ended, from the archive.

use std::{collections::VecDeque, time::Duration};

use shared::{
    Result,
    event::{Event, EventId},
    id::JobId,
    job::{Job, JobView},
};
use tokio::time::timeout;

use crate::{
    feed::{Advice, Feeds, Member, last_event},
    ring::{Framed, Place, before},
};

/// How many events a watcher reads from the log at a time.
const PAGE: u64 = 32;
/// How long to wait for a log that does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// What a client is told.
#[derive(Debug)]
pub enum Notice {
    /// An event of the log.
    Event(Framed),
    /// Something beside the log.
    Advice(Advice),
    /// The client's position is no longer kept: this is how far the job is, and what follows starts anew.
    Resync(Box<JobView>),
}

/// At most `limit` events of `job` after `after`, or from the newest attempt's start. `None` when that
/// position is not kept.
pub async fn stored(feeds: &Feeds, job: &Job, after: Option<EventId>, limit: usize) -> Result<Option<Vec<Event>>> {
    // What an earlier attempt said is void.
    let place = after.filter(|after| after.attempt >= job.attempt);
    let start = before(job.attempt);
    let mut events = if job.state.is_terminal() {
        let archive = feeds.events().archived(job.id).await?;
        archive.unwrap_or_else(|| last_event(job).into_iter().collect())
    } else {
        // With the event at the place itself, which shows that it is kept.
        let from = place.map_or(start, previous);
        feeds.events().read(job.id, Some(from), u64::try_from(limit).unwrap_or(u64::MAX)).await?
    };
    if let Some(place) = place {
        let Some(at) = events.iter().position(|event| event.id == place) else { return Ok(None) };
        events.drain(..=at);
    }
    events.truncate(limit);
    Ok(Some(events))
}

/// The place directly before the event `id`.
fn previous(id: EventId) -> EventId {
    id.n.checked_sub(1).map_or_else(|| before(id.attempt), |n| EventId { n, ..id })
}

/// One client's way through a job's events.
pub struct Watch {
    feeds: Feeds,
    job: JobId,
    /// The last event told, or the place before the first.
    place: EventId,
    pending: VecDeque<Event>,
    framed: VecDeque<Framed>,
    resync: Option<Box<JobView>>,
    /// `None` once everything left is pending.
    member: Option<Member>,
    advised: u64,
    ended: bool,
}

impl Watch {
    /// Watch `job` from after the event `after`, or from the newest attempt's start. `None` when `after` is
    /// the last event or behind it: there is nothing to tell.
    pub async fn open(feeds: &Feeds, job: &Job, after: Option<EventId>) -> Result<Option<Self>> {
        if job.state.is_terminal() {
            return Self::replay(feeds, job, after).await;
        }
        let mut watch = Self::new(feeds, job.id, before(job.attempt));
        watch.member = Some(feeds.join(job));
        // What an earlier attempt said is void.
        if let Some(after) = after.filter(|after| after.attempt >= job.attempt) {
            if watch.keeps(after).await {
                watch.place = after;
            } else {
                watch.resync = Some(Box::new(job.view()));
            }
        }
        Ok(Some(watch))
    }

    fn new(feeds: &Feeds, job: JobId, place: EventId) -> Self {
        let (pending, framed) = (VecDeque::new(), VecDeque::new());
        Self { feeds: feeds.clone(), job, place, pending, framed, resync: None, member: None, advised: 0, ended: false }
    }

    /// The events of a job that has ended.
    async fn replay(feeds: &Feeds, job: &Job, after: Option<EventId>) -> Result<Option<Self>> {
        let archive = feeds.events().archived(job.id).await?;
        let kept = archive.is_some();
        let mut events = archive.unwrap_or_else(|| last_event(job).into_iter().collect());
        let Some(last) = events.last().map(|event| event.id) else { return Ok(None) };
        if after.is_some_and(|after| after >= last) {
            return Ok(None);
        }
        let mut watch = Self::new(feeds, job.id, before(job.attempt));
        if let Some(after) = after {
            let known = events.iter().position(|event| event.id == after);
            match known {
                Some(at) => drop(events.drain(..=at)),
                None if kept && after.attempt < last.attempt => {}
                None => {
                    watch.resync = Some(Box::new(job.view()));
                    events.drain(..events.len() - 1);
                }
            }
        }
        watch.pending = events.into();
        Ok(Some(watch))
    }

    /// Whether the log has the event `id`. While it cannot be asked, the client is believed.
    async fn keeps(&self, id: EventId) -> bool {
        let next = self.feeds.events().read(self.job, Some(previous(id)), 1).await;
        next.map_or(true, |events| events.first().is_some_and(|event| event.id == id))
    }

    /// What the client is told next; `None` when that was all. Cancel-safe.
    pub async fn next(&mut self) -> Option<Notice> {
        if let Some(view) = self.resync.take() {
            return Some(Notice::Resync(view));
        }
        loop {
            if self.ended {
                return None;
            }
            let pending = self.framed.pop_front().or_else(|| self.pending.pop_front().map(|event| Framed::new(&event)));
            if let Some(event) = pending {
                self.place = event.id;
                self.ended = event.is_terminal;
                return Some(Notice::Event(event));
            }
            let member = self.member.as_mut()?;
            let look = member.look(self.place, self.advised);
            match (look.place, look.advice) {
                (Place::Next(events), _) => self.framed = events.into(),
                (Place::Behind, _) => {
                    if let Some(view) = self.read_log().await {
                        return Some(Notice::Resync(view));
                    }
                }
                (Place::CaughtUp, _) if look.ended => return None,
                (Place::CaughtUp, Some((number, advice))) => {
                    self.advised = number;
                    return Some(Notice::Advice(advice));
                }
                (Place::CaughtUp, None) => {
                    if !member.changed().await {
                        return None;
                    }
                }
            }
        }
    }

    /// Get what comes after our place from the log. Answers the job's state where that is no longer kept,
    /// and starts anew.
    async fn read_log(&mut self) -> Option<Box<JobView>> {
        let page = self.feeds.events().read(self.job, Some(self.place), PAGE).await.ok();
        match page {
            Some(page) if page.first().is_some_and(|first| self.may_go_on_with(first.id)) => self.pending = page.into(),
            Some(_) => return self.start_anew().await,
            None => self.wait().await,
        }
        None
    }

    /// Whether `id` is what the client waits for. At a start it takes the oldest event there is.
    fn may_go_on_with(&self, id: EventId) -> bool {
        id.follows(Some(self.place)) || self.place.n == u32::MAX
    }

    /// The log has a hole after our place, or is gone.
    async fn start_anew(&mut self) -> Option<Box<JobView>> {
        let Ok(Some(job)) = self.feeds.jobs().peek(self.job).await else {
            self.wait().await;
            return None;
        };
        if !job.state.is_terminal() {
            let start = before(job.attempt);
            if self.place == start {
                // Already at the start: an empty log is being written again by its worker.
                self.wait().await;
                return None;
            }
            self.place = start;
            return Some(Box::new(job.view()));
        }
        let Ok(rest) = Self::replay(&self.feeds, &job, Some(self.place)).await else {
            self.wait().await;
            return None;
        };
        self.member = None;
        let rest = rest?;
        self.pending = rest.pending;
        rest.resync
    }

    async fn wait(&mut self) {
        if let Some(member) = &mut self.member {
            // Either the time passes or something changes: both mean to look again.
            let _ = timeout(RETRY, member.changed()).await;
        }
    }
}
