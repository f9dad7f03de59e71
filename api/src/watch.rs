//! One client's way through a job's events: from where it was, without a hole and without a repeat, to the
//! last one. It reads from the feed's ring; behind that, from the log at its own pace; of a job that has
//! ended, from the record. Between two steps it is a place and nothing more, so a client that takes nothing
//! holds nothing.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use shared::{
    Result,
    event::{Event, EventId},
    id::{JobId, UserId},
    job::{Job, JobView},
    time::Timestamp,
};
use tokio::time::{sleep, timeout};

use crate::{
    feed::{Advice, Feeds, Member, Queued, Retrying, last_event},
    ring::{Framed, Place, before, fitting},
};

/// About how many bytes a client is given at a time. One event may be more.
pub const ROOM: usize = 16 * 1024;
/// The most events that are read from the log at a time.
const MAX_PAGE: u64 = 128;
/// How many are read at first: they may be large, and many may begin at a time.
const FIRST_PAGE: u64 = 8;
/// How long to wait for a log that does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// What a client is told.
#[derive(Debug)]
pub enum Notice {
    /// Events of the log, in order; one at least.
    Events(Vec<Framed>),
    /// Something beside the log.
    Remark(Remark),
}

/// How far a client can be told.
#[derive(Debug)]
enum Step {
    /// This much is here.
    Tell(Notice),
    /// What comes next is not here yet.
    Wait,
    /// That was all.
    End,
}

/// What is said beside the log. It has no id: a client must not resume from it.
#[derive(Debug)]
pub struct Remark {
    /// The type of the event.
    pub kind: &'static str,
    /// The whole event.
    pub event: Value,
}

impl Remark {
    fn advice(advice: Advice) -> Self {
        let at = Timestamp::now();
        match advice {
            Advice::Queued(Queued { position, estimated_wait_ms }) => {
                let kind = "job.queued";
                Self { kind, event: json!({"type": kind, "at": at, "position": position, "estimated_wait_ms": estimated_wait_ms}) }
            }
            Advice::Retrying(Retrying { attempt, reason, delay_ms }) => {
                let kind = "retrying";
                Self { kind, event: json!({"type": kind, "at": at, "attempt": attempt, "reason": reason, "delay_ms": delay_ms}) }
            }
        }
    }

    /// The client's position is no longer kept: this is how far the job is, and what follows starts anew.
    fn resync(job: &JobView) -> Self {
        let kind = "resync";
        Self { kind, event: json!({"type": kind, "at": Timestamp::now(), "job": job}) }
    }
}

/// At most `limit` events of `job` after `after`, or from the newest attempt's start. `None` when that
/// position is not kept.
pub async fn stored(feeds: &Feeds, job: &Job, after: Option<EventId>, limit: usize) -> Result<Option<Vec<Event>>> {
    // What an earlier attempt said is void.
    let place = after.filter(|after| after.attempt >= job.attempt);
    let mut events = if job.state.is_terminal() {
        recorded(feeds, job).await?.events.to_vec()
    } else {
        // With the event at the place itself, which shows that it is kept and is none of those asked for.
        let (from, limit) = place.map_or((before(job.attempt), limit), |place| (previous(place), limit + 1));
        feeds.events().read(job.id, Some(from), u64::try_from(limit).unwrap_or(u64::MAX)).await?
    };
    if let Some(place) = place {
        let Some(at) = events.iter().position(|event| event.id == place) else { return Ok(None) };
        events.drain(..=at);
    }
    events.truncate(limit);
    Ok(Some(events))
}

/// What the record has of the events of a job that ended.
struct Recorded {
    /// All of them, or the last one alone; never none.
    events: Arc<[Event]>,
    /// Whether these are all.
    is_whole: bool,
}

async fn recorded(feeds: &Feeds, job: &Job) -> Result<Recorded> {
    Ok(match feeds.events().archived(job.id).await? {
        Some(events) if !events.is_empty() => Recorded { events, is_whole: true },
        _ => Recorded { events: last_event(job).into_iter().collect(), is_whole: false },
    })
}

/// The first of `events`, as many as there is room for.
fn framed(events: &[Event]) -> Vec<Framed> {
    fitting(events.iter().map(Framed::new), ROOM)
}

/// The place directly before the event `id`.
fn previous(id: EventId) -> EventId {
    id.n.checked_sub(1).map_or_else(|| before(id.attempt), |n| EventId { n, ..id })
}

/// One client's way through a job's events.
pub struct Watch {
    feeds: Feeds,
    job: JobId,
    owner: UserId,
    /// The last event told, or the place before the first.
    place: EventId,
    source: Source,
    resync: Option<Box<JobView>>,
    /// What was read elsewhere and is told with the next step.
    fetched: Vec<Framed>,
    /// Whether our place is older than the feed's ring.
    is_behind: bool,
    advised: u64,
    /// How many events of the log fill about the room there is, as far as the last page tells.
    page: u64,
    ended: bool,
}

/// Where the events come from.
enum Source {
    /// The job goes on.
    Feed(Member),
    /// It has ended.
    Record,
}

impl Watch {
    /// Watch `job` from after the event `after`, or from the newest attempt's start. `None` when `after` is
    /// the last event or behind it: there is nothing to tell.
    pub async fn open(feeds: &Feeds, job: &Job, after: Option<EventId>) -> Result<Option<Self>> {
        if job.state.is_terminal() {
            return Self::replay(feeds, job, after).await;
        }
        let mut watch = Self::new(feeds, job, before(job.attempt), Source::Feed(feeds.join(job)));
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

    fn new(feeds: &Feeds, job: &Job, place: EventId, source: Source) -> Self {
        Self {
            feeds: feeds.clone(),
            job: job.id,
            owner: job.user_id,
            place,
            source,
            resync: None,
            fetched: Vec::new(),
            is_behind: false,
            advised: 0,
            page: FIRST_PAGE,
            ended: false,
        }
    }

    /// The events of a job that has ended.
    async fn replay(feeds: &Feeds, job: &Job, after: Option<EventId>) -> Result<Option<Self>> {
        let Recorded { events, is_whole } = recorded(feeds, job).await?;
        let Some(last) = events.last().map(|event| event.id) else { return Ok(None) };
        if after.is_some_and(|after| after >= last) {
            return Ok(None);
        }
        let mut watch = Self::new(feeds, job, before(last.attempt), Source::Record);
        match after {
            None => {}
            Some(after) if events.binary_search_by_key(&after, |event| event.id).is_ok() => watch.place = after,
            Some(after) if is_whole && after.attempt < last.attempt => {}
            Some(_) => {
                watch.resync = Some(Box::new(job.view()));
                watch.place = previous(last);
            }
        }
        Ok(Some(watch))
    }

    /// Whether the log has the event `id`. While it cannot be asked, the client is believed.
    async fn keeps(&self, id: EventId) -> bool {
        let next = self.feeds.events().read(self.job, Some(previous(id)), 1).await;
        next.map_or(true, |events| events.first().is_some_and(|event| event.id == id))
    }

    /// The job.
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Whose job it is.
    pub fn owner(&self) -> UserId {
        self.owner
    }

    /// What the client is told next; `None` when that was all. Cancel-safe.
    pub async fn next(&mut self) -> Option<Notice> {
        loop {
            match self.ready() {
                Step::Tell(notice) => return Some(notice),
                Step::Wait => self.wait().await,
                Step::End => return None,
            }
        }
    }

    /// What the client is told next, where that is here already.
    fn ready(&mut self) -> Step {
        if let Some(view) = self.resync.take() {
            return Step::Tell(Notice::Remark(Remark::resync(&view)));
        }
        if self.ended {
            return Step::End;
        }
        if !self.fetched.is_empty() {
            let fetched = std::mem::take(&mut self.fetched);
            return self.tell(fetched);
        }
        let Source::Feed(member) = &mut self.source else { return Step::Wait };
        let look = member.look(self.place, self.advised, ROOM);
        let is_behind = look.place == Place::Behind;
        if is_behind && !self.is_behind {
            self.feeds.readers().behind.inc();
        }
        self.is_behind = is_behind;
        match (look.place, look.advice) {
            (Place::Next(events), _) => self.tell(events),
            (Place::CaughtUp, _) if look.ended => Step::End,
            (Place::CaughtUp, Some((number, advice))) => {
                self.advised = number;
                Step::Tell(Notice::Remark(Remark::advice(advice)))
            }
            (Place::Behind | Place::CaughtUp, _) => Step::Wait,
        }
    }

    fn tell(&mut self, events: Vec<Framed>) -> Step {
        if let Some(last) = events.last() {
            self.place = last.id;
            self.ended = last.is_terminal;
        }
        Step::Tell(Notice::Events(events))
    }

    /// Wait until there may be something to tell that was not here. Cancel-safe.
    async fn wait(&mut self) {
        match &mut self.source {
            // Boxed: a client that waits, as most do, need not hold room for this.
            Source::Record => self.fetched = Box::pin(self.read_record()).await,
            Source::Feed(_) if self.is_behind => self.fetched = Box::pin(self.read_log()).await,
            Source::Feed(member) => self.ended |= !member.changed().await,
        }
    }

    /// Once more the event that was told last, for a client that was given a part of it. `None` when it is no longer kept.
    pub async fn again(&self) -> Option<Framed> {
        if let Source::Feed(member) = &self.source
            && let Some(event) = member.get(self.place)
        {
            return Some(event);
        }
        let log = self.feeds.events().read(self.job, Some(previous(self.place)), 1).await.unwrap_or_default();
        if let Some(event) = log.first().filter(|event| event.id == self.place) {
            return Some(Framed::new(event));
        }
        let record = self.feeds.events().archived(self.job).await.ok()??;
        let at = record.binary_search_by_key(&self.place, |event| event.id).ok()?;
        Some(Framed::new(&record[at]))
    }

    /// What comes after our place, from the log. Nothing where it has to be asked again, or where it is no
    /// longer kept and the client starts anew.
    async fn read_log(&mut self) -> Vec<Framed> {
        let Ok(log) = self.feeds.events().read(self.job, Some(self.place), self.page).await else {
            self.pause().await;
            return Vec::new();
        };
        if !log.first().is_some_and(|first| self.may_go_on_with(first.id)) {
            self.start_anew().await;
            return Vec::new();
        }
        let events = framed(&log);
        // What did not fit is read again when the client has taken this.
        self.page = u64::try_from(if events.len() < log.len() { events.len() } else { log.len() * 2 }).unwrap_or(MAX_PAGE).min(MAX_PAGE);
        events
    }

    /// Whether `id` is what the client waits for. At a start it takes the oldest event there is.
    fn may_go_on_with(&self, id: EventId) -> bool {
        id.follows(Some(self.place)) || self.place.n == u32::MAX
    }

    /// What comes after our place, from the record.
    async fn read_record(&mut self) -> Vec<Framed> {
        match self.feeds.events().archived(self.job).await {
            Ok(Some(events)) => {
                let rest = &events[events.partition_point(|event| event.id <= self.place)..];
                self.ended = rest.is_empty();
                framed(rest)
            }
            Ok(None) => self.read_last().await,
            Err(_) => {
                sleep(RETRY).await;
                Vec::new()
            }
        }
    }

    /// The last event alone, where the record has no other. A client that is in the middle of the others
    /// is told first.
    async fn read_last(&mut self) -> Vec<Framed> {
        let Ok(job) = self.feeds.jobs().peek(self.job).await else {
            sleep(RETRY).await;
            return Vec::new();
        };
        let Some((last, job)) = job.and_then(|job| Some((last_event(&job)?, job))) else {
            self.ended = true;
            return Vec::new();
        };
        if !self.may_go_on_with(last.id) {
            self.place = previous(last.id);
            self.resync = Some(Box::new(job.view()));
            return Vec::new();
        }
        framed(&[last])
    }

    /// The log has a hole after our place, or is gone.
    async fn start_anew(&mut self) {
        let Ok(Some(job)) = self.feeds.jobs().peek(self.job).await else { return self.pause().await };
        if !job.state.is_terminal() {
            let start = before(job.attempt);
            if self.place == start {
                // Already at the start: an empty log is being written again by its worker.
                return self.pause().await;
            }
            self.place = start;
            self.resync = Some(Box::new(job.view()));
            return;
        }
        let Ok(rest) = Self::replay(&self.feeds, &job, Some(self.place)).await else { return self.pause().await };
        self.source = Source::Record;
        match rest {
            Some(rest) => (self.place, self.resync) = (rest.place, rest.resync),
            None => self.ended = true,
        }
    }

    /// Give a log or a record that did not answer some time.
    async fn pause(&mut self) {
        if let Source::Feed(member) = &mut self.source {
            // Either the time passes or something changes: both mean to look again.
            let _ = timeout(RETRY, member.changed()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::event::StartReason;

    use super::*;

    #[test]
    fn what_is_not_of_the_log_has_no_id() {
        let queued = Remark::advice(Advice::Queued(Queued { position: 3, estimated_wait_ms: None }));
        let retrying = Remark::advice(Advice::Retrying(Retrying { attempt: 2, reason: StartReason::WorkerLost, delay_ms: 40 }));

        assert_eq!((queued.kind, &queued.event["position"], &queued.event["estimated_wait_ms"]), ("job.queued", &json!(3), &Value::Null));
        assert_eq!(
            (retrying.kind, &retrying.event["reason"], &retrying.event["delay_ms"]),
            ("retrying", &json!("worker_lost"), &json!(40))
        );
        for remark in [queued, retrying] {
            assert_eq!((&remark.event["type"], remark.event.get("id")), (&json!(remark.kind), None));
        }
    }
}
