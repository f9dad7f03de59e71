//! One attempt of one job, from its folder to its outcome. Whatever happens in here, the process and all
//! it started are gone when `run` answers.

use std::{sync::Arc, time::Duration};

use shared::{
    consumption::Consumption,
    event::EventBody,
    failpoint,
    job::{JobResult, NanoUsd, RetryAfterOutput},
    lease::{Lease, Outcome, Report, SpoolError},
    trace::Span,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    claude::{
        command::{self, Permits, Thread},
        control::{self, Question},
        failure::{Code, Failure, Retry},
        lines::LineError,
        process::{Entitlement, Exit, LINE_LIMIT, Process, SpawnError, WriteError},
        relay::{Listen, Relay},
        stream::{Parser, Step, TurnResult},
    },
    conversation::{self, Conversation},
    job_dir::JobDir,
    mcp::Bridge,
    runner::retry_delay,
    tools,
    workshop::{self, Workshop},
};

/// How long each polite word to a process that is to end may take to work.
const GRACE: Duration = Duration::from_secs(2);
/// How long the CLI may take to read its input.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Why an attempt is to end before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Somebody asked for it.
    Cancel,
    /// This worker is stopping.
    Drain,
    /// This worker is stopping, now.
    Kill,
    /// This worker is not entitled to run anything any more.
    Lost,
}

/// What an attempt is told from outside, and what it tells.
pub struct Reins {
    /// Set when the attempt is to end.
    pub stop: watch::Receiver<Option<Stop>>,
    /// Given the right to renew the process once there is one.
    pub started: Box<dyn FnOnce(Entitlement) + Send>,
    /// Told what the attempt has used so far, whenever that changes.
    pub used: watch::Sender<Consumption>,
    /// What entitled this worker last to run anything.
    pub entitled_since: watch::Receiver<std::time::Instant>,
}

/// How an attempt ended. Without an outcome nothing may be written: the job is somebody else's.
pub struct Ending {
    /// What becomes of the job.
    pub outcome: Option<Outcome>,
    /// What is known of the attempt.
    pub report: Report,
}

/// Run the attempt that `lease` is for, and tell its stages as parts of `told`.
pub async fn run(workshop: &Workshop, lease: &Lease, reins: Reins, told: &Span) -> Ending {
    let claimed = Instant::now();
    let Reins { stop, started, used, entitled_since } = reins;
    let config = &workshop.config;
    let longest = lease.job().spec.timeout_secs.map_or(config.timeout, |secs| config.timeout.min(Duration::from_secs(secs.into())));
    let mut cut = Cut { stop, fenced: lease.fenced().clone(), deadline: claimed + longest };
    let begun = tokio::select! {
        biased;
        end = cut.falls() => Err(unbegun(end, lease)),
        begun = Attempt::start(workshop, lease, used, told, claimed, entitled_since) => begun.map_err(Some),
    };
    let mut attempt = match begun {
        Ok(attempt) => attempt,
        Err(outcome) => return Ending { outcome, report: Report::default() },
    };
    started(attempt.process.entitlement());

    let end = attempt.converse(&mut cut, config.idle_timeout).await;
    attempt.finish(end, &mut cut).await
}

/// What ends an attempt from outside, whatever it is at.
struct Cut {
    stop: watch::Receiver<Option<Stop>>,
    fenced: CancellationToken,
    deadline: Instant,
}

impl Cut {
    /// Wait for it. Answers at once when it fell before.
    async fn falls(&mut self) -> End {
        tokio::select! {
            biased;
            stop = self.stop.wait_for(Option::is_some) => End::Stopped(stop.ok().and_then(|stop| *stop).unwrap_or(Stop::Kill)),
            () = self.fenced.cancelled() => End::Stopped(Stop::Lost),
            () = sleep_until(self.deadline) => End::Failed(Failure::new(Code::TimedOut)),
        }
    }
}

/// What becomes of a job whose attempt ended before there was a process.
fn unbegun(end: End, lease: &Lease) -> Option<Outcome> {
    match end {
        End::Stopped(Stop::Lost) => None,
        End::Stopped(Stop::Cancel) => Some(Outcome::Cancelled),
        End::Failed(failure) => Some(outcome_of(&failure, lease)),
        End::Stopped(Stop::Drain | Stop::Kill) | End::Idle | End::Closed => Some(Outcome::HandBack),
    }
}

/// Why the conversation with the process is over.
enum End {
    /// Nothing more will come.
    Idle,
    /// It closed its output.
    Closed,
    /// It has to be ended.
    Stopped(Stop),
    /// It has to be ended, and this is why the attempt failed.
    Failed(Failure),
}

/// A process at work, with all that has to outlive it.
struct Attempt<'a> {
    lease: &'a Lease,
    told: &'a Span,
    /// What it is at.
    stage: Span,
    permits: Permits,
    mcp: Bridge,
    process: Process,
    parser: Parser,
    claimed: Instant,
    result: Option<TurnResult>,
    report: Report,
    used: watch::Sender<Consumption>,
    has_spoken: bool,
    is_streamed: bool,
    conversation: Option<Conversation>,
    /// What the CLI knows the message by.
    message: Uuid,
    cli_version: Option<String>,
    /// After the process: its folder and its way to the API.
    _relay: Relay,
    dir: Arc<JobDir>,
}

impl<'a> Attempt<'a> {
    async fn start(
        workshop: &Workshop,
        lease: &'a Lease,
        used: watch::Sender<Consumption>,
        told: &'a Span,
        claimed: Instant,
        entitled_since: watch::Receiver<std::time::Instant>,
    ) -> Result<Self, Outcome> {
        let preparing = told.part("prepare");
        let spec = &lease.job().spec;
        if lease.job().budget_left() == Some(NanoUsd(0)) {
            return Err(Outcome::Failed(Failure::new(Code::BudgetExceeded).error));
        }
        match lease.is_day_spent().await {
            Ok(false) => {}
            Ok(true) => return Err(Outcome::Failed(Failure::of_day().error)),
            // Its end would say so anyway: an outage ends no job.
            Err(error) => tracing::debug!(job.id = %lease.job().id, %error, "Could not see what is left of the day's budget"),
        }
        let session = lease.session().await.map_err(|error| conversation::unread(lease, &error))?;
        let permits = Permits {
            tools: tools::of_job(workshop, spec, session.as_ref()).await?,
            mcp: tools::mcp_of_job(workshop, spec, session.as_ref())?,
        };
        let internal = |error: std::io::Error| {
            tracing::error!(job.id = %lease.job().id, %error, "Could not prepare job `{}`", lease.job().id);
            Outcome::Failed(Failure::new(Code::InternalError).error)
        };
        let dir = Arc::new(workshop.jobs.attempt().map_err(internal)?);
        let conversation = match session {
            Some(session) => Some(Conversation::open(lease, session, &dir, !permits.tools.is_empty()).await?),
            None => None,
        };
        let thread = conversation.as_ref().map_or(Thread::OneShot, Conversation::thread);
        let listen = match &workshop.sandbox {
            Some(_) => Listen::Socket(dir.sockets().join("api.sock")),
            None => Listen::Loopback,
        };
        let relay = Relay::start(listen, workshop.upstream.clone()).await.map_err(internal)?;
        let trace = told.context().or_else(|| lease.job().trace.clone());
        let surroundings = workshop::surroundings(workshop, &dir, workshop::way(&relay), trace);
        let command = command::build(spec, thread, &permits, lease.job().budget_left(), &surroundings);
        failpoint::pass("worker.before_cli");
        let launch = workshop::launch(workshop, command, &dir, *entitled_since.borrow());
        drop(preparing);
        let stage = told.part("start CLI");
        let process = Process::spawn(&launch, LINE_LIMIT, &workshop.metrics.living).map_err(|error| match error {
            // No fault of the job, and none that counts: if it is somebody else's by now, this changes nothing.
            SpawnError::NotEntitled => Outcome::HandBack,
            error => outcome_of(&unstartable(lease, &error), lease),
        })?;
        Ok(Self {
            lease,
            told,
            stage,
            mcp: workshop.config.mcp.bridge(&permits.mcp),
            permits,
            process,
            parser: Parser::new(),
            claimed,
            result: None,
            report: Report::default(),
            used,
            has_spoken: false,
            is_streamed: false,
            conversation,
            message: Uuid::new_v4(),
            cli_version: None,
            _relay: relay,
            dir,
        })
    }

    /// Say what the user says and follow the answer, until it is whole or something forbids to go on.
    async fn converse(&mut self, cut: &mut Cut, idle: Duration) -> End {
        let folders = [self.dir.workspace(), self.dir.config(), self.dir.home(), self.dir.tmp()];
        let outgrown = conversation::outgrown(folders, self.lease.workspace_bounds());
        // The CLI keeps what servers say at length.
        let can_write = !self.permits.tools.is_empty() || !self.permits.mcp.is_empty();
        tokio::select! {
            biased;
            end = cut.falls() => end,
            () = outgrown, if can_write => End::Failed(Failure::new(Code::WorkspaceTooLarge)),
            end = self.follow(idle) => end,
        }
    }

    async fn follow(&mut self, idle: Duration) -> End {
        // Of a process that does not listen, its last words say more than a closed pipe.
        let _ = self.say().await;
        loop {
            // A tool may be silent for as long as it runs.
            let patience = if self.parser.open_tool_calls() > 0 { None } else { Some(idle) };
            let line = tokio::select! {
                line = self.process.next_line() => line,
                answer = self.mcp.answer() => {
                    match self.process.write_line(answer.as_bytes(), WRITE_LIMIT).await {
                        // Of a process that is gone, the end is read next.
                        Ok(()) | Err(WriteError::Closed) => continue,
                        Err(_) => return End::Failed(Failure::new(Code::IdleTimeout)),
                    }
                }
                () = elapsed(patience) => return End::Failed(Failure::new(Code::IdleTimeout)),
            };
            match self.heed(line).await {
                Ok(true) => {}
                Ok(false) => return End::Closed,
                Err(end) => return end,
            }
        }
    }

    async fn say(&mut self) -> Result<(), WriteError> {
        let spec = &self.lease.job().spec;
        let servers: Vec<&str> = self.permits.mcp.iter().map(|grant| grant.server.as_str()).collect();
        let hello = control::initialize("initialize", spec, &self.permits.tools, &servers);
        self.process.write_line(hello.as_bytes(), WRITE_LIMIT).await?;
        let message = control::user_message(self.message, &spec.message);
        self.process.write_line(message.as_bytes(), WRITE_LIMIT).await
    }

    /// Take one line in. `false` after the last one.
    async fn heed(&mut self, line: Result<Option<Vec<u8>>, LineError>) -> Result<bool, End> {
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) | Err(LineError::Io(_)) => return Ok(false),
            Err(LineError::TooLong { .. }) => return Err(End::Failed(Failure::new(Code::CliLineTooLong))),
        };
        self.has_spoken = true;
        let mut is_idle = false;
        let steps = self.parser.feed(&line);
        for step in steps {
            is_idle |= step == Step::Idle;
            self.take(step).await?;
        }
        self.tell_use();
        if is_idle && self.result.is_some() { Err(End::Idle) } else { Ok(true) }
    }

    async fn take(&mut self, step: Step) -> Result<(), End> {
        if step.is_text() && self.report.first_token_ms.is_none() {
            self.report.first_token_ms = Some(self.elapsed_ms());
            self.stage = self.told.part("answer");
        }
        match step {
            Step::Event(body) => self.emit(&body).await?,
            Step::Initialized { model, version, .. } => {
                let is_first = self.cli_version.replace(version).is_none();
                self.report.model = Some(model);
                self.report.start_ms.get_or_insert(elapsed_ms(self.claimed));
                if is_first {
                    self.stage = self.told.part("first text");
                }
                if let Some(conversation) = self.conversation.as_ref().filter(|_| is_first) {
                    let session_id = conversation.session().id;
                    self.emit(&EventBody::SessionReady { session_id }).await?;
                }
            }
            Step::TurnEnded(turn) => self.add_result(*turn),
            Step::Asked(Question { request_id, mcp: Some(message), .. }) => self.mcp.ask(request_id, message),
            Step::Asked(question) => {
                // Nobody is there to be asked. A process that does not read the answer is ended by its silence.
                let _ = self.process.write_line(question.refuse().as_bytes(), GRACE).await;
            }
            Step::Retrying { attempt, status, .. } => {
                tracing::info!(job.id = %self.lease.job().id, attempt, status, "The CLI asks the API again for job `{}`", self.lease.job().id);
            }
            Step::Answered(answer) => {
                if let Err(refused) = answer.outcome {
                    tracing::warn!(job.id = %self.lease.job().id, request = answer.request_id, code = refused.code, "The CLI refused a request");
                }
            }
            Step::Unknown(kind) => tracing::debug!(job.id = %self.lease.job().id, kind, "The CLI printed a line of an unknown type"),
            Step::Idle => {}
        }
        Ok(())
    }

    async fn emit(&mut self, body: &EventBody) -> Result<(), End> {
        let lost = || End::Stopped(Stop::Lost);
        if !self.is_streamed && self.lease.job().spec.retry_after_output == RetryAfterOutput::Never {
            // Before the client can see it, or nobody could know that it did.
            self.lease
                .mark_streamed()
                .await
                .map_err(|error| if error.is_fenced() { lost() } else { End::Failed(Failure::new(Code::Interrupted)) })?;
        }
        self.is_streamed = true;
        self.lease.emit(body).map_err(|error| match error {
            SpoolError::Full => End::Failed(Failure::new(Code::OutputTooLarge)),
            SpoolError::Io(error) => {
                tracing::error!(job.id = %self.lease.job().id, %error, "Could not keep the events of job `{}`", self.lease.job().id);
                End::Failed(Failure::new(Code::InternalError))
            }
        })
    }

    fn elapsed_ms(&self) -> u64 {
        elapsed_ms(self.claimed)
    }

    /// Say what was used so far, if that changed: should this worker be lost, it is billed.
    fn tell_use(&mut self) {
        self.report.untold = self.parser.untold();
        let told = self.report.usage.unwrap_or_default();
        let is_news = |known: &Consumption| known.told != told || known.untold != self.report.untold;
        if is_news(&self.used.borrow()) {
            self.used.send_replace(self.report.consumption());
        }
    }

    /// End the process, as politely as the reason allows, and say what came of it all.
    async fn finish(mut self, end: End, cut: &mut Cut) -> Ending {
        self.stage = self.told.part("end CLI");
        let exit = match &end {
            End::Idle => {
                self.process.close_stdin();
                self.leave_time(GRACE).await
            }
            End::Closed => self.leave_time(GRACE).await,
            End::Stopped(Stop::Cancel | Stop::Drain) | End::Failed(_) => self.ask_to_end().await,
            End::Stopped(Stop::Kill | Stop::Lost) => self.process.kill().await,
        };
        let outcome = match end {
            End::Stopped(Stop::Lost) => None,
            End::Stopped(Stop::Cancel) => Some(Outcome::Cancelled),
            End::Stopped(Stop::Drain | Stop::Kill) => Some(self.interrupted()),
            End::Failed(failure) => Some(self.failed(&failure)),
            End::Idle | End::Closed => Some(self.concluded(exit)),
        };
        let mut mcp = std::mem::take(&mut self.mcp);
        let keeping = async {
            match outcome {
                Some(Outcome::Completed(result)) => self.keep(result, cut).await,
                other => other,
            }
        };
        let (outcome, ()) = tokio::join!(keeping, mcp.close());
        self.tell_use();
        if !matches!(outcome, Some(Outcome::Completed(_))) {
            let tail = self.process.stderr_tail();
            self.report.stderr_tail = Some(tail).filter(|tail| !tail.is_empty());
        }
        Ending { outcome, report: self.report }
    }

    /// Gather what the next turn goes on from. Without it, this one does not count.
    async fn keep(&mut self, result: JobResult, cut: &mut Cut) -> Option<Outcome> {
        let Some(conversation) = self.conversation.take() else { return Some(Outcome::Completed(result)) };
        let keeping = conversation.keep(self.lease, &self.dir, self.message, self.cli_version.take());
        tokio::pin!(keeping);
        let kept = tokio::select! {
            kept = &mut keeping => Ok(kept),
            end = cut.falls() => match end {
                End::Stopped(Stop::Kill | Stop::Lost) => Err(end),
                // The answer is there: what is left to do gets its chance.
                end => timeout(GRACE, keeping).await.map_err(|_| end),
            },
        };
        match kept {
            Ok(Ok(kept)) => {
                self.report.kept = Some(kept);
                Some(Outcome::Completed(result))
            }
            Ok(Err(failure)) => Some(self.failed(&failure)),
            Err(End::Stopped(Stop::Drain | Stop::Kill)) => Some(self.interrupted()),
            Err(end) => unbegun(end, self.lease),
        }
    }

    /// `interrupt`, then `end_session`, each with its grace; then the end of the whole tree.
    async fn ask_to_end(&mut self) -> Exit {
        for word in [control::interrupt("interrupt"), control::end_session("end")] {
            let deadline = Instant::now() + GRACE;
            if self.process.write_line(word.as_bytes(), GRACE).await.is_err() {
                break;
            }
            let mut is_idle = false;
            while !is_idle && let Ok(Ok(Some(line))) = timeout_at(deadline, self.process.next_line()).await {
                // Events that come after the decision are void; what was used still counts.
                for step in self.parser.feed(&line) {
                    is_idle |= step == Step::Idle;
                    if let Step::TurnEnded(turn) = step {
                        self.add_result(*turn);
                    }
                }
            }
        }
        self.process.kill().await
    }

    fn add_result(&mut self, turn: TurnResult) {
        let result = match self.result.take() {
            Some(former) => former.followed_by(turn),
            None => turn,
        };
        self.report.usage = Some(result.usage);
        self.report.cost = Some(result.cost);
        self.report.model = result.model.clone().or(self.report.model.take());
        self.result = Some(result);
    }

    async fn leave_time(&mut self, grace: Duration) -> Exit {
        let ended = async {
            while let Ok(Some(_)) = self.process.next_line().await {}
            self.process.wait().await
        };
        match timeout(grace, ended).await {
            Ok(exit) => exit,
            Err(_) => self.process.kill().await,
        }
    }

    fn concluded(&mut self, exit: Exit) -> Outcome {
        let Some(result) = &self.result else {
            return self.failed(&Failure::of_exit(exit, &self.process.stderr_tail(), self.has_spoken));
        };
        match Failure::of_turn(result) {
            Some(failure) => self.failed(&failure),
            None => self.completed(result.clone().into_job_result()),
        }
    }

    /// The CLI holds the answer to its schema itself; the client is promised that it fits ours.
    fn completed(&self, result: JobResult) -> Outcome {
        let Some(schema) = &self.lease.job().spec.output_schema else { return Outcome::Completed(result) };
        let fits = result.structured_output.as_ref().is_some_and(|output| schema.admits(output).is_ok());
        if fits { Outcome::Completed(result) } else { self.failed(&Failure::new(Code::StructuredOutputFailed)) }
    }

    fn failed(&self, failure: &Failure) -> Outcome {
        let may_restart = !self.is_streamed || self.lease.job().spec.retry_after_output == RetryAfterOutput::Restart;
        if may_restart { outcome_of(failure, self.lease) } else { Outcome::Failed(failure.error.clone()) }
    }

    fn interrupted(&self) -> Outcome {
        if self.is_streamed && self.lease.job().spec.retry_after_output == RetryAfterOutput::Never {
            return Outcome::Failed(Failure::new(Code::Interrupted).error);
        }
        Outcome::HandBack
    }
}

/// Wait for so long, or for ever.
async fn elapsed(patience: Option<Duration>) {
    match patience {
        Some(patience) => tokio::time::sleep(patience).await,
        None => std::future::pending().await,
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// What becomes of a job whose attempt failed like that.
pub(crate) fn outcome_of(failure: &Failure, lease: &Lease) -> Outcome {
    match failure.retry {
        Retry::No => Outcome::Failed(failure.error.clone()),
        Retry::Yes { after } => Outcome::Retry { error: failure.error.clone(), delay: retry_delay(lease.job().failures, after) },
    }
}

/// What becomes of a job of which the record could not be read: it has not begun, so nothing failed, and a worker
/// that can read the record takes it.
pub(crate) fn unread(error: &shared::Error) -> Outcome {
    if error.is_unavailable() { Outcome::HandBack } else { Outcome::Failed(Failure::new(Code::InternalError).error) }
}

fn unstartable(lease: &Lease, error: &SpawnError) -> Failure {
    tracing::error!(job.id = %lease.job().id, %error, cause = ?std::error::Error::source(error), "Could not start the CLI for job `{}`", lease.job().id);
    Failure::new(Code::CliUnavailable)
}
