//! Announcements: one subscription of this process for each job somebody follows here. A signal only
//! wakes and speeds up; whoever doubts reads the log.

use std::collections::HashMap;

use bytes::Bytes;
use fred::{
    clients::SubscriberClient,
    interfaces::{ClientLike as _, EventInterface as _, PubsubInterface as _},
    prelude::{Client, Error as RedisError, Value},
};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{Purpose, builder, keys, unavailable};
use crate::{
    Error, Result,
    event::{Event, EventId},
    events::{Requeued, Signal},
    id::JobId,
    job::Job,
    time::Timestamp,
};

/// Signals kept for one slow follower; one that falls further behind hears [`Signal::Missed`].
const BACKLOG: usize = 64;

/// Published before the JSON of a [`Requeued`]; no event id looks like it.
const REQUEUED: &[u8] = b"requeued ";

/// Tell whoever follows `job` that it went back to the queue. To be called before it is rung for, so that
/// the news is older than its next start.
pub async fn announce_requeued(client: &Client, job: &Job) -> Result<()> {
    let news = Requeued { attempt: job.attempt, reason: job.start_reason, delay_ms: job.run_at.ms_since(Timestamp::now()) };
    let mut payload = REQUEUED.to_vec();
    payload.extend(serde_json::to_vec(&news).expect("these types have only string keys"));
    let _: Value = client.publish(keys::channel(job.id), payload.as_slice()).await.map_err(unavailable)?;
    Ok(())
}

enum Request {
    Subscribe { job: JobId, reply: oneshot::Sender<Result<broadcast::Receiver<Signal>>> },
    Unsubscribe { job: JobId },
}

/// The subscriptions of this process. The task behind it ends with its last clone.
#[derive(Clone)]
pub struct Signals {
    requests: mpsc::Sender<Request>,
    // Unbounded, because a drop cannot wait; never more than one message for each live subscription.
    farewells: mpsc::UnboundedSender<Request>,
}

impl Signals {
    /// Connect, or say at once why not.
    pub async fn connect(url: &str) -> Result<Self, RedisError> {
        let client = builder(url, Purpose::Commands)?.build_subscriber_client()?;
        client.init().await?;
        let (requests, inbox) = mpsc::channel(1_024);
        let (farewells, leaving) = mpsc::unbounded_channel();
        tokio::spawn(Switchboard { client, lines: HashMap::new() }.run(inbox, leaving));
        Ok(Self { requests, farewells })
    }

    /// Hear about `job` from here on. Active when this answers.
    pub async fn subscribe(&self, job: JobId) -> Result<Line> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::Unavailable { service: "redis", source: "the subscriber has stopped".into() };
        self.requests.send(Request::Subscribe { job, reply }).await.map_err(|_| gone())?;
        let signals = answer.await.map_err(|_| gone())??;
        Ok(Line { job, signals, farewells: self.farewells.clone() })
    }
}

/// One follower's end.
pub struct Line {
    job: JobId,
    signals: broadcast::Receiver<Signal>,
    farewells: mpsc::UnboundedSender<Request>,
}

impl Line {
    /// The next signal. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        match self.signals.recv().await {
            Ok(signal) => signal,
            Err(broadcast::error::RecvError::Lagged(_)) => Signal::Missed,
            // Only when the process ends: nothing will be heard any more.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.farewells.send(Request::Unsubscribe { job: self.job });
    }
}

struct Followers {
    signals: broadcast::Sender<Signal>,
    count: usize,
}

/// Owns the subscriber connection; every change of subscriptions goes through it in order, so that a
/// late unsubscribe can never undo a newer subscribe.
struct Switchboard {
    client: SubscriberClient,
    lines: HashMap<JobId, Followers>,
}

impl Switchboard {
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>, mut leaving: mpsc::UnboundedReceiver<Request>) {
        let mut messages = self.client.message_rx();
        let mut reconnects = self.client.reconnect_rx();
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
            Request::Subscribe { job, reply } => {
                let answer = self.subscribe(job).await;
                if let Err(Ok(_)) = reply.send(answer) {
                    // The asker left before its line was made: no farewell will come for it.
                    self.unsubscribe(job).await;
                }
            }
            Request::Unsubscribe { job } => self.unsubscribe(job).await,
        }
    }

    async fn subscribe(&mut self, job: JobId) -> Result<broadcast::Receiver<Signal>> {
        if let Some(followers) = self.lines.get_mut(&job) {
            followers.count += 1;
            return Ok(followers.signals.subscribe());
        }
        self.client.subscribe(keys::channel(job)).await.map_err(unavailable)?;
        let (signals, receiver) = broadcast::channel(BACKLOG);
        self.lines.insert(job, Followers { signals, count: 1 });
        Ok(receiver)
    }

    async fn unsubscribe(&mut self, job: JobId) {
        let Some(followers) = self.lines.get_mut(&job) else { return };
        followers.count -= 1;
        if followers.count == 0 {
            self.lines.remove(&job);
            // Without a connection there is no subscription either.
            let _ = self.client.unsubscribe(keys::channel(job)).await;
        }
    }

    /// What was published in between is gone, and nobody says so: everyone reads the log.
    async fn resubscribe(&mut self) {
        if let Err(error) = self.client.resubscribe_all().await {
            tracing::warn!(error = %error, "Could not renew the Redis subscriptions");
        }
        self.tell_all_missed();
    }

    fn tell_all_missed(&self) {
        for followers in self.lines.values() {
            let _ = followers.signals.send(Signal::Missed);
        }
    }

    fn deliver(&self, channel: &str, value: Value) {
        let Some(followers) = job_of(channel).and_then(|job| self.lines.get(&job)) else { return };
        let signal = value.into_bytes().as_ref().and_then(read).unwrap_or(Signal::Missed);
        // Without a receiver a farewell is on its way.
        let _ = followers.signals.send(signal);
    }
}

fn job_of(channel: &str) -> Option<JobId> {
    let hex = channel.strip_prefix("j:{")?.strip_suffix("}:ch")?;
    format!("{}{hex}", JobId::PREFIX).parse().ok()
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
    use crate::event::StartReason;

    #[test]
    fn a_channel_names_its_job() {
        let job = JobId::new();

        assert_eq!(job_of(&keys::channel(job)), Some(job));
        assert_eq!(job_of("j:{x}:ch"), None);
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
