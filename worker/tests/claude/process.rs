//! A process as its owner sees it: what goes in, what comes out, and that nothing is left of it.

use std::{
    fs::File,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::room::{RUNAWAYS, Room, SOON, line, spawn};
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::timeout;
use worker::claude::{
    lines::LineError,
    process::{Exit, LINE_LIMIT, Process, SpawnError, WriteError},
};

const SUCCESS: Exit = Exit { code: Some(0), signal: None };
const KILLED: Exit = Exit { code: None, signal: Some(9) };

#[tokio::test]
async fn lines_and_the_exit_code_pass_through() {
    let room = Room::new();
    let mut process = spawn(&room.launch("/bin/sh", ["-c", "while read -r line; do echo \"got $line\"; done; exit 3"]));

    process.write_line(b"one", SOON).await.unwrap();
    assert_eq!(line(&mut process).await, "got one");
    process.write_line(b"two", SOON).await.unwrap();
    assert_eq!(line(&mut process).await, "got two");
    process.close_stdin();

    assert_eq!(process.next_line().await.unwrap(), None);
    assert_eq!(process.wait().await, Exit { code: Some(3), signal: None });
    assert!(matches!(process.write_line(b"late", SOON).await, Err(WriteError::Closed)));
}

#[tokio::test]
async fn the_signal_that_ended_a_program_passes_through() {
    let room = Room::new();
    let mut process = spawn(&room.launch("/bin/sh", ["-c", "kill -SEGV $$"]));

    assert_eq!(process.wait().await, Exit { code: None, signal: Some(11) });
}

#[tokio::test]
async fn a_program_that_closes_its_output_is_seen_to_do_so() {
    let room = Room::new();
    let mut process = spawn(&room.launch("/bin/sh", ["-c", "exec >/dev/null; read -r line"]));

    assert_eq!(timeout(SOON, process.next_line()).await.expect("the output is closed").unwrap(), None);
    process.write_line(b"end", SOON).await.unwrap();

    assert_eq!(process.wait().await.code, Some(0));
}

#[tokio::test]
async fn the_environment_is_exactly_the_list() {
    let room = Room::new();
    let mut launch = room.launch("/usr/bin/env", []);
    launch.env = vec![("A".into(), "1".into()), ("B".into(), "two words".into())];

    let mut plain = spawn(&launch);
    let mut seen = [line(&mut plain).await, line(&mut plain).await];
    seen.sort();
    assert_eq!(seen, ["A=1", "B=two words"]);
    assert_eq!(plain.next_line().await.unwrap(), None);

    let mut confined = spawn(&room.confined(launch).await);
    let mut seen = [line(&mut confined).await, line(&mut confined).await, line(&mut confined).await];
    seen.sort();
    assert_eq!(seen, ["A=1", "B=two words", "PWD=/workspace"]);
    assert_eq!(confined.next_line().await.unwrap(), None);
}

#[tokio::test]
async fn no_open_file_but_the_standard_streams_reaches_the_program() {
    let room = Room::new();
    // Not closed on exec, as what a worker may itself have been started with.
    let leak = rustix::io::dup(File::open("/etc/passwd").unwrap()).unwrap();

    let script = "n=3; while [ $n -lt 256 ]; do [ -e /proc/$$/fd/$n ] && echo $n; n=$((n+1)); done";
    let mut process = spawn(&room.launch("/bin/sh", ["-c", script]));

    assert_eq!(process.next_line().await.unwrap(), None);
    assert_eq!(process.wait().await, SUCCESS);
    drop(leak);
}

#[tokio::test]
async fn no_program_leaves_its_memory_in_a_file() {
    let room = Room::new();

    let mut process = spawn(&room.launch("/bin/sh", ["-c", "ulimit -Sc; ulimit -Hc"]));

    assert_eq!(process.next_line().await.unwrap().as_deref(), Some(&b"0"[..]));
    assert_eq!(process.next_line().await.unwrap().as_deref(), Some(&b"0"[..]));
}

#[tokio::test]
async fn standard_error_never_blocks_and_its_end_is_kept() {
    let room = Room::new();
    let mut process = spawn(&room.launch("/bin/sh", ["-c", "yes | head -c 1000000 >&2; echo end >&2; echo out"]));

    assert_eq!(line(&mut process).await, "out");
    process.wait().await;

    assert_eq!(process.stderr_tail().len(), 8 * 1024);
    assert!(process.stderr_tail().ends_with("y\nend\n"));
}

#[tokio::test]
async fn a_line_beyond_the_limit_is_an_error_and_the_process_can_be_killed() {
    let room = Room::new();
    let mut process = spawn(&room.launch("/usr/bin/head", ["-c", "10485760", "/dev/zero"]));

    let error = timeout(SOON, process.next_line()).await.expect("an answer").unwrap_err();

    assert!(matches!(error, LineError::TooLong { limit: LINE_LIMIT }));
    assert_eq!(timeout(SOON, process.kill()).await.expect("it is gone"), KILLED);
}

#[tokio::test]
async fn a_program_that_does_not_read_fails_the_write_in_time() {
    let room = Room::new();
    let mut process = spawn(&room.launch("/usr/bin/sleep", ["1000"]));

    let limit = Duration::from_millis(50);
    let written = timeout(SOON, process.write_line(&vec![b'x'; 1 << 20], limit)).await.expect("an answer");

    assert!(matches!(written, Err(WriteError::TimedOut(_))));
    process.kill().await;
}

#[tokio::test]
async fn killing_leaves_no_descendant() {
    let room = Room::new();
    let script = format!("{RUNAWAYS} cat");
    for is_confined in [false, true] {
        let mut launch = room.launch("/bin/sh", ["-c", &script]);
        if is_confined {
            launch = room.confined(launch).await;
        }
        let mut alive = room.alive();
        let mut process = spawn(&launch);
        assert_eq!(line(&mut process).await, "ready");
        alive.assert_held();

        assert_eq!(timeout(SOON, process.kill()).await.expect("it is gone"), KILLED);

        alive.assert_gone();
        alive.gone().await;
        room.clear();
    }
}

#[tokio::test]
async fn a_chain_that_forks_faster_than_it_dies_is_caught() {
    let room = Room::new();
    let mut alive = room.alive();
    let mut process = spawn(&room.launch("/bin/sh", ["-c", "exec 9>alive; comet() { comet & }; comet; comet; echo ready; cat"]));
    assert_eq!(line(&mut process).await, "ready");
    alive.assert_held();

    timeout(SOON, process.kill()).await.expect("it is gone");

    alive.gone().await;
}

#[tokio::test]
async fn the_end_of_the_program_is_the_end_of_its_descendants() {
    let room = Room::new();
    let script = format!("{RUNAWAYS} exit 5");
    for is_confined in [false, true] {
        let mut launch = room.launch("/bin/sh", ["-c", &script]);
        if is_confined {
            launch = room.confined(launch).await;
        }
        let mut alive = room.alive();
        let mut process = spawn(&launch);
        assert_eq!(line(&mut process).await, "ready");

        assert_eq!(timeout(SOON, process.wait()).await.expect("it is gone").code, Some(5));

        alive.assert_gone();
        alive.gone().await;
        room.clear();
    }
}

#[tokio::test]
async fn dropping_ends_the_tree_and_leaves_no_zombie() {
    let room = Room::new();
    let mut alive = room.alive();
    let living = Gauge::default();
    let process = Process::spawn(&room.launch("/bin/sh", ["-c", &format!("{RUNAWAYS} cat")]), LINE_LIMIT, &living);
    let mut process = process.unwrap();
    assert_eq!(line(&mut process).await, "ready");
    assert_eq!(living.get(), 1);
    let supervisor = PathBuf::from(format!("/proc/{}", process.id().unwrap()));

    drop(process);

    alive.gone().await;
    let counted_out = async {
        while living.get() > 0 || supervisor.exists() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, counted_out).await.expect("it is reaped");
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let room = Room::new();
    let error = |launch| Process::spawn(&launch, LINE_LIMIT, &Gauge::default()).unwrap_err();

    assert!(matches!(error(room.launch("/nowhere/claude", [])), SpawnError::ProgramMissing(_)));
    assert!(matches!(error(room.launch("/etc/passwd", [])), SpawnError::NotExecutable(_)));
    let mut launch = room.launch("/bin/true", []);
    launch.supervisor = "/nowhere/worker".into();
    assert!(matches!(error(launch), SpawnError::SupervisorMissing(_)));
    let mut launch = room.launch("/bin/true", []);
    launch.cwd = "/nowhere".into();
    assert!(matches!(error(launch), SpawnError::DirectoryMissing(_)));
}

#[tokio::test]
async fn what_the_worker_was_not_entitled_to_for_too_long_does_not_start() {
    let room = Room::new();
    let mut launch = room.launch("/bin/true", []);
    launch.entitled_since = Instant::now().checked_sub(launch.silence).unwrap();

    let error = Process::spawn(&launch, LINE_LIMIT, &Gauge::default()).unwrap_err();

    assert!(matches!(error, SpawnError::NotEntitled), "{error}");
}

#[tokio::test]
async fn a_process_lives_from_what_entitled_it_and_not_from_its_start() {
    let room = Room::new();
    let mut launch = room.launch("/bin/cat", []);
    launch.silence = SOON * 2;
    launch.entitled_since = Instant::now().checked_sub(SOON * 2).unwrap().checked_add(Duration::from_secs(1)).unwrap();

    let exit = timeout(SOON, spawn(&launch).wait()).await.expect("its end");

    assert_eq!(exit.signal, Some(9));
}

#[tokio::test]
async fn a_program_that_vanishes_at_the_last_moment_is_named() {
    let room = Room::new();
    let script = room.path("script");
    std::fs::write(&script, "#!/nowhere/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    let mut process = spawn(&room.launch(script.to_str().unwrap(), []));

    assert_eq!(process.wait().await.code, Some(127));
    assert!(process.stderr_tail().contains("could not start"), "{}", process.stderr_tail());
}
