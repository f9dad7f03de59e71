//! Readers that do not read. What one leaves untaken costs the server a place in a log and what is on its way;
//! nobody else feels it, and after a while it is let go.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::Method;
use tests::{
    client::{Event, assert_whole},
    hand::{Hand, TEST_BEAT, complete, say},
    servers::Kind,
    system::{Api, Cli, System},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, interval, timeout},
};

/// How many there are.
const READERS: usize = 200;
/// What the job says: twelve megabytes.
const PIECES: usize = 768;
const PIECE: usize = 16 * 1024;
/// What a reader may cost with its connection, and what of that may be for events that it does not take, in a build
/// for development. Two thirds of it were measured.
const MOST_PER_READER: usize = 160 * 1024;
const MOST_UNTAKEN: usize = 96 * 1024;
/// How long somebody may take nothing, and a little more.
const LET_GO: std::ops::Range<Duration> = Duration::from_secs(28)..Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_do_not_read_cost_little_and_are_let_go_and_may_come_again() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?;
    let (api, store) = (system.api().await?, system.store().await?);
    let mut hand = Hand::join(&store, system.directory(), TEST_BEAT).await?;
    // Once before anybody is measured: what a first job leaves behind is not a reader's.
    let alone = flood(&api, &mut hand).await?;
    let at_first = api.process.resident_bytes()?;

    let id = api.client.say("by hand").await?;
    let lease = hand.take().await?;
    let multiplexed = Multiplexed::open(&api, &id).await?;
    let mut stalled = Vec::new();
    for _ in 0..READERS {
        stalled.push(ask(&api, &id).await?);
    }
    await_streams(&api, READERS + 2).await?;
    let connected = api.process.resident_bytes()?;
    let reader = follow(&api, &id).await?;
    let begun = Instant::now();
    for n in 0..PIECES {
        say(&lease, &piece(n))?;
    }
    say(&lease, "flooded")?;
    let (mut stream, mut events) = timeout(LET_GO.end, reader).await??.context("a reader")?;
    let crowded = begun.elapsed();
    let most = api.process.resident_bytes()?;
    let (each, untaken) = (most.saturating_sub(at_first) / READERS, most.saturating_sub(connected) / READERS);
    println!("the flood alone {alone:?}, beside {READERS} who do not read {crowded:?}");
    println!("{at_first} bytes, with all of them {connected}, after the flood {most}: {each} a reader, {untaken} for what it leaves");
    assert!(each < MOST_PER_READER && untaken < MOST_UNTAKEN, "{each} and {untaken} bytes a reader");
    assert!(crowded < alone * 6 + Duration::from_secs(5), "{crowded:?}, alone {alone:?}");

    // The one that reads, and the one on the same connection as one that does not.
    await_streams(&api, 2).await?;
    let let_go = begun.elapsed();
    println!("let go after {let_go:?}");
    assert!(LET_GO.contains(&let_go), "{let_go:?}");
    say(&lease, "after")?;
    complete(lease, "done").await?;
    events.extend(stream.rest().await?);
    let text = assert_whole(&events);
    assert!(text.ends_with("floodedafter") && text.len() == PIECES * PIECE + 12, "{}", text.len());
    multiplexed.end().await?;

    let (mut first, mut taken) = (stalled.swap_remove(0), Vec::new());
    // Reset or closed, after what was on its way.
    let _ = first.read_to_end(&mut taken).await;
    let taken = String::from_utf8(taken)?;
    let whole = taken.rfind("\n\n").context("an event")?;
    let last = taken[..whole].rmatch_indices("\nid: ").next().and_then(|(at, _)| taken[at + 5..].split('\n').next()).context("an id")?;
    let rest = api.client.events(&id, Some(last)).await?.rest().await?;
    let at = events.iter().position(|event| event.id.as_deref() == Some(last)).context("it is one of them")?;
    ensure!(at > 1 && at < PIECES, "it had {at} events of {PIECES}");
    assert_eq!(rest, events[at + 1..]);
    Ok(())
}

/// A job that floods, and a reader that reads: how long that takes to the last piece.
async fn flood(api: &Api, hand: &mut Hand) -> anyhow::Result<Duration> {
    let id = api.client.say("by hand").await?;
    let lease = hand.take().await?;
    let reader = follow(api, &id).await?;
    let begun = Instant::now();
    for n in 0..PIECES {
        say(&lease, &piece(n))?;
    }
    say(&lease, "flooded")?;
    let (mut stream, mut events) = reader.await?.context("a reader")?;
    let took = begun.elapsed();
    complete(lease, "done").await?;
    events.extend(stream.rest().await?);
    assert_whole(&events);
    Ok(took)
}

/// Piece number `n` of the flood, as long as all are.
fn piece(n: usize) -> String {
    format!("{n:0>PIECE$}")
}

type Following = JoinHandle<anyhow::Result<(tests::client::Stream, Vec<Event>)>>;

/// Read from the start to the word that ends the flood.
async fn follow(api: &Api, id: &str) -> anyhow::Result<Following> {
    let mut stream = api.client.events(id, None).await?;
    Ok(tokio::spawn(async move {
        let mut events = Vec::new();
        while stream.until("text.delta", &mut events).await?.data["text"] != "flooded" {}
        Ok((stream, events))
    }))
}

/// Ask for a job's events, to take nothing of them.
async fn ask(api: &Api, id: &str) -> anyhow::Result<TcpStream> {
    let mut socket = TcpStream::connect(api.client.base().trim_start_matches("http://")).await?;
    let request = format!("GET /api/jobs/{id}/events HTTP/1.1\r\nhost: here\r\nx-api-key: {}\r\n\r\n", api.key);
    socket.write_all(request.as_bytes()).await?;
    Ok(socket)
}

/// Wait until so many streams are open, of all that were. Nobody announces that, so this looks again and again.
async fn await_streams(api: &Api, count: usize) -> anyhow::Result<()> {
    let wanted = format!("event_streams_open {count}\n");
    let mut looks = interval(Duration::from_millis(100));
    let seen = async {
        loop {
            looks.tick().await;
            let page = api.client.request(Method::GET, "/health/metrics").send().await?.error_for_status()?.text().await?;
            if page.contains(&wanted) {
                return anyhow::Ok(());
            }
        }
    };
    timeout(LET_GO.end, seen).await.with_context(|| format!("never {count} streams"))?
}

/// An HTTP/2 connection with two streams of one job, of which it takes one. Frames are written by hand: clients
/// would take both.
struct Multiplexed {
    running: JoinHandle<anyhow::Result<Taken>>,
}

/// What came over it.
struct Taken {
    /// How many bytes of the stream that was not taken.
    stalled: usize,
    /// How the stream that was not taken ended: RFC 9113, section 7.
    reset: Option<u32>,
    /// The one that was.
    text: Vec<u8>,
}

const STALLED: u32 = 1;
const TAKEN: u32 = 3;

impl Multiplexed {
    async fn open(api: &Api, id: &str) -> anyhow::Result<Self> {
        let mut socket = TcpStream::connect(api.client.base().trim_start_matches("http://")).await?;
        let path = format!("/api/jobs/{id}/events");
        let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "here"), (":path", &path), ("x-api-key", &api.key)];
        let mut block = Vec::new();
        for (name, value) in fields {
            // A literal without indexing (RFC 7541, section 6.2.2); lengths below 127 are one byte.
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).context("a short field")?);
                block.extend(text.as_bytes());
            }
        }
        let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        said.extend(frame(4, 0, 0, &[]));
        for stream in [STALLED, TAKEN] {
            // END_STREAM and END_HEADERS.
            said.extend(frame(1, 5, stream, &block));
        }
        socket.write_all(&said).await?;
        Ok(Self { running: tokio::spawn(take(socket)) })
    }

    /// Its end: one stream was reset, the other whole.
    async fn end(self) -> anyhow::Result<()> {
        let taken = timeout(LET_GO.end, self.running).await.context("the connection does not end")???;
        // CANCEL, after all that its window had room for.
        assert_eq!((taken.stalled, taken.reset), (65_535, Some(8)));
        let text = String::from_utf8(taken.text)?;
        let ids: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
        let expected: Vec<String> = (0..PIECES + 4).map(|n| format!("1-{n}")).collect();
        assert_eq!(ids, expected);
        Ok(())
    }
}

/// Take one of the two streams to its end.
async fn take(mut socket: TcpStream) -> anyhow::Result<Taken> {
    let mut taken = Taken { stalled: 0, reset: None, text: Vec::new() };
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags, stream) = (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        let mut payload = vec![0; usize::try_from(length)?];
        socket.read_exact(&mut payload).await?;
        match (kind, stream) {
            // DATA. The connection's window is for both.
            (0, stream) => {
                let mut refilled = vec![0];
                if stream == TAKEN {
                    taken.text.extend(&payload);
                    if flags & 1 == 1 {
                        return Ok(taken);
                    }
                    refilled.push(TAKEN);
                } else {
                    taken.stalled += payload.len();
                }
                for window in refilled.into_iter().filter(|_| length > 0) {
                    socket.write_all(&frame(8, 0, window, &length.to_be_bytes())).await?;
                }
            }
            // RST_STREAM
            (3, STALLED) => taken.reset = Some(u32::from_be_bytes(payload.try_into().ok().context("a reason")?)),
            (3, TAKEN) | (7, _) => anyhow::bail!("the server gave up: {payload:?}"),
            // SETTINGS, PING
            (4, _) if flags & 1 == 0 => socket.write_all(&frame(4, 1, 0, &[])).await?,
            (6, _) if flags & 1 == 0 => socket.write_all(&frame(6, 1, 0, &payload)).await?,
            _ => {}
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}
