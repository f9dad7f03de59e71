//! What a program inside the sandbox can see, write and reach. Needs bubblewrap on the machine.

use std::path::Path;

use crate::room::{Room, WORKER, spawn};
use worker::claude::sandbox::{Sandbox, SandboxError};

async fn answer(script: &str) -> String {
    let room = Room::new();
    let mut process = spawn(&room.confined(room.launch("/bin/sh", ["-c", script])).await);
    let mut answer = Vec::new();
    while let Some(line) = process.next_line().await.unwrap() {
        answer.push(String::from_utf8(line).unwrap());
    }
    assert_eq!(process.wait().await.code, Some(0), "{}", process.stderr_tail());
    answer.join(" ")
}

#[tokio::test]
async fn nothing_of_the_host_is_visible_but_its_programs() {
    assert_eq!(answer("ls / | grep -v ^lib").await, "bin cfg dev etc home opt proc sbin sock tmp usr workspace");
    assert_eq!(
        answer("ls -A /home /opt /tmp /workspace /cfg /sock").await.split_whitespace().collect::<Vec<_>>().join(" "),
        "/cfg: /home: job /opt: claude /sock: /tmp: /workspace:"
    );
    assert_eq!(answer("grep -c . /etc/passwd").await, "2");
}

#[tokio::test]
async fn only_the_job_s_own_places_can_be_written() {
    let script = "for place in /workspace /cfg /home/job /tmp /dev/shm / /home /opt /usr /etc /dev /sock /proc; do \
                  touch $place/file 2>/dev/null && echo $place; done; true";

    assert_eq!(answer(script).await, "/workspace /cfg /home/job /tmp /dev/shm");
}

#[tokio::test]
async fn the_kernel_s_settings_cannot_be_written_even_under_a_root_worker() {
    assert_eq!(answer("find /proc -type f -writable -not -path '/proc/[0-9]*' 2>/dev/null; true").await, "");
    assert_eq!(answer("test -w /proc/sys/kernel/core_pattern; echo $?; test -w /proc/self/oom_score_adj; echo $?").await, "1 1");
}

#[tokio::test]
async fn no_further_namespace_can_be_made() {
    assert_eq!(answer("unshare --user true 2>/dev/null; echo $?").await, "1");
}

#[tokio::test]
async fn it_is_an_ordinary_user_without_rights_network_or_neighbours() {
    assert_eq!(answer("id -u; id -g; id -un; hostname").await, "1000 1000 job job");
    assert_eq!(
        answer("grep -E '^Cap(Prm|Eff|Bnd)|^NoNewPrivs' /proc/self/status | cut -f2").await,
        "0000000000000000 0000000000000000 0000000000000000 1"
    );
    assert_eq!(answer("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '").await, "lo");
    // bwrap's own init is the first.
    assert_eq!(answer("echo $$").await, "2");
}

#[tokio::test]
async fn a_machine_without_bwrap_is_told_so() {
    let room = Room::new();

    let error = Sandbox::probe(Path::new("/nowhere/bwrap"), &room.path("etc"), Path::new(WORKER)).await.unwrap_err();

    assert!(matches!(error, SandboxError::Missing(_)));
}

#[tokio::test]
async fn a_refused_namespace_is_named() {
    let room = Room::new();
    // A bwrap on a system that refuses network namespaces.
    let bwrap = room.path("bwrap");
    std::fs::write(
        &bwrap,
        "#!/bin/sh\nfor word; do [ \"$word\" = --unshare-net ] && { echo 'bwrap: no net for you' >&2; exit 1; }; done; exit 0\n",
    )
    .unwrap();
    std::fs::set_permissions(&bwrap, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    let error = Sandbox::probe(&bwrap, &room.path("etc"), Path::new(WORKER)).await.unwrap_err();

    let refusal = "the system refuses bwrap these namespaces: net; it said: bwrap: no net for you";
    assert!(error.to_string().starts_with(refusal), "{error}");
}
