//! Faults that are the CLI's own. Those that end it do not return; the others leave something behind and
//! let it go on.

use std::{
    io::{self, BufRead as _, BufReader},
    os::fd::AsFd as _,
    process::{self, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::json;

use crate::model::{CliFault, ModelEvent, Pace, Reply, Script, Step, Usage, events};

use super::{Cli, RETRY_DELAY, ledger, signals, sleep_forever, voice};

/// More would be a fork bomb, not a test.
const MAX_CHILDREN: u8 = 64;

/// A child: deaf to SIGTERM from before it says `ready`, and noted in the ledger.
const CHILD: &str = r#"trap "" TERM; [ -z "$1" ] || echo "child $$" >> "$1"; echo ready; exec sleep 1000"#;

/// A child that keeps the CLI's own stdout and stderr open, so their reader sees no end while it lives. The first
/// is its descriptor 4.
const CLINGING_CHILD: &str = r#"trap "" TERM; [ -z "$1" ] || echo "child $$" >> "$1"; echo ready; exec sleep 1000 >&4"#;

static LINGERS: AtomicBool = AtomicBool::new(false);

/// Whether the end of the input is not to end this process.
pub(super) fn lingers() -> bool {
    LINGERS.load(Ordering::SeqCst)
}

impl Cli {
    pub(super) fn suffer(&mut self, fault: &CliFault) {
        match fault {
            CliFault::Exit(code) => ledger::end(*code),
            CliFault::Crash => {
                self.stream_part(&Reply::text("partial answer", Pace::default()), 2);
                process::abort()
            }
            CliFault::Garbage => self.babble(),
            CliFault::LongLine(bytes) => self.say_long_line(*bytes),
            CliFault::Hang => sleep_forever(),
            CliFault::IgnoreTerm => signals::ignore_term(),
            CliFault::Linger => LINGERS.store(true, Ordering::SeqCst),
            CliFault::Children(count) => (0..(*count).min(MAX_CHILDREN)).for_each(start_child),
            CliFault::NoResult => {
                let reply = Reply::text("an answer without a result", Pace::default());
                for event in events(&reply) {
                    self.voice.stream(&reply, event, &self.options.model, Usage::default(), "");
                }
                ledger::end(0)
            }
            CliFault::Withdraw => {
                self.withdraw(&Reply::text("first thoughts", Pace::default()), usize::MAX);
                self.say_retry(1, None, RETRY_DELAY);
            }
            CliFault::Stderr(text) => voice::complain(text),
            // It happens once the turn is over.
            CliFault::Transcript(_) => {}
            CliFault::Unknown => self.speak_future(),
        }
    }

    /// Do what `script` wants done to the transcript, wherever in it that stands.
    pub(super) fn break_transcript(&self, script: &Script) {
        for step in script.steps.iter().filter(|_| self.may_fail) {
            if let Step::Cli(CliFault::Transcript(fault)) = step {
                self.transcript.suffer(*fault);
            }
        }
    }

    /// Stream the first deltas of `reply`, then take it all back.
    pub(super) fn withdraw(&mut self, reply: &Reply, deltas: usize) {
        self.stream_part(reply, deltas);
        let Some(block) = reply.blocks.first() else { return };
        let abandoned = format!(r#","abandoned_blocks":{{"api_message_id":"{}","from_block_index":0}}"#, reply.id);
        self.voice.stream(reply, ModelEvent::BlockStop(0, block), &self.options.model, Usage::default(), "");
        self.voice.stream(reply, ModelEvent::MessageStop, &self.options.model, Usage::default(), &abandoned);
    }

    /// Stream the beginning of `reply`, up to `deltas` deltas.
    fn stream_part(&mut self, reply: &Reply, deltas: usize) {
        let beginning = events(reply).take_while(|event| !matches!(event, ModelEvent::BlockStop(..)));
        for event in beginning.take(deltas.saturating_add(2)) {
            self.voice.stream(reply, event, &self.options.model, Usage::default(), "");
        }
    }

    fn babble(&mut self) {
        let lines: [&[u8]; 7] = [
            b"this is not JSON\n",
            b"{\"type\":\"stream_event\",\"event\":{\"type\":\n",
            b"\xff\xfe\x00\n",
            b"\n",
            b"[]\n",
            b"{\"type\":5}\n",
            b"{\"type\":\"assistant\",\"message\":{\"content\":[{\"type\":\"text\",\"text\":\"\\ud800\"}]}}\n",
        ];
        for line in lines {
            self.voice.raw(line);
        }
    }

    /// A tool result of `bytes`: the kind of line that grows without a bound.
    fn say_long_line(&mut self, bytes: usize) {
        let frame = r#"{"type":"user","message":{"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_long","content":""#;
        let end = "\"}]},\"parent_tool_use_id\":null}\n";
        let filling = bytes.saturating_sub(frame.len() + end.len());
        self.voice.raw(format!("{frame}{}{end}", "x".repeat(filling)).as_bytes());
    }

    fn speak_future(&mut self) {
        self.voice.say(json!({"type": "hologram", "frames": [{"depth": 3}]}));
        self.voice.say(json!({"type": "system", "subtype": "tea_ready", "minutes": 4.5}));
        self.voice.say(json!({"type": "stream_event", "event": {"type": "message_pause"}, "parent_tool_use_id": null}));
        self.voice.raw(b"{\"type\":\"keep_alive\"}\n");
        self.voice.is_from_the_future = true;
    }
}

/// Start one of three kinds of child that outlives the CLI: in its process group, in a session of its own,
/// or in a session of its own and nobody's child, holding on to the CLI's output.
fn start_child(number: u8) {
    let ledger = ledger::path().map(|path| path.as_os_str().to_owned()).unwrap_or_default();
    let mut command = match number % 3 {
        0 => Command::new("sh"),
        1 => {
            let mut command = Command::new("setsid");
            command.arg("sh");
            command
        }
        _ => {
            let mut command = Command::new("sh");
            command.args(["-c", r#"exec 4<&0; (setsid sh -c "$0" "$@" &)"#, CLINGING_CHILD]);
            command
        }
    };
    if number % 3 != 2 {
        command.args(["-c", CHILD]);
    }
    let stdin = match number % 3 {
        // Not by its way through `/proc`, which leads to a pipe and not to a socket.
        2 => io::stdout().as_fd().try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from),
        _ => Stdio::null(),
    };
    command.arg("sh").arg(ledger).stdin(stdin).stdout(Stdio::piped());
    let ready = command.spawn().and_then(|mut child| {
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        // Where the child's child does the work, it is done; the others are left alone on purpose.
        child.try_wait()?;
        Ok(line == "ready\n")
    });
    if !ready.unwrap_or(false) {
        voice::complain("a child could not be started");
    }
}
