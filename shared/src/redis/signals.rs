//! Announcements: one subscription of this process for each channel somebody listens to here, and one
//! for changes of rights. A signal only wakes and speeds up; whoever doubts reads the record or the log.

use std::{collections::HashMap, pin::pin, time::Duration};

use bytes::Bytes;
use fred::{
    clients::SubscriberClient,
    interfaces::{ClientLike as _, EventInterface as _, PubsubInterface as _},
    prelude::{Client, Error as RedisError, ErrorKind, Value},
};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use uuid::Uuid;

use super::{COMMAND_TIMEOUT, Purpose, builder, keys, unavailable};
use crate::{
    Error, Result,
    changes::Changes,
    event::{Event, EventId},
    events::{Requeued, Signal},
    id::{JobId, UserId, WorkerId},
    job::Job,
    time::Timestamp,
};

/// Messages kept for one slow listener; one that falls further behind hears that it missed some.
const BACKLOG: usize = 64;

/// How long news may take that nobody depends on.
pub const NEWS_BUDGET: Duration = Duration::from_millis(50);
/// How often the connection is asked whether it still hears.
const PROBE: Duration = Duration::from_secs(1);

/// Published before the JSON of a [`Requeued`]; no event id looks like it.
const REQUEUED: &[u8] = b"requeued ";

/// Tell every process that the rights of `user` have changed.
pub async fn announce_change(client: &Client, user: UserId) -> Result<()> {
    let _: Value = client.publish(keys::ACCESS, user.uuid().simple().to_string()).await.map_err(unavailable)?;
    Ok(())
}

/// Tell whoever watches the jobs of its owner that `job` is in another state by now. Who misses it sees it
/// with the next look.
pub async fn announce_state(client: &Client, job: JobId, owner: UserId) {
    let news = client.publish::<Value, _, _>(keys::jobs_of(owner), job.uuid().simple().to_string());
    match timeout(NEWS_BUDGET, news).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(job.id = %job, %error, "Could not announce that job `{job}` is in another state"),
        Err(_) => tracing::debug!(job.id = %job, "Redis took too long to announce that job `{job}` is in another state"),
    }
}

/// Call `worker` to beat at once. One that misses it does so with its next beat.
pub async fn call(client: &Client, worker: WorkerId) {
    match timeout(NEWS_BUDGET, client.publish::<Value, _, _>(keys::calls_of(worker), "")).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(worker.id = %worker, %error, "Could not call worker `{worker}`"),
        Err(_) => tracing::debug!(worker.id = %worker, "Redis took too long to call worker `{worker}`"),
    }
}

/// Tell whoever follows `job` that it went back to the queue. To be called before it is rung for, so that
/// the news is older than its next start.
pub async fn announce_requeued(client: &Client, job: &Job) -> Result<()> {
    announce_state(client, job.id, job.user_id).await;
    let news = Requeued { attempt: job.attempt, reason: job.start_reason, delay_ms: job.run_at.ms_since(Timestamp::now()) };
    let mut payload = REQUEUED.to_vec();
    payload.extend(serde_json::to_vec(&news).expect("these types have only string keys"));
    let _: Value = client.publish(keys::channel(job.id), payload.as_slice()).await.map_err(unavailable)?;
    Ok(())
}

enum Request {
    Subscribe { channel: String, reply: oneshot::Sender<Result<broadcast::Receiver<Heard>>> },
    Unsubscribe { channel: String },
}

/// What came over a channel.
#[derive(Clone)]
enum Heard {
    Message(Bytes),
    /// Messages may have been lost.
    Missed,
}

/// The subscriptions of this process. The task behind it ends with its last clone.
#[derive(Clone)]
pub struct Signals {
    requests: mpsc::Sender<Request>,
    // Unbounded, because a drop cannot wait; never more than one message for each live subscription.
    farewells: mpsc::UnboundedSender<Request>,
}

impl Signals {
    /// Connect, or say at once why not. Changes of rights are noted in `changes` from here on.
    pub async fn connect(url: &str, changes: Changes) -> Result<Self, RedisError> {
        let client = builder(url, Purpose::Commands)?.build_subscriber_client()?;
        client.init().await?;
        subscribe(&client, vec![keys::ACCESS.to_owned()]).await?;
        let (requests, inbox) = mpsc::channel(1_024);
        let (farewells, leaving) = mpsc::unbounded_channel();
        tokio::spawn(Switchboard { client, changes, lines: HashMap::new() }.run(inbox, leaving));
        Ok(Self { requests, farewells })
    }

    /// Hear about `job` from here on. Active when this answers.
    pub async fn subscribe(&self, job: JobId) -> Result<JobLine> {
        self.listen(keys::channel(job)).await.map(JobLine)
    }

    /// Hear which jobs of `user` change their states from here on. Active when this answers.
    pub async fn subscribe_user(&self, user: UserId) -> Result<UserLine> {
        self.listen(keys::jobs_of(user)).await.map(UserLine)
    }

    /// Hear where places become free in the queue. Whatever is missed is found by looking.
    pub async fn subscribe_room(&self) -> RoomLine {
        RoomLine { signals: self.clone(), line: self.listen(keys::ROOM.to_owned()).await.ok() }
    }

    /// Hear when `worker` is called from here on. Active when this answers.
    pub async fn subscribe_worker(&self, worker: WorkerId) -> Result<WorkerLine> {
        self.listen(keys::calls_of(worker)).await.map(WorkerLine)
    }

    async fn listen(&self, channel: String) -> Result<Line> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::Unavailable { service: "redis", source: "the subscriber has stopped".into() };
        self.requests.send(Request::Subscribe { channel: channel.clone(), reply }).await.map_err(|_| gone())?;
        let messages = answer.await.map_err(|_| gone())??;
        Ok(Line { channel, messages, farewells: self.farewells.clone() })
    }
}

/// The end of one who follows a job.
pub struct JobLine(Line);

impl JobLine {
    /// The next signal. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        match self.0.next().await {
            Heard::Message(payload) => read(&payload).unwrap_or(Signal::Missed),
            Heard::Missed => Signal::Missed,
        }
    }
}

/// The end of one who watches the jobs of a user.
pub struct UserLine(Line);

impl UserLine {
    /// The next job that is in another state; `None` where some may have been missed. Cancel-safe.
    pub async fn next(&mut self) -> Option<JobId> {
        match self.0.next().await {
            Heard::Message(payload) => Uuid::try_parse_ascii(&payload).ok().map(JobId::from_uuid),
            Heard::Missed => None,
        }
    }
}

/// The end of one who gives places away.
pub struct RoomLine {
    signals: Signals,
    line: Option<Line>,
}

impl RoomLine {
    /// A place may be free; those announced meanwhile count once. Cancel-safe.
    pub async fn next(&mut self) {
        while self.line.is_none() {
            sleep(PROBE).await;
            self.line = self.signals.listen(keys::ROOM.to_owned()).await.ok();
        }
        let Some(line) = &mut self.line else { return };
        line.next().await;
        while line.messages.try_recv().is_ok() {}
    }
}

/// The end of a worker that may be called.
pub struct WorkerLine(Line);

impl WorkerLine {
    /// Wait for a call, or until one may have been missed. Cancel-safe.
    pub async fn next(&mut self) {
        self.0.next().await;
    }
}

/// One listener's end of a channel.
struct Line {
    channel: String,
    messages: broadcast::Receiver<Heard>,
    farewells: mpsc::UnboundedSender<Request>,
}

impl Line {
    /// The next message. Cancel-safe.
    async fn next(&mut self) -> Heard {
        match self.messages.recv().await {
            Ok(heard) => heard,
            Err(broadcast::error::RecvError::Lagged(_)) => Heard::Missed,
            // Only when the process ends: nothing will be heard any more.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.farewells.send(Request::Unsubscribe { channel: std::mem::take(&mut self.channel) });
    }
}

struct Listeners {
    messages: broadcast::Sender<Heard>,
    count: usize,
}

/// Owns the subscriber connection; every change of subscriptions goes through it in order, so that a
/// late unsubscribe can never undo a newer subscribe.
struct Switchboard {
    client: SubscriberClient,
    changes: Changes,
    lines: HashMap<String, Listeners>,
}

impl Switchboard {
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>, mut leaving: mpsc::UnboundedReceiver<Request>) {
        let mut messages = self.client.message_rx();
        let mut reconnects = self.client.reconnect_rx();
        let mut probes = interval(PROBE);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Ok(message) => self.deliver(&message.channel, message.value),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.tell_all_missed(),
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                reconnected = reconnects.recv() => match reconnected {
                    Err(broadcast::error::RecvError::Closed) => break,
                    _ => self.resubscribe().await,
                },
                _ = probes.tick() => self.probe().await,
                Some(request) = leaving.recv() => self.serve(request).await,
                request = inbox.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => break,
                },
            }
        }
        let _ = self.client.quit().await;
    }

    async fn serve(&mut self, request: Request) {
        match request {
            Request::Subscribe { channel, reply } => {
                let answer = self.subscribe(&channel).await;
                if let Err(Ok(_)) = reply.send(answer) {
                    // The asker left before its line was made: no farewell will come for it.
                    self.unsubscribe(&channel).await;
                }
            }
            Request::Unsubscribe { channel } => self.unsubscribe(&channel).await,
        }
    }

    async fn subscribe(&mut self, channel: &str) -> Result<broadcast::Receiver<Heard>> {
        if let Some(listeners) = self.lines.get_mut(channel) {
            listeners.count += 1;
            return Ok(listeners.messages.subscribe());
        }
        self.subscribe_at_redis(vec![channel.to_owned()]).await.map_err(unavailable)?;
        let (messages, receiver) = broadcast::channel(BACKLOG);
        self.lines.insert(channel.to_owned(), Listeners { messages, count: 1 });
        Ok(receiver)
    }

    /// A connection that leaves this unanswered leads nowhere, though it may look open: a new one is made.
    async fn subscribe_at_redis(&self, channels: Vec<String>) -> Result<(), RedisError> {
        if !self.client.is_connected() {
            // Who asks goes on without, and asks again: everybody behind them would wait as long.
            return Err(RedisError::new(ErrorKind::IO, "there is no connection for subscriptions"));
        }
        let answer = self.deaf_until(subscribe(&self.client, channels)).await;
        if answer.as_ref().is_err_and(|error| *error.kind() == ErrorKind::Timeout) {
            tracing::warn!("Redis left a subscription unanswered: connecting anew");
            // It goes on by itself where Redis is away for longer.
            if let Ok(Err(error)) = self.deaf_until(timeout(COMMAND_TIMEOUT, self.client.force_reconnection())).await {
                tracing::debug!(%error, "Could not connect anew at once");
            }
        }
        answer
    }

    /// What Redis answers. While it takes its time nobody hears of changes of rights.
    async fn deaf_until<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        loop {
            match timeout(PROBE / 2, &mut answer).await {
                Ok(answer) => return answer,
                Err(_) => self.changes.note_everyone(),
            }
        }
    }

    /// What is subscribed already is confirmed again, if anybody is there to do so. Without a connection
    /// changes of rights are not heard, so whoever stays is looked at again each time.
    async fn probe(&mut self) {
        if self.subscribe_at_redis(vec![keys::ACCESS.to_owned()]).await.is_err() {
            self.changes.note_everyone();
        }
    }

    async fn unsubscribe(&mut self, channel: &str) {
        let Some(listeners) = self.lines.get_mut(channel) else { return };
        listeners.count -= 1;
        if listeners.count == 0 {
            self.lines.remove(channel);
            // Without a connection there is no subscription either.
            let _ = self.client.unsubscribe(channel).await;
        }
    }

    /// What was published in between is gone, and nobody says so: everyone looks again.
    async fn resubscribe(&mut self) {
        let channels = self.lines.keys().cloned().chain([keys::ACCESS.to_owned()]).collect();
        if let Err(error) = self.subscribe_at_redis(channels).await {
            tracing::warn!(error = %error, "Could not renew the Redis subscriptions");
        }
        self.tell_all_missed();
    }

    fn tell_all_missed(&self) {
        self.changes.note_everyone();
        for listeners in self.lines.values() {
            let _ = listeners.messages.send(Heard::Missed);
        }
    }

    fn deliver(&self, channel: &str, value: Value) {
        let heard = value.into_bytes().map_or(Heard::Missed, Heard::Message);
        if channel == keys::ACCESS {
            self.note_change(&heard);
        } else if let Some(listeners) = self.lines.get(channel) {
            // Without a receiver a farewell is on its way.
            let _ = listeners.messages.send(heard);
        }
    }

    fn note_change(&self, heard: &Heard) {
        let user = match heard {
            Heard::Message(payload) => Uuid::try_parse_ascii(payload).ok(),
            Heard::Missed => None,
        };
        match user {
            Some(user) => self.changes.note(UserId::from_uuid(user)),
            None => self.changes.note_everyone(),
        }
    }
}

/// Subscribe, and see that Redis did: fred takes a subscription that was written for one that was made. What it
/// answers afterwards on the same connection, it answers after the subscription.
async fn subscribe(client: &SubscriberClient, channels: Vec<String>) -> Result<(), RedisError> {
    client.subscribe(channels).await?;
    client.ping::<Value>(None).await.map(drop)
}

/// `<last id>`, then a line for each new event when they were small enough.
fn read(payload: &Bytes) -> Option<Signal> {
    if let Some(news) = payload.strip_prefix(REQUEUED) {
        return serde_json::from_slice(news).ok().map(Signal::Requeued);
    }
    let mut lines = payload.split(|&byte| byte == b'\n');
    let last: EventId = std::str::from_utf8(lines.next()?).ok()?.parse().ok()?;
    let events = lines.map(|line| Event::from_json(payload.slice_ref(line))).collect::<Option<Vec<_>>>()?;
    Some(Signal::Grown { last, events })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::StartReason, redis::server::Server};

    #[tokio::test]
    async fn a_subscription_is_there_once_it_was_answered_and_is_answered_by_redis_alone() {
        let server = Server::start();
        let client = server.connect().await;
        let signals = Signals::connect(&server.url(), Changes::default()).await.expect("connected");

        let mut lines = Vec::new();
        for _ in 0..100 {
            let job = JobId::new();
            lines.push(signals.subscribe(job).await.expect("subscribed"));
            let listening: u32 = client.publish(keys::channel(job), "1-0").await.expect("published");
            assert_eq!(listening, 1);
        }
        for line in &mut lines {
            assert!(matches!(line.next().await, Signal::Grown { last: EventId { attempt: 1, n: 0 }, .. }));
        }

        server.stop();
        assert!(signals.subscribe(JobId::new()).await.is_err());
    }

    #[tokio::test]
    async fn subscriptions_are_renewed_with_their_connection_and_whoever_has_one_is_told() {
        let mut server = Server::start();
        let signals = Signals::connect(&server.url(), Changes::default()).await.expect("connected");
        let jobs = [JobId::new(), JobId::new()];
        let mut lines = [signals.subscribe(jobs[0]).await.expect("subscribed"), signals.subscribe(jobs[1]).await.expect("subscribed")];

        server.restart();
        for line in &mut lines {
            assert!(matches!(line.next().await, Signal::Missed));
        }

        // Told last: by then they are there.
        let client = server.connect().await;
        for (job, line) in jobs.into_iter().zip(&mut lines) {
            let listening: u32 = client.publish(keys::channel(job), "1-7").await.expect("published");
            assert_eq!(listening, 1);
            assert!(matches!(line.next().await, Signal::Grown { last: EventId { attempt: 1, n: 7 }, .. }));
        }
    }

    #[test]
    fn an_announcement_holds_the_last_id_and_perhaps_the_events() {
        let grown = |payload: &'static str| match read(&Bytes::from_static(payload.as_bytes())) {
            Some(Signal::Grown { last, events }) => Some((last, events.len())),
            _ => None,
        };

        assert_eq!(grown("1-7"), Some((EventId { attempt: 1, n: 7 }, 0)));
        assert_eq!(
            grown("1-1\n{\"id\":\"1-0\",\"type\":\"text.delta\"}\n{\"id\":\"1-1\",\"type\":\"text.delta\"}"),
            Some((EventId { attempt: 1, n: 1 }, 2))
        );
        assert_eq!(grown("garbage"), None);
        let requeued = read(&Bytes::from_static(br#"requeued {"attempt":1,"reason":"worker_lost","delay_ms":40}"#));
        assert!(matches!(requeued, Some(Signal::Requeued(Requeued { attempt: 1, reason: StartReason::WorkerLost, delay_ms: 40 }))));
    }
}
