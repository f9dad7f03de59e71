//! One user message answered: the lines of a turn in the order the real CLI prints them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::model::{Block, ModelEvent, Pace, Reply, Script, Step, StopReason, ToolResult, Usage, clock, events, said_in};

use super::{
    Cli, RETRY_DELAY,
    inbox::Message,
    outcome::{Failure, Outcome, Tally},
};

/// What the prompt of a call counts for when the script does not say.
const PROMPT_TOKENS: u64 = 12_000;

/// How often the real CLI lets a message go on that was cut off.
const MAX_CUTS: u32 = 3;

/// A turn under way.
struct Turn<'a> {
    script: Option<&'a Script>,
    prompt: &'a str,
    /// The script's step that is next.
    next: usize,
    calls: u32,
    /// How often its messages were cut off.
    cuts: u32,
    used: Usage,
    /// What the tools of the last call answered.
    results: Vec<ToolResult>,
}

impl Cli {
    pub(super) fn answer(&mut self, message: &Message) {
        let began = Instant::now();
        let script = Script::parse(&message.text);
        if let Some(script) = &script {
            self.enter_ledger(script);
        }
        self.lifecycle(message, "started");
        self.announce();
        let id = message.uuid.clone().unwrap_or_else(|| self.voice.fresh_uuid());
        self.transcript.take_up(message, &id);
        self.said.extend(said_in(&message.content));
        let user_lines = self.voice.user_lines;
        let mut turn = Turn {
            script: script.as_ref(),
            prompt: &message.text,
            next: 0,
            calls: 0,
            cuts: 0,
            used: Usage::default(),
            results: Vec::new(),
        };
        let outcome = if message.asks { self.play(&mut turn) } else { Outcome::Silent };
        self.spent.add(&self.options.model, turn.used);
        self.transcript.note_spent(&self.spent);
        if let Some(script) = &script {
            self.break_transcript(script);
        }
        let turns = if message.asks { 1 + self.voice.user_lines - user_lines } else { 0 };
        let tally = Tally { turns, turn: turn.used, session: &self.spent, index: self.turns, duration: began.elapsed() };
        self.voice.say(outcome.line(&self.options.model, &tally));
        self.turns += 1;
        self.has_failed = outcome.is_error();
        self.lifecycle(message, if outcome.is_aborted() { "cancelled" } else { "completed" });
        if self.waiting.is_empty() {
            self.state("idle");
        }
    }

    fn play(&mut self, turn: &mut Turn<'_>) -> Outcome {
        loop {
            let reply = match self.call(turn) {
                Ok(reply) => reply,
                Err(outcome) => return outcome,
            };
            let goes_on = match reply.stop {
                StopReason::EndTurn => Err(Outcome::of(&reply)),
                StopReason::ToolUse => self.run_tools(&reply, turn),
                StopReason::MaxTokens => self.go_on(turn),
                StopReason::Refusal => Err(self.ask_again(turn)),
            };
            if let Err(outcome) = goes_on {
                return outcome;
            }
        }
    }

    /// One call of the model: its message, once it has been said, or the end of the turn.
    fn call(&mut self, turn: &mut Turn<'_>) -> Result<Reply, Outcome> {
        self.begin_call(turn);
        let step = self.next_step(turn);
        let pace = turn.pace();
        let mut reply = match &step {
            Some(step) => Reply::to(step, &self.said, pace),
            None if turn.script.is_none() => Reply::text(&format!("echo: {}", turn.prompt), pace),
            None if turn.results.is_empty() => Reply::text("done", pace),
            None => Reply::to_results(&turn.results, pace),
        };
        let usage = self.usage_of(&reply, turn);
        match step {
            Some(Step::Hang | Step::Gated(_)) => return Err(self.abort_silence()),
            Some(Step::HangMid) => self.stream(&Reply::text("partial answer", pace), usage, Some(2))?,
            Some(Step::StreamError(error, times)) if self.may_fail => {
                self.withdraw(&Reply::text("partial answer", pace), 2);
                if times.is_none() {
                    return Err(self.fail(Failure::of_api(&error)));
                }
                // The real CLI asks once more, without a stream.
                for block in &reply.blocks {
                    self.say_block(&reply, &block.complete(), usage, Some(reply.stop), false);
                }
            }
            step => {
                if let Some(Step::Fail(..) | Step::Drop(_)) = step
                    && self.may_fail
                {
                    let asked = turn.script.and_then(|script| script.settings.retry_after).map(Duration::from_secs);
                    self.retry(step.as_ref(), pace, asked.unwrap_or(RETRY_DELAY))?;
                }
                if reply.tells_time {
                    self.stream_time(&mut reply, usage)?;
                } else {
                    self.stream(&reply, usage, None)?;
                }
            }
        }
        turn.used += usage;
        Ok(reply)
    }

    fn begin_call(&mut self, turn: &mut Turn<'_>) {
        self.voice.say(json!({"type": "system", "subtype": "status", "status": "requesting"}));
        turn.calls += 1;
    }

    fn usage_of(&self, reply: &Reply, turn: &Turn<'_>) -> Usage {
        let prompt = turn.script.and_then(|script| script.settings.prompt_tokens).unwrap_or(PROMPT_TOKENS);
        let cached = if self.has_past || self.turns + turn.calls > 1 { PROMPT_TOKENS } else { 0 };
        Usage { output: reply.output_tokens(), ..Usage::cached(prompt, cached) }
    }

    /// A message was cut off: let the model go on, unless that was done too often.
    fn go_on(&mut self, turn: &mut Turn<'_>) -> Result<(), Outcome> {
        if turn.cuts == MAX_CUTS {
            return Err(self.fail(Failure::of_length()));
        }
        turn.cuts += 1;
        // What is cut off at the script's end is cut off again.
        if turn.script.is_some_and(|script| script.steps.len() == turn.next) {
            turn.next -= 1;
        }
        self.say_user("Output token limit hit. Resume directly.");
        Ok(())
    }

    /// The model must not answer: the real CLI asks once more, and no refusal is ever taken back.
    fn ask_again(&mut self, turn: &mut Turn<'_>) -> Outcome {
        self.voice.say(json!({
            "type": "system", "subtype": "informational", "content": "safeguards stopped the response above", "level": "notice",
        }));
        self.say_user("Your response above was stopped by a safety classifier.");
        self.begin_call(turn);
        let reply = Reply::to(&Step::Refuse, &self.said, turn.pace());
        let usage = self.usage_of(&reply, turn);
        let model = self.options.model.clone();
        self.voice.stream(&reply, ModelEvent::MessageStart, &model, usage, r#","ttft_ms":1"#);
        self.voice.say(json!({"type": "system", "subtype": "model_refusal_no_fallback", "original_model": model, "content": ""}));
        let outcome = self.fail(Failure::of_refusal());
        self.voice.stream(&reply, ModelEvent::MessageDelta, &model, usage, "");
        self.voice.stream(&reply, ModelEvent::MessageStop, &model, usage, "");
        turn.used += usage;
        outcome
    }

    /// The step of the next call; the CLI's own faults before it happen on the way. `None` when no step is
    /// left for it.
    fn next_step(&mut self, turn: &mut Turn<'_>) -> Option<Step> {
        let script = turn.script?;
        while let Some(step) = script.steps.get(turn.next) {
            if let Step::Cli(fault) = step {
                turn.next += 1;
                if self.may_fail {
                    self.suffer(fault);
                }
                continue;
            }
            if script.is_sequence || !matches!(step, Step::Loop(_)) {
                turn.next += 1;
            }
            return Some(step.clone());
        }
        None
    }

    /// Retry as the real CLI does, until the fault is over or its patience is, and tell that it was `asked` to wait for
    /// so long. Nothing is to be learned from its really doing so.
    fn retry(&mut self, step: Option<&Step>, pace: Pace, asked: Duration) -> Result<(), Outcome> {
        let (error, times) = match step {
            Some(Step::Fail(error, times)) => (Some(error), *times),
            Some(Step::Drop(times)) => (None, *times),
            _ => return Ok(()),
        };
        let patience = match error.map(|error| error.status) {
            Some(400 | 403 | 404 | 413) => 0,
            Some(529) => self.options.max_retries.min(2),
            _ => self.options.max_retries,
        };
        let times = times.unwrap_or(u32::MAX);
        for attempt in 1..=times.min(patience) {
            self.say_retry(attempt, error, asked);
            if self.wait(Some(pace.delay)) {
                return Err(self.abort_before_text());
            }
        }
        if times <= patience {
            return Ok(());
        }
        Err(self.fail(error.map_or_else(Failure::of_connection, Failure::of_api)))
    }

    /// Stream `reply`; before its delta number `stall` nothing comes any more.
    fn stream(&mut self, reply: &Reply, usage: Usage, stall: Option<usize>) -> Result<(), Outcome> {
        let mut deltas = 0;
        let mut deltas_before_block = 0;
        for event in events(reply) {
            let extra = if event == ModelEvent::MessageStart { r#","ttft_ms":1"# } else { "" };
            match event {
                ModelEvent::BlockStart(..) => deltas_before_block = deltas,
                ModelEvent::Delta(index, block, _) => {
                    let pause = if stall == Some(deltas) { None } else { Some(reply.delay) };
                    if self.wait(pause) {
                        return Err(self.abort(reply, (index, block), deltas - deltas_before_block, usage));
                    }
                    deltas += 1;
                    if matches!(block, Block::Thinking(_)) {
                        let tokens = deltas - deltas_before_block;
                        self.voice.say(json!({
                            "type": "system", "subtype": "thinking_tokens", "estimated_tokens": tokens, "estimated_tokens_delta": 1,
                        }));
                    }
                }
                ModelEvent::BlockStop(_, block) => self.say_block(reply, &block.complete(), usage, None, false),
                ModelEvent::MessageStart | ModelEvent::Signature(_) | ModelEvent::MessageDelta | ModelEvent::MessageStop => {}
            }
            self.voice.stream(reply, event, &self.options.model, usage, extra);
        }
        Ok(())
    }

    /// Stream the time, as often as `reply` has pieces, which become what was said.
    fn stream_time(&mut self, reply: &mut Reply, usage: Usage) -> Result<(), Outcome> {
        let count = reply.blocks.iter().map(|block| block.pieces().len()).sum();
        let (model, nothing) = (self.options.model.clone(), Block::Text(Vec::new()));
        let mut said = Vec::new();
        self.voice.stream(reply, ModelEvent::MessageStart, &model, usage, r#","ttft_ms":1"#);
        self.voice.stream(reply, ModelEvent::BlockStart(0, &nothing), &model, usage, "");
        while said.len() < count {
            if self.wait(Some(reply.delay)) {
                return Err(self.abort(reply, (0, &Block::Text(said.clone())), said.len(), usage));
            }
            said.push(clock());
            self.voice.stream(reply, ModelEvent::Delta(0, &nothing, &said[said.len() - 1]), &model, usage, "");
        }
        reply.blocks = vec![Block::Text(said)];
        self.say_block(reply, &reply.blocks[0].complete(), usage, None, false);
        self.voice.stream(reply, ModelEvent::BlockStop(0, &nothing), &model, usage, "");
        self.voice.stream(reply, ModelEvent::MessageDelta, &model, usage, "");
        self.voice.stream(reply, ModelEvent::MessageStop, &model, usage, "");
        Ok(())
    }

    fn run_tools(&mut self, reply: &Reply, turn: &mut Turn<'_>) -> Result<(), Outcome> {
        turn.results.clear();
        for block in &reply.blocks {
            let Block::ToolUse { id, name, input, .. } = block else { continue };
            if self.wait(Some(turn.pace().delay + sleep_of(input))) {
                return Err(self.abort_tool(id));
            }
            if name == "StructuredOutput" {
                self.say_tool_result(id, "Structured output provided successfully", false, None);
                return Err(Outcome::structured(input));
            }
            let (text, details) = match input["command"].as_str() {
                Some(command) => {
                    let output = format!("ran {command}");
                    let details = json!({
                        "stdout": output, "stderr": "", "interrupted": false, "isImage": false, "noOutputExpected": false,
                    });
                    (output, Some(details))
                }
                None => (format!("used {name}"), None),
            };
            self.say_tool_result(id, &text, false, details);
            turn.results.push(ToolResult { text, is_error: false });
        }
        match self.options.max_turns {
            Some(limit) if turn.calls >= limit => Err(Outcome::MaxTurns(limit)),
            _ => Ok(()),
        }
    }

    /// The host interrupts in the middle of a block of which `said` deltas are out.
    fn abort(&mut self, reply: &Reply, (index, block): (usize, &Block), said: usize, usage: Usage) -> Outcome {
        if said > 0 {
            self.say_block(reply, &block.spoken(said), usage, None, true);
        }
        let outcome = self.abort_before_text();
        let abandoned = format!(r#","abandoned_blocks":{{"api_message_id":"{}","from_block_index":{}}}"#, reply.id, index + 1);
        self.voice.stream(reply, ModelEvent::BlockStop(index, block), &self.options.model, usage, "");
        self.voice.say(json!({
            "type": "stream_event", "parent_tool_use_id": null, "api_message_id": reply.id,
            "event": {"type": "message_delta", "delta": {"stop_reason": null, "stop_sequence": null}, "usage": usage.at_end()},
        }));
        self.voice.stream(reply, ModelEvent::MessageStop, &self.options.model, usage, &abandoned);
        outcome
    }

    fn abort_silence(&mut self) -> Outcome {
        while !self.wait(None) {}
        self.abort_before_text()
    }

    fn abort_before_text(&mut self) -> Outcome {
        self.say_user("[Request interrupted by user]");
        Outcome::Aborted { in_tool: false }
    }

    fn abort_tool(&mut self, id: &str) -> Outcome {
        let text = "The user doesn't want to proceed with this tool use.";
        self.say_tool_result(id, text, true, Some(json!("User rejected tool use")));
        self.say_user("[Request interrupted by user for tool use]");
        Outcome::Aborted { in_tool: true }
    }

    fn fail(&mut self, failure: Failure) -> Outcome {
        self.say_failure(&failure);
        Outcome::Failed(failure)
    }
}

impl Turn<'_> {
    fn pace(&self) -> Pace {
        self.script.map_or(Pace { chunk: Some(16), ..Pace::default() }, |script| script.settings.pace)
    }
}

/// How long a Bash call `sleep SECS` takes. No other call takes any time.
fn sleep_of(input: &Value) -> Duration {
    let secs = input["command"].as_str().and_then(|command| command.strip_prefix("sleep ")?.parse().ok());
    secs.and_then(|secs| Duration::try_from_secs_f64(secs).ok()).unwrap_or_default()
}
