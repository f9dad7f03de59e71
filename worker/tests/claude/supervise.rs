//! What happens to the CLI's processes when the worker, or their supervisor, does not end as it should.

#![expect(clippy::disallowed_types, reason = "starts the supervisor as the worker would, and doubles of the worker")]

use std::{
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::room::{RUNAWAYS, Room, SOON, line, spawn};
use prometheus_client::metrics::gauge::Gauge;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{interval, timeout},
};
use worker::claude::process::{LINE_LIMIT, Process};

const SILENCE: Duration = Duration::from_millis(600);

#[tokio::test]
async fn a_killed_worker_takes_everything_along() {
    for is_confined in [false, true] {
        let room = Room::new();
        let mut alive = room.alive();
        let mut double = start_double(&room, is_confined).await;
        alive.assert_held();

        send(&double, Signal::KILL);

        alive.gone().await;
        double.wait().await.unwrap();
    }
}

#[tokio::test]
async fn a_frozen_worker_loses_everything_after_the_silence_limit() {
    for is_confined in [false, true] {
        let room = Room::new();
        let mut alive = room.alive();
        let mut double = start_double(&room, is_confined).await;
        alive.assert_held();

        let frozen = Instant::now();
        send(&double, Signal::STOP);

        alive.gone().await;
        // Renewed at most a twentieth of a second before.
        assert!(frozen.elapsed() > SILENCE.saturating_sub(Duration::from_millis(200)), "ended after {:?}", frozen.elapsed());
        send(&double, Signal::KILL);
        double.wait().await.unwrap();
    }
}

#[tokio::test]
async fn renewing_keeps_a_process_alive_beyond_the_silence_limit() {
    let room = Room::new();
    let mut launch = room.launch("/bin/sh", ["-c", "read -r line; echo alive"]);
    launch.silence = SILENCE;
    let mut process = spawn(&launch);

    let started = Instant::now();
    let mut beats = interval(SILENCE / 6);
    while started.elapsed() < SILENCE * 2 {
        beats.tick().await;
        process.renew();
    }
    process.write_line(b"", SOON).await.unwrap();

    assert_eq!(line(&mut process).await, "alive");
}

#[tokio::test]
async fn what_a_killed_supervisor_left_is_gone_when_its_process_has_ended() {
    for is_confined in [false, true] {
        let room = Room::new();
        let alive = room.alive();
        let (mut process, living) = start_runaways(&room, is_confined).await;
        alive.assert_held();

        kill_process(pid(process.id().unwrap()), Signal::KILL).unwrap();

        assert_eq!(timeout(SOON, process.wait()).await.expect("its end").signal, Some(9));
        alive.assert_gone();
        assert_eq!(living.get(), 0, "confined: {is_confined}");
    }
}

#[tokio::test]
async fn a_supervisor_that_stands_still_is_done_without() {
    for is_confined in [false, true] {
        let room = Room::new();
        let alive = room.alive();
        let (mut process, living) = start_runaways(&room, is_confined).await;
        kill_process(pid(process.id().unwrap()), Signal::STOP).unwrap();
        alive.assert_held();

        assert_eq!(timeout(SOON, process.kill()).await.expect("its end").signal, Some(9));

        alive.assert_gone();
        assert_eq!(living.get(), 0, "confined: {is_confined}");
    }
}

#[tokio::test]
async fn the_supervisor_outlives_what_a_terminal_or_an_init_system_sends() {
    let room = Room::new();
    let script = "kill -INT $PPID; kill -TERM $PPID; kill -HUP $PPID; kill -QUIT $PPID; trap 'echo caught; exit 4' TERM; echo sent; \
                  kill -TERM $$; echo not reached";
    let mut process = spawn(&room.launch("/bin/sh", ["-c", script]));

    assert_eq!(line(&mut process).await, "sent");
    // The program itself still gets its signals.
    assert_eq!(line(&mut process).await, "caught");
    assert_eq!(process.wait().await.code, Some(4));
}

#[tokio::test]
async fn orphans_are_reaped_while_the_program_runs() {
    let room = Room::new();
    let script =
        "(sh -c 'echo $$ >orphan' &); until [ -s orphan ]; do :; done; while [ -e /proc/$(cat orphan) ]; do :; done; echo reaped; cat";
    let mut process = spawn(&room.launch("/bin/sh", ["-c", script]));

    assert_eq!(line(&mut process).await, "reaped");
}

#[tokio::test]
async fn the_program_is_in_a_session_of_its_own() {
    let room = Room::new();
    let mut process = spawn(&room.launch("/bin/sh", ["-c", "cut -d' ' -f1,6 /proc/$$/stat"]));

    let ids = line(&mut process).await;

    let (own, session) = ids.split_once(' ').unwrap();
    assert_eq!(own, session);
}

/// A process with [`RUNAWAYS`], and the count of those that live.
async fn start_runaways(room: &Room, is_confined: bool) -> (Process, Gauge) {
    let mut launch = room.launch("/bin/sh", ["-c", &format!("{RUNAWAYS} cat")]);
    if is_confined {
        launch = room.confined(launch).await;
    }
    let living = Gauge::default();
    let mut process = Process::spawn(&launch, LINE_LIMIT, &living).unwrap();
    assert_eq!(line(&mut process).await, "ready");
    assert_eq!(living.get(), 1);
    (process, living)
}

/// Start this test binary again, as [`worker_double`] with a process of its own.
async fn start_double(room: &Room, is_confined: bool) -> Child {
    if is_confined {
        fs::write(room.path("confined"), "").unwrap();
    }
    let mut double = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "supervise::worker_double", "--ignored", "--nocapture"])
        .env("WORKER_DOUBLE_ROOM", room.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(double.stdout.take().unwrap()).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.ends_with("double is ready") {
                return;
            }
        }
        panic!("the double ended");
    };
    timeout(SOON, ready).await.expect("the double is ready");
    double
}

/// A worker that may be killed: owns a process, renews it and does nothing else.
#[tokio::test]
#[ignore = "started by the other tests, as a process of its own"]
async fn worker_double() {
    let Some(directory) = std::env::var_os("WORKER_DOUBLE_ROOM") else { return };
    let room = std::mem::ManuallyDrop::new(Room::at(directory.into()));
    let mut launch = room.launch("/bin/sh", ["-c", &format!("{RUNAWAYS} cat")]);
    launch.silence = SILENCE;
    if room.path("confined").exists() {
        launch = room.confined(launch).await;
    }
    let mut process = spawn(&launch);
    assert_eq!(line(&mut process).await, "ready");
    println!("double is ready");
    let mut beats = interval(Duration::from_millis(50));
    loop {
        beats.tick().await;
        process.renew();
    }
}

fn send(double: &Child, signal: Signal) {
    kill_process(pid(double.id().unwrap()), signal).unwrap();
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id.cast_signed()).unwrap()
}
