//! Everything that a client can send, at random, over many sockets at once. Whoever behaves beside it feels nothing.
//! `SOCKET_SEED` says where to begin; a failure names it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::{Value, json};
use shared::config::Env;
use tests::{
    client::assert_whole,
    servers::Kind,
    socket::{Heard, Socket},
    system::{Api, Cli, System},
};
use tokio_tungstenite::tungstenite::Message;

use super::{chat, open, until};

/// How long it lasts.
const DURATION: Duration = Duration::from_secs(6);
/// How many misbehave at a time.
const CLIENTS: u64 = 16;
/// What the server may close a socket with that is sent nonsense.
const CODES: [u16; 6] = [1002, 1003, 1007, 1009, 4401, 4429];
/// How much memory the server may need for all of it, in bytes.
const MEMORY: usize = 256 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_clients_send_the_server_lives_and_others_are_served() -> anyhow::Result<()> {
    let seed = Env::of_process().text("SOCKET_SEED").map_or(Ok(20_261_125), str::parse::<u64>)?;
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, _worker) = (system.api().await?, system.worker().await?);
    let jobs = Arc::new(Mutex::new(vec![api.client.say("say:hello").await?]));
    let (end, is_over) = (Instant::now() + DURATION, AtomicBool::new(false));

    let misbehaving = async {
        let clients =
            (0..CLIENTS).map(|n| misbehave(&api, Random(seed.wrapping_add(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)), &jobs, end));
        let sessions: Vec<u32> = try_join_all(clients).await?;
        is_over.store(true, Ordering::Relaxed);
        anyhow::Ok(sessions.iter().sum::<u32>())
    };
    let outcome = tokio::try_join!(misbehaving, behave(&api, &is_over));

    let log = api.process.log();
    let (sessions, answers) = outcome.with_context(|| format!("seed {seed}; the server's log:\n{log}"))?;
    ensure!(sessions > 50 && answers > 1, "seed {seed}: {sessions} sockets, {answers} answers");
    for word in ["panicked", "internal error", "ERROR"] {
        ensure!(!log.contains(word), "seed {seed}: {word}:\n{log}");
    }
    let memory = api.process.resident_bytes()?;
    ensure!(memory < MEMORY, "seed {seed}: {memory} bytes after {sessions} sockets");
    // Nothing is left of any of them.
    let all_gone = async {
        while !api.client.request(Method::GET, "/health/metrics").send().await?.text().await?.contains("\nclaude_api_websockets_open 0\n") {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(tests::system::PATIENCE, all_gone).await.with_context(|| format!("seed {seed}: sockets are left"))?
}

/// Ask and listen as one should, as long as the others go on; how many answers came.
async fn behave(api: &Api, is_over: &AtomicBool) -> anyhow::Result<u32> {
    let mut socket = open(api, api.client.base()).await?;
    let mut answers = 0;
    while !is_over.load(Ordering::Relaxed) {
        let mut events = Vec::new();
        let id = chat(&mut socket, "slow:20:0.05").await?;
        until(&mut socket, &id, "job.completed", &mut events).await?;
        let text = assert_whole(&events);
        ensure!(events.last().is_some_and(|event| event.data["job"]["result"]["text"] == json!(text)), "{events:?}");
        answers += 1;
    }
    socket.leave().await?;
    Ok(answers)
}

/// Open sockets and send them anything until `end`; how many.
async fn misbehave(api: &Api, mut random: Random, jobs: &Mutex<Vec<String>>, end: Instant) -> anyhow::Result<u32> {
    let mut sockets = 0;
    while Instant::now() < end {
        let start = random.0;
        session(api, &mut random, jobs).await.with_context(|| format!("the socket of {start}"))?;
        sockets += 1;
    }
    Ok(sockets)
}

async fn session(api: &Api, random: &mut Random, jobs: &Mutex<Vec<String>>) -> anyhow::Result<()> {
    let offer = format!("claude.v1, bearer.{}", api.key);
    let mut socket = match random.below(8) {
        0 => Socket::connect(api.client.base(), &[]).await?,
        1 => Socket::connect(api.client.base(), &[("sec-websocket-protocol", &offer)]).await?,
        _ => open(api, api.client.base()).await?,
    };
    let mut unanswered = 0;
    for _ in 0..random.below(20) {
        let text = match random.below(4) {
            0 => random.nonsense(),
            _ => message(random, api, jobs).to_string(),
        };
        unanswered += 1;
        if !send(&mut socket, random, &text).await {
            break;
        }
    }
    let is_broken = match random.below(6) {
        // No more than a good client does.
        0 | 1 => false,
        2 => {
            let (bytes, closes) = random.wrong();
            // It may be closed already.
            if socket.send_raw(&bytes).await.is_ok() && closes { true } else { return Ok(()) }
        }
        3 => {
            let _ = socket.send(Message::binary(random.bytes(300))).await;
            true
        }
        // Gone in the middle of a frame, or between two.
        4 => {
            let _ = socket.send_raw(&[0x81, 0xfe, 0x40, 0, 1, 2, 3, 4, 5]).await;
            return Ok(());
        }
        _ => return Ok(()),
    };
    while unanswered > 0 || is_broken {
        match socket.next().await? {
            Heard::Said(message) => match message["type"].as_str() {
                Some("ack" | "pong") => unanswered -= 1,
                Some("error") => {
                    ensure!(message["code"].is_string() && message["code"] != "internal_error", "{message}");
                    // Other news may be an error too, one that answers nothing: it is none of these.
                    unanswered -= 1;
                }
                Some("event" | "job") => {}
                _ => bail!("{message}"),
            },
            Heard::Closed(code, reason) => {
                ensure!(CODES.contains(&code), "{code} {reason}");
                return Ok(());
            }
            Heard::Gone => bail!("gone without a word"),
        }
    }
    remember(&mut socket, jobs).await
}

/// Note a job that others may follow and end, now and then.
async fn remember(socket: &mut Socket, jobs: &Mutex<Vec<String>>) -> anyhow::Result<()> {
    let shared = json!({"type": "chat", "message": "say:hello", "idempotency_key": "shared"});
    // Who is nobody in particular may be closed by now.
    let Ok(answer) = socket.ask(shared).await else { return Ok(()) };
    if let Some(id) = answer["job"]["id"].as_str() {
        let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if !jobs.iter().any(|known| known == id) {
            jobs.push(id.to_owned());
        }
    }
    Ok(())
}

/// Send `text` in one frame or in many, with other things between; whether the socket takes it.
async fn send(socket: &mut Socket, random: &mut Random, text: &str) -> bool {
    if random.below(3) > 0 {
        return socket.send(Message::text(text)).await.is_ok();
    }
    let bytes = text.as_bytes();
    let mut sent = 0;
    let mut wire = Vec::new();
    loop {
        let len = random.below(1 + bytes.len() - sent).min(120);
        let is_last = sent + len == bytes.len();
        wire.extend(frame(u8::from(wire.is_empty()) | (u8::from(is_last) << 7), &bytes[sent..sent + len]));
        sent += len;
        if is_last {
            return socket.send_raw(&wire).await.is_ok();
        }
        if random.below(4) == 0 {
            wire.extend(frame(0x89 + u8::from(random.below(2) == 0), b"between"));
        }
    }
}

/// A masked frame that begins with `first`.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len().min(125)).unwrap_or(125);
    let masked = payload[..usize::from(length)].iter().map(|byte| byte ^ 0x5a);
    [first, 0x80 | length, 0x5a, 0x5a, 0x5a, 0x5a].into_iter().chain(masked).collect()
}

/// Something that a client may say, with good and bad fields.
fn message(random: &mut Random, api: &Api, jobs: &Mutex<Vec<String>>) -> Value {
    let job = match random.below(4) {
        0 => json!("job_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b"),
        1 => random.value(2),
        _ => {
            let jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
            json!(jobs[random.below(jobs.len())])
        }
    };
    let mut message = match random.below(10) {
        0 | 1 => json!({"type": "subscribe", "job_id": job}),
        2 => json!({"type": "subscribe", "job_id": job, "after": random.pick(&["1-0", "1-4294967295", "9-9", "0-0", "x", "-1-1"])}),
        3 => json!({"type": "unsubscribe", "job_id": job}),
        4 => json!({"type": "chat", "message": random.pick(&["say:x", "", "\u{0}", "say:é"]), "stream": random.below(2) == 0,
                    "idempotency_key": random.pick(&["a", "b", "c", ""])}),
        5 => json!({"type": "cancel", "job_id": job}),
        6 => json!({"type": random.pick(&["watch", "unwatch"]), "what": random.pick(&["jobs", "system", "all"])}),
        7 => json!({"type": "auth", "token": random.pick(&[api.key.as_str(), "a.b.c", ""])}),
        8 => json!({"type": "ping"}),
        _ => json!({"type": random.value(1), "message": random.value(3)}),
    };
    if random.below(4) == 0 {
        message["request_id"] = if random.below(2) == 0 { json!("é") } else { random.value(1) };
    }
    if random.below(8) == 0 {
        message[random.pick(&["more", "job_id", "after", "stream", "message"])] = random.value(3);
    }
    message
}

/// Numbers that look like chance and are the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap_or(1)).unwrap_or(0)
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    /// Any JSON, so deep at most.
    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 6 } else { 8 }) {
            0 => Value::Null,
            1 => json!(self.next().is_multiple_of(2)),
            2 => json!(self.next()),
            3 => json!(f64::from_bits(self.next())),
            4 => json!(self.pick(&["", "é", "\u{0}", "\u{1f600}", "job_", "../../etc/passwd"])),
            5 => json!("x".repeat(self.below(3_000))),
            6 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
            _ => (0..self.below(4)).map(|n| (format!("k{n}"), self.value(depth - 1))).collect(),
        }
    }

    /// A text that is no message, mostly no JSON either.
    fn nonsense(&mut self) -> String {
        match self.below(7) {
            0 => "[".repeat(self.below(100_000)),
            1 => format!("{{\"type\":{}1{}", "{\"a\":".repeat(500), "}".repeat(501)),
            2 => format!("{{\"type\":\"ping\",\"n\":1e{}}}", self.below(10_000)),
            3 => format!("{{\"type\":\"ping\",\"n\":{}}}", "9".repeat(1 + self.below(10_000))),
            4 => String::from_utf8_lossy(&self.bytes(500)).into_owned(),
            5 => r#"{"type":"ping","type":"ping"}"#.to_owned(),
            _ => self.value(4).to_string(),
        }
    }

    /// Bytes that are no frame, and whether they must close the socket by themselves.
    fn wrong(&mut self) -> (Vec<u8>, bool) {
        match self.below(7) {
            0 => (frame(0x83 + u8::try_from(self.below(5)).unwrap_or(0), b"a"), true),
            1 => (frame(0x81 | 0x10 << self.below(3), b"{}"), true),
            2 => (frame(0x81, b"\xff\xfe"), true),
            3 => (frame(0x09, b"part"), true),
            4 => ([&[0x81, 0xff], self.next().max(1 << 40).to_be_bytes().as_slice(), &[0; 4]].concat(), true),
            5 => (vec![0x81, 1, b'a'], true),
            // It may be the beginning of something.
            _ => (self.bytes(200), false),
        }
    }
}
