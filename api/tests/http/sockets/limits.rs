//! What a socket may cost: how much, how fast, how long, how many.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{CloseCode, Data, OpCode},
    },
};

use super::{figure, ping, subscribe, until_open, watch};
use crate::{
    socket::{Heard, Socket},
    stage::{PATIENCE, Stage, complete, say},
};

const MEBIBYTE: usize = 1024 * 1024;

fn fragment(payload: &[u8], kind: Data, is_last: bool) -> Message {
    Message::Frame(Frame::message(payload.to_vec(), OpCode::Data(kind), is_last))
}

/// A ping of so many bytes.
fn long_ping(bytes: usize) -> String {
    let ping = ping().to_string();
    let space = " ".repeat(bytes - ping.len());
    ping + &space
}

#[tokio::test]
async fn a_message_may_have_a_mebibyte_in_one_frame_or_in_many() {
    let stage = Stage::new().await;
    let (_server, mut socket) = stage.socket().await;
    let long = long_ping(MEBIBYTE);
    let (first, rest) = long.as_bytes().split_at(7);

    socket.send(Message::text(long.clone())).await.expect("sent");
    assert_eq!(socket.said().await.expect("an answer"), json!({"type": "pong"}));
    socket.send(fragment(first, Data::Text, false)).await.expect("sent");
    // What comes between has nothing to do with it.
    socket.send(Message::Ping("between".into())).await.expect("sent");
    assert_eq!(socket.frame().await, Some(Message::Pong("between".into())));
    for part in rest.chunks(100_000) {
        socket.send(fragment(part, Data::Continue, false)).await.expect("sent");
    }
    socket.send(fragment(b"", Data::Continue, true)).await.expect("sent");
    assert_eq!(socket.said().await.expect("an answer"), json!({"type": "pong"}));
}

#[tokio::test]
async fn what_no_client_may_send_closes_its_socket_by_its_code_and_no_other() {
    let stage = Stage::new().await;
    let (server, mut bystander) = stage.socket().await;
    let masked = |first: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).expect("short");
        [&[first, 0x80 | length, 0, 0, 0, 0], payload].concat()
    };
    let huge = [&[0x81, 0xff], u64::MAX.to_be_bytes().as_slice(), &[0; 4]].concat();
    let no_utf8 = b"\"\xff\"".as_slice();

    let cases: Vec<(&str, Vec<u8>, CloseCode)> = vec![
        ("binary", masked(0x82, b"{}"), CloseCode::Unsupported),
        ("not UTF-8", masked(0x81, no_utf8), CloseCode::Invalid),
        ("not UTF-8 over two frames", [masked(0x01, b"\xc3"), masked(0x80, b"(")].concat(), CloseCode::Invalid),
        ("more than there is", huge, CloseCode::Size),
        ("not masked", vec![0x81, 2, b'{', b'}'], CloseCode::Protocol),
        ("a reserved bit", masked(0xc1, b"{}"), CloseCode::Protocol),
        ("a reserved opcode", masked(0x83, b"{}"), CloseCode::Protocol),
        ("a reserved control opcode", masked(0x8b, b""), CloseCode::Protocol),
        ("a ping in parts", masked(0x09, b"a"), CloseCode::Protocol),
        ("the rest of nothing", masked(0x80, b"{}"), CloseCode::Protocol),
        ("two beginnings", [masked(0x01, b"{"), masked(0x81, b"{}")].concat(), CloseCode::Protocol),
        ("half a close code", masked(0x88, b"a"), CloseCode::Protocol),
        ("HTTP", b"GET / HTTP/1.1\r\nhost: here\r\n\r\n".to_vec(), CloseCode::Protocol),
    ];
    for (what, bytes, code) in cases {
        let mut socket = server.socket(&stage.key).await;
        socket.send_raw(&bytes).await.expect("sent");
        let (closed, _) = socket.closed().await.expect(what);
        assert_eq!(closed, u16::from(code), "{what}");
        assert_eq!(bystander.ask(ping()).await.expect("an answer")["type"], "pong", "{what}");
    }
    drop(bystander);
    until_open(&stage, 0).await;
}

#[tokio::test]
async fn a_client_that_sends_too_much_is_told_so_while_it_still_sends() {
    let stage = Stage::new().await;
    let (server, _) = stage.socket().await;

    for round in 0..5 {
        let mut whole = server.socket(&stage.key).await;
        whole.send(Message::text(long_ping(4 * MEBIBYTE + round))).await.expect("sent");
        let mut parts = server.socket(&stage.key).await;
        parts.send(fragment(b"{", Data::Text, false)).await.expect("sent");
        for _ in 0..320 {
            parts.send(fragment(&[b' '; 8 * 1024], Data::Continue, false)).await.expect("sent");
        }
        for mut socket in [whole, parts] {
            // A reset would have taken that away from many a client.
            let heard = socket.frames_without_an_answer().await.expect("an end without a reset");
            let [0x88, _, code @ ..] = heard.as_slice() else { panic!("{heard:?}") };
            assert_eq!(code[..2], u16::from(CloseCode::Size).to_be_bytes(), "round {round}");
        }
    }
}

#[tokio::test]
async fn a_client_in_a_hurry_is_read_from_at_a_pace_and_delays_nobody_else() {
    let stage = Stage::new().await;
    let (server, mut other) = stage.socket().await;
    let mut hasty = server.socket(&stage.key).await;
    let begun = Instant::now();

    // 5,000 messages, many times what the network holds.
    let sent = Cell::new(0);
    let flood = async {
        while sent.get() < 5_000 && hasty.send(Message::text(long_ping(16 * 1024))).await.is_ok() {
            sent.set(sent.get() + 1);
        }
    };
    let others = async {
        // From when so much was sent that the rest has to wait.
        let mut asked = 0;
        while asked < 50 {
            other.ask(ping()).await.expect("an answer");
            asked += u32::from(sent.get() > 200);
        }
    };
    tokio::select! {
        () = flood => panic!("the server took all {} messages before it answered another client", sent.get()),
        () = others => {}
    }

    // 200 at once, and 50 a second.
    for answered in 1..=340 {
        assert_eq!(hasty.said().await.expect("an answer"), json!({"type": "pong"}));
        let due = Duration::from_millis(20) * u32::try_from(answered - 200_i32).unwrap_or(0);
        assert!(begun.elapsed() + Duration::from_millis(5) >= due, "{answered} answers after {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_client_is_asked_for_a_sign_of_life_and_given_up_without_one() {
    let stage = Stage::new().await;
    let (server, mut lives) = stage.socket().await;
    let mut dead = server.socket(&stage.key).await;
    lives.done(watch("jobs")).await.expect("done");
    dead.ask(ping()).await.expect("an answer");
    until_open(&stage, 2).await;

    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let mut pings = Vec::new();
    // It answers as it reads.
    while pings.len() < 6 {
        match lives.frame().await.expect("a frame") {
            Message::Ping(_) => pings.push(begun.elapsed().as_secs()),
            Message::Text(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let heard = dead.frames_without_an_answer().await.expect("an end");

    assert!(pings.iter().zip([30, 60, 90, 120, 150, 180]).all(|(at, due)| (due - 2..=due + 1).contains(at)), "{pings:?}");
    assert_eq!(heard, [0x89, 0, 0x89, 0], "two pings, and the end");
    until_open(&stage, 1).await;
    assert!(matches!(lives.ask(ping()).await, Ok(answer) if answer["type"] == "pong"));
}

#[tokio::test]
async fn a_user_has_so_many_sockets_and_one_that_closes_makes_room() {
    let stage = Stage::with(("MAX_SOCKETS_PER_USER", "2")).await;
    let (server, first) = stage.socket().await;
    let mut second = server.socket(&stage.token_of(&stage.user).await).await;
    second.ask(ping()).await.expect("an answer");

    let mut third = server.socket(&stage.key).await;
    let (code, reason) = third.closed().await.expect("closed");
    assert_eq!(code, 4429);
    assert!(reason.starts_with("too_many_sockets"), "{reason}");
    let mut unknown = Socket::connect(&server.base, &[]).await.expect("nobody in particular");
    unknown.say(&super::auth(&stage.key)).await.expect("sent");
    assert_eq!(unknown.closed().await.expect("closed").0, 4429);
    until_open(&stage, 2).await;

    first.leave().await.expect("goodbye");
    until_open(&stage, 1).await;
    let mut third = server.socket(&stage.key).await;
    third.done(watch("jobs")).await.expect("let in");
    // One whose connection just ends leaves no less room.
    drop((second, third));
    until_open(&stage, 0).await;
    let mut sockets = [server.socket(&stage.key).await, server.socket(&stage.key).await];
    for socket in &mut sockets {
        socket.done(watch("jobs")).await.expect("let in");
    }
    assert_eq!(figure(&stage, "claude_api_websockets_open").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_server_about_to_stop_says_so_on_every_socket_and_ends() {
    let stage = Stage::new().await;
    let (server, mut busy) = stage.socket().await;
    let (mut idle, mut unknown) = (server.socket(&stage.key).await, Socket::connect(&server.base, &[]).await.expect("a socket"));
    // One that never reads, nor says goodbye.
    let mut deaf = server.socket(&stage.key).await;
    let id = stage.submit("hi").await;
    let lease = stage.hand().await.take().await;
    for socket in [&mut busy, &mut deaf] {
        socket.done(subscribe(&id)).await.expect("done");
        socket.done(watch("jobs")).await.expect("done");
    }
    for socket in [&mut idle, &mut unknown] {
        socket.ask(ping()).await.expect("an answer");
    }
    say(&lease, "a");
    busy.until("event").await.expect("an event");
    let begun = Instant::now();

    stage.app.draining.cancel();

    for socket in [&mut busy, &mut idle, &mut unknown] {
        assert_eq!(socket.closed().await.expect("closed").0, u16::from(CloseCode::Restart));
    }
    timeout(PATIENCE, server.running).await.expect("ended in time").expect("without a panic");
    timeout(PATIENCE, stage.app.job_news.join_all()).await.expect("every feed has ended");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(matches!(deaf.next().await.expect("something"), Heard::Said(_) | Heard::Closed(1012, _)));
    complete(lease, "unheard").await;
}
