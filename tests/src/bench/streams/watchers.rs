//! Watchers of one job, thousands of them in a process of their own, on one thread. The first to get an event
//! reads it; all others must get the same bytes. What they have in common is said on standard output.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    task::{JoinSet, LocalSet},
};

use super::{
    part::ends_with_its_parent,
    said::{between, due, now},
    wire::Answer,
};
use crate::bench::figures::Figures;

/// How many connect at a time: a listener's queue is bounded.
const CONNECTING: usize = 64;
/// What is read in one go.
const BUFFER: usize = 64 * 1024;

/// Whom to watch.
#[derive(Args)]
pub struct Watch {
    /// How many there are.
    #[arg(long)]
    pub count: usize,
    /// The server.
    #[arg(long)]
    pub address: SocketAddr,
    /// The path of the job's events.
    #[arg(long)]
    pub path: String,
    /// The client's key.
    #[arg(long)]
    pub key: String,
    /// Tell of every so many events that all have it.
    #[arg(long)]
    pub every: usize,
}

/// Watch until the job has ended.
pub fn run(watch: &Watch) -> anyhow::Result<()> {
    ends_with_its_parent();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, watch_all(watch))
}

#[expect(clippy::print_stdout, reason = "its parent listens")]
async fn watch_all(watch: &Watch) -> anyhow::Result<()> {
    let request =
        format!("GET {} HTTP/1.1\r\nhost: {}\r\nx-api-key: {}\r\naccept: text/event-stream\r\n\r\n", watch.path, watch.address, watch.key);
    let crowd = Rc::new(RefCell::new(Crowd::of(watch)));
    let mut watchers = JoinSet::new();
    let mut connecting = stream::iter(0..watch.count).map(|_| connect(watch.address, &request)).buffer_unordered(CONNECTING);
    while let Some(socket) = connecting.try_next().await? {
        watchers.spawn_local(follow(socket, crowd.clone()));
    }
    while let Some(followed) = watchers.join_next().await {
        followed??;
    }
    println!("{}", crowd.borrow_mut().report()?);
    Ok(())
}

async fn connect(address: SocketAddr, request: &str) -> anyhow::Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await.context("could not connect")?;
    socket.write_all(request.as_bytes()).await?;
    // The next one comes once this one is answered.
    socket.readable().await?;
    Ok(socket)
}

async fn follow(socket: TcpStream, crowd: Rc<RefCell<Crowd>>) -> anyhow::Result<()> {
    let (mut answer, mut next, mut has_begun) = (Answer::default(), 0, false);
    while !answer.has_ended() {
        socket.readable().await?;
        let crowd = &mut *crowd.borrow_mut();
        match socket.try_read(&mut crowd.buffer) {
            Ok(0) => bail!("a stream was cut off after {next} events"),
            Ok(read) => answer.push(&crowd.buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        }
        if !has_begun && answer.has_begun() {
            has_begun = true;
            crowd.begin();
        }
        next = crowd.take(&mut answer.body, next)?;
    }
    let is_whole = answer.body.is_empty() && crowd.borrow().ended_with.is_some_and(|last| last + 1 == next);
    ensure!(is_whole, "a stream ended after {next} events");
    Ok(())
}

/// What the watchers have in common.
struct Crowd {
    buffer: Vec<u8>,
    count: usize,
    every: usize,
    begun: usize,
    events: Vec<Event>,
    /// The number of the terminal event, once somebody has it.
    ended_with: Option<usize>,
    delays: Vec<Duration>,
    last: u64,
}

/// An event of the job.
struct Event {
    frame: Vec<u8>,
    /// When it was due. The first and the last event of a job do not say that.
    due: Option<u64>,
    /// How many have it.
    had: usize,
}

impl Crowd {
    fn of(watch: &Watch) -> Self {
        let (buffer, count, every) = (vec![0; BUFFER], watch.count, watch.every);
        Self { buffer, count, every, begun: 0, events: Vec::new(), ended_with: None, delays: Vec::new(), last: 0 }
    }

    #[expect(clippy::print_stdout, reason = "its parent listens")]
    fn begin(&mut self) {
        self.begun += 1;
        if self.begun == self.count {
            println!("connected");
        }
    }

    /// Take the whole events out of `body`, for somebody who waits for the event `next`; the one they wait for
    /// then.
    fn take(&mut self, body: &mut Vec<u8>, mut next: usize) -> anyhow::Result<usize> {
        let (mut taken, now) = (0, now());
        while taken < body.len() {
            let rest = &body[taken..];
            // All but the first to get an event know where it ends.
            let known = self.events.get(next).filter(|event| rest.starts_with(&event.frame));
            let length = match known {
                Some(event) => event.frame.len(),
                None => match rest.windows(2).position(|pair| pair == b"\n\n") {
                    Some(end) => end + 2,
                    None => break,
                },
            };
            let frame = &rest[..length];
            taken += length;
            if known.is_none() {
                // What has no id is not of the log.
                if !frame.starts_with(b"id: ") {
                    continue;
                }
                self.note(next, frame)?;
            }
            self.count(next, now);
            next += 1;
        }
        body.drain(..taken);
        Ok(next)
    }

    /// Read an event that nobody has yet.
    fn note(&mut self, n: usize, frame: &[u8]) -> anyhow::Result<()> {
        let frame = str::from_utf8(frame)?;
        ensure!(n == self.events.len() && self.ended_with.is_none(), "after event {n} of {} somebody got {frame}", self.events.len());
        let (head, data) = frame.trim_end().split_once("\ndata: ").context("an event has data")?;
        let data: Value = serde_json::from_str(data)?;
        let kind = data["type"].as_str().context("an event has a type")?;
        ensure!(head == format!("id: 1-{n}\nevent: {kind}") && data["id"] == format!("1-{n}"), "the event {n} is {frame}");
        let due = match kind {
            "text.delta" => Some(due(n, data["text"].as_str().context("a delta has a text")?)?),
            "job.started" if n == 0 => None,
            "job.completed" => {
                self.ended_with = Some(n);
                None
            }
            _ => bail!("nobody said {frame}"),
        };
        self.events.push(Event { frame: frame.as_bytes().to_vec(), due, had: 0 });
        Ok(())
    }

    /// One more has the event `n`.
    #[expect(clippy::print_stdout, reason = "its parent listens")]
    fn count(&mut self, n: usize, now: u64) {
        let event = &mut self.events[n];
        event.had += 1;
        if let Some(due) = event.due {
            self.delays.push(between(due, now));
            self.last = now;
        }
        if event.had == self.count && n.is_multiple_of(self.every) {
            println!("had {n} {now}");
        }
    }

    /// What is to be known at the end.
    fn report(&mut self) -> anyhow::Result<Value> {
        ensure!(self.events.iter().all(|event| event.had == self.count), "not everybody got everything");
        let events = self.delays.len();
        let delays = Figures::of(std::mem::take(&mut self.delays)).context("there were events")?;
        Ok(json!({"events": events, "last": self.last, "delays": delays.columns()}))
    }
}

#[cfg(test)]
mod tests {
    use api::ring::Framed;
    use shared::{
        event::{self, EventBody, EventId},
        time::Timestamp,
    };

    use super::*;
    use crate::bench::streams::said::piece;

    /// The event `n` of a job that has said nothing but pieces.
    fn event(n: u32, body: &EventBody) -> Vec<u8> {
        Framed::new(&event::Event::new(EventId { attempt: 1, n }, body, Timestamp::from_unix_ms(0))).frame.to_vec()
    }

    /// Whether two watchers may get this, the one after the other, in a job that says the pieces 0, 1 and 2.
    fn may_get(first: &[Vec<u8>], second: &[Vec<u8>]) -> bool {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut crowd = Crowd::of(&Watch { count: 2, address, path: String::new(), key: String::new(), every: 1_000 });
        let mut take = |events: &[Vec<u8>]| crowd.take(&mut events.concat(), 0).is_ok();
        take(first) && take(second)
    }

    #[test]
    fn an_event_that_is_lost_repeated_or_changed_is_noticed() {
        let [zero, one, two] = [0, 1, 2].map(|n| event(n, &piece(n, 7)));
        let ping = b": ping\n\n".to_vec();
        let all = [zero.clone(), ping.clone(), one.clone(), two.clone()];

        assert!(may_get(&all, &[ping, zero.clone(), one.clone(), two.clone()]));
        assert!(!may_get(&[zero.clone(), two.clone()], &[]), "lost");
        assert!(!may_get(&all, &[zero.clone(), two.clone()]), "lost by the second");
        assert!(!may_get(&all, &[zero.clone(), one.clone(), one.clone()]), "repeated");
        assert!(!may_get(&all, &[zero.clone(), event(1, &piece(1, 8))]), "another one than the first got");
        assert!(!may_get(&[zero, event(1, &piece(2, 7))], &[]), "another text");
    }
}
