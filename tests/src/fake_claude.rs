//! A CLI that plays scripts (`model::Script`) at a chosen pace and breaks in chosen ways, for load and
//! fault tests. It speaks the recorded stream-json and keeps a transcript; beside that no model, no files, no
//! network. Tools are never run, their results are made up.

mod damage;
mod fault;
mod inbox;
mod ledger;
mod lines;
mod options;
mod outcome;
mod past;
mod projects;
mod signals;
mod spent;
mod transcript;
mod turn;
mod voice;

use std::{
    collections::VecDeque,
    process, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::model::{Script, Step};

use inbox::{Inbox, Input, Message};
use options::Options;
use past::Past;
use spent::Spent;
use transcript::{Refusal, Transcript};
use voice::Voice;

/// The version it claims; that of the recordings.
pub const VERSION: &str = "2.1.330";

/// How long the real CLI waits before it asks the API for the first time again.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Be the CLI until the end of this process.
pub fn run() -> ! {
    let options = Options::of_process();
    if options.asks_version {
        voice::print(&format!("{VERSION} (Claude Code)\n"));
        process::exit(0);
    }
    let (transcript, past) = Transcript::open(&options).unwrap_or_else(|refusal| refuse(&options, &refusal));
    signals::watch(transcript.clone());
    let mut cli = Cli::new(options, transcript, past);
    if let Some(script) = cli.options.at_start.clone() {
        cli.break_as(&script);
    }
    cli.serve()
}

struct Cli {
    options: Options,
    voice: Voice,
    inbox: Inbox,
    /// Messages that came while another one was answered.
    waiting: VecDeque<Message>,
    /// All that a person said in this conversation, oldest first.
    said: Vec<String>,
    transcript: Transcript,
    /// What the session used, in this process and before.
    spent: Spent,
    /// Whether the API has seen the beginning of this conversation.
    has_past: bool,
    turns: u32,
    has_failed: bool,
    may_fail: bool,
}

impl Cli {
    fn new(options: Options, transcript: Transcript, past: Past) -> Self {
        Self {
            voice: Voice::new(&options.session),
            inbox: Inbox::of_stdin(),
            options,
            waiting: VecDeque::new(),
            has_past: past.leaf.is_some(),
            said: past.said,
            transcript,
            spent: past.spent,
            turns: 0,
            has_failed: false,
            may_fail: true,
        }
    }

    fn serve(mut self) -> ! {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                self.answer(&message);
                continue;
            }
            match self.inbox.next() {
                Input::Message(message) => {
                    self.state("running");
                    self.queue(message);
                }
                Input::Control { id, request } => self.control(&id, &request, false),
                Input::End => self.leave(),
                Input::Broken => {
                    voice::complain("Error parsing streaming input line");
                    ledger::end(1)
                }
            }
        }
    }

    /// Take up what came while a turn runs. `true` when the turn is to stop.
    fn hear(&mut self, input: Input) -> bool {
        match input {
            Input::Message(message) => self.queue(message),
            Input::Control { id, request } => {
                self.control(&id, &request, true);
                return request["subtype"] == "interrupt";
            }
            // The real CLI finishes its turn first.
            Input::End => {}
            Input::Broken => ledger::end(1),
        }
        false
    }

    fn queue(&mut self, message: Message) {
        self.transcript.enqueue(&message);
        self.lifecycle(&message, "queued");
        self.waiting.push_back(message);
    }

    /// Wait for `time`, or for good. `true` when the turn is to stop.
    fn wait(&mut self, time: Option<Duration>) -> bool {
        let deadline = time.filter(|time| !time.is_zero()).map(|time| Instant::now() + time);
        loop {
            let left = deadline.map_or(time, |deadline| Some(deadline.saturating_duration_since(Instant::now())));
            let Some(input) = self.inbox.next_within(left) else { return false };
            if self.hear(input) {
                return true;
            }
        }
    }

    fn control(&mut self, id: &str, request: &Value, is_running: bool) {
        let subtype = request["subtype"].as_str().unwrap_or_default();
        if subtype == "initialize"
            && let Some(script) = options::script_of(request)
        {
            self.break_as(&script);
        }
        let answer = match subtype {
            "initialize" => json!({
                "commands": [], "agents": [], "models": [], "output_style": "default", "pid": process::id(),
                "claude_code_version": VERSION, "current_permission_mode": self.options.permission_mode,
            }),
            "interrupt" => self.cancel_waiting(request["cancel_queued"] == true),
            "set_model" => {
                if let Some(model) = request["model"].as_str() {
                    model.clone_into(&mut self.options.model);
                }
                json!({"model": self.options.model})
            }
            "set_permission_mode" => json!({"mode": request["mode"]}),
            "claim_session" => json!({"status": "ok", "cwd": request["cwd"], "session_id": self.options.session}),
            "end_session" => {
                self.voice.respond(&json!({"subtype": "success", "request_id": id}));
                self.transcript.close();
                ledger::end(if is_running { 0 } else { self.exit_code() })
            }
            other => {
                let error = format!("Unsupported control request subtype: {other}");
                self.voice.respond(&json!({
                    "subtype": "error", "request_id": id, "error": error, "error_code": "unsupported_request",
                }));
                return;
            }
        };
        self.voice.respond(&json!({"subtype": "success", "request_id": id, "response": answer}));
    }

    fn cancel_waiting(&mut self, cancels: bool) -> Value {
        if !cancels {
            return json!({"still_queued": self.waiting.iter().filter_map(|message| message.uuid.as_deref()).collect::<Vec<_>>()});
        }
        let cancelled = std::mem::take(&mut self.waiting);
        for message in &cancelled {
            self.lifecycle(message, "cancelled");
        }
        json!({"still_queued": [], "cancelled": cancelled.iter().filter_map(|message| message.uuid.as_deref()).collect::<Vec<_>>()})
    }

    fn lifecycle(&mut self, message: &Message, state: &str) {
        if let Some(uuid) = &message.uuid {
            self.voice.say(json!({"type": "command_lifecycle", "command_uuid": uuid, "state": state}));
        }
    }

    fn state(&mut self, state: &str) {
        if self.options.tells_state {
            self.voice.say(json!({"type": "system", "subtype": "session_state_changed", "state": state}));
        }
    }

    /// Do the faults of a script that is not a prompt: one given at the start or in the system prompt.
    fn break_as(&mut self, script: &Script) {
        self.enter_ledger(script);
        for step in script.steps.iter().filter(|_| self.may_fail).cloned().collect::<Vec<_>>() {
            if let Step::Cli(fault) = step {
                self.suffer(&fault);
            }
        }
    }

    /// Note this run in the script's ledger and decide from its number whether faults happen.
    fn enter_ledger(&mut self, script: &Script) {
        let Some(path) = &script.settings.ledger else { return };
        let run = ledger::enter(path, &self.options.session);
        self.may_fail = script.settings.times.is_none_or(|times| run <= times);
    }

    fn exit_code(&self) -> u8 {
        u8::from(self.has_failed)
    }

    fn leave(&self) -> ! {
        self.transcript.close();
        if fault::lingers() {
            sleep_forever();
        }
        ledger::end(self.exit_code())
    }
}

/// Say why the session cannot begin and end.
fn refuse(options: &Options, refusal: &Refusal) -> ! {
    let session = &options.session;
    match refusal {
        Refusal::IsInUse => voice::complain(&format!("Error: Session ID {session} is already in use.")),
        Refusal::IsUnknown => {
            let reason = format!("No conversation found with session ID: {session}");
            voice::complain(&reason);
            Voice::new(session).say(outcome::never_begun(&reason));
        }
    }
    ledger::end(1)
}

/// What a CLI does that no longer reacts.
fn sleep_forever() -> ! {
    loop {
        thread::park();
    }
}
