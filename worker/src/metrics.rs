//! What this worker measures, and whether it is at work. Of a job only how it ended and how long it took:
//! labels are words of ours, never an id.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use shared::{
    job::{Job, JobState},
    lease::{Outcome, Report},
    metrics::{self, Durations, EventLoop, Reading},
    store::Store,
    trace::Span,
};

use crate::claude::failure::Code;

/// Where buckets of short waits end, in seconds.
const WAITS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Where buckets of whole attempts end, in seconds.
const RUNS: [f64; 13] = [0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

/// How an attempt ended and, where it failed, why.
type HowEnded = [(&'static str, &'static str); 2];
/// The ways to end, and whether one comes with a code.
const HOW_ENDED: [(&str, bool); 6] =
    [("completed", false), ("failed", true), ("cancelled", false), ("retried", true), ("handed_back", false), ("lost", false)];
/// A code that is none of ours, and a model beyond the first [`MODELS`].
const OTHER: &str = "other";
/// The most models that have a label of their own.
const MODELS: usize = 50;

/// Everything this worker measures. Clones count into the same figures.
#[derive(Clone)]
pub struct Metrics {
    /// How many CLI processes live.
    pub living: Gauge,
    /// Whether this process still turns.
    pub event_loop: EventLoop,
    /// Whether and since when this worker's beats are accepted.
    pub pulse: Arc<Pulse>,
    ended: Family<HowEnded, Counter>,
    running: Gauge,
    claim_waits: Durations,
    starts: Durations,
    first_texts: Durations,
    runs: Durations,
    spending: Spending,
    store: Arc<OnceLock<Store>>,
    registry: Arc<Registry>,
}

impl Metrics {
    /// The metrics of a worker that runs `slots` jobs at once, in the runtime that this is called in.
    pub fn new(slots: u32) -> Self {
        let store = Arc::new(OnceLock::<Store>::new());
        let (living, running, pulse) = (Gauge::default(), Gauge::default(), Arc::new(Pulse::default()));
        let ended = Family::default();
        // All of them from the start: nobody who ends an attempt makes a series, so nobody waits for a reader.
        for how in HOW_ENDED.iter().flat_map(|(outcome, has_code)| how_ended(outcome, *has_code)) {
            drop(ended.get_or_create_owned(&how));
        }
        let [claim_waits, starts, first_texts] = std::array::from_fn(|_| Durations::new(&WAITS));
        let (runs, spending, event_loop) = (Durations::new(&RUNS), Spending::default(), EventLoop::watch());

        let mut registry = Registry::default();
        let stores = store.clone();
        let own = metrics::register(&mut registry, "claude_worker", &event_loop, move || stores.get().cloned());
        own.register("slots", "The most jobs this worker runs at once", Reading::gauge(move || Some(slots.into())));
        own.register("attempts_running", "Jobs this worker runs", running.clone());
        own.register("attempts_ended", "Attempts by how they ended and, where they failed, why", Family::clone(&ended));
        own.register("cli_processes", "CLI processes that live, or have not been buried yet", living.clone());
        own.register("claim_wait_seconds", "From when a job could be taken to when it was, in seconds", claim_waits.clone());
        own.register("cli_start_seconds", "From when a job was taken to when its CLI took the message, in seconds", starts.clone());
        own.register("first_text_seconds", "From when a job was taken to the first text of its answer, in seconds", first_texts.clone());
        own.register("attempt_duration_seconds", "From when a job was taken to the end of the attempt, in seconds", runs.clone());
        own.register("tokens", "Tokens of the attempts that ended, by the model that answered and by kind", spending.tokens.clone());
        own.register("cost_usd", "What the attempts that ended cost, in US dollars, by the model that answered", spending.cost.clone());
        let beats = pulse.clone();
        own.register("joined", "Whether this worker is one of the workers: 1 or 0", Reading::gauge(move || Some(beats.is_joined().into())));
        let beats = pulse.clone();
        let age = Reading::gauge(move || beats.age().map(|age| age.as_secs_f64()));
        own.register("heartbeat_age_seconds", "How long ago the database last took a beat of this worker, in seconds", age);
        let registry = Arc::new(registry);
        Self { living, event_loop, pulse, ended, running, claim_waits, starts, first_texts, runs, spending, store, registry }
    }

    /// The stores are open.
    pub fn opened(&self, store: &Store) {
        // Opened once; a second call changes nothing.
        let _ = self.store.set(store.clone());
    }

    /// The stores, once they are open.
    pub fn store(&self) -> Option<&Store> {
        self.store.get()
    }

    /// The page of metrics.
    pub fn page(&self) -> String {
        metrics::text(&self.registry)
    }

    /// This worker took `job`.
    pub fn claimed(&self, job: &Job) -> Attempt {
        // Both are times of the database's clock.
        let waited = job.started_at.map_or(0, |started| started.unix_ms().saturating_sub(job.run_at.unix_ms()));
        self.claim_waits.observe(Duration::from_millis(u64::try_from(waited).unwrap_or(0)));
        self.running.inc();
        Attempt { metrics: self.clone(), claimed: Instant::now() }
    }
}

/// An attempt that counts as running while this lives.
pub struct Attempt {
    metrics: Metrics,
    claimed: Instant,
}

impl Attempt {
    /// The attempt is over, as `report` tells; it is not settled yet.
    pub fn ran(&self, report: &Report) {
        self.metrics.spending.note(report);
        self.metrics.runs.observe(self.claimed.elapsed());
        for (ms, durations) in [(report.start_ms, &self.metrics.starts), (report.first_token_ms, &self.metrics.first_texts)] {
            if let Some(ms) = ms {
                durations.observe(Duration::from_millis(ms));
            }
        }
    }

    /// What became of it.
    pub fn settled(&self, end: &End) {
        let code = end.code.as_deref().map_or("", word);
        self.metrics.ended.get_or_create_owned(&[("outcome", end.outcome), ("code", code)]).inc();
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.metrics.running.dec();
    }
}

/// What the models were used for. A job may name any model: past [`MODELS`] of them the rest count as [`OTHER`], so
/// that nobody can make the page grow.
#[derive(Clone, Default)]
struct Spending {
    models: Arc<Mutex<HashSet<String>>>,
    tokens: Family<[(&'static str, String); 2], Counter>,
    cost: Family<[(&'static str, String); 1], Counter<f64, AtomicU64>>,
}

impl Spending {
    fn note(&self, report: &Report) {
        let model = self.label(report.model.as_deref().unwrap_or(OTHER));
        let usage = report.usage.unwrap_or_default();
        let kinds = [
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cache_read", usage.cache_read_tokens),
            ("cache_write", usage.cache_write_tokens),
        ];
        for (kind, tokens) in kinds.into_iter().filter(|(_, tokens)| *tokens > 0) {
            self.tokens.get_or_create_owned(&[("model", model.clone()), ("kind", kind.to_owned())]).inc_by(tokens);
        }
        if let Some(cost) = report.cost {
            self.cost.get_or_create_owned(&[("model", model)]).inc_by(cost.usd());
        }
    }

    fn label(&self, model: &str) -> String {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if models.len() < MODELS {
            models.insert(model.to_owned());
        }
        models.get(model).map_or(OTHER, String::as_str).to_owned()
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    outcome: &'static str,
    code: Option<String>,
}

impl End {
    /// The job is somebody else's, or will be.
    pub const LOST: Self = Self { outcome: "lost", code: None };

    /// What was wished for it; the record may have decided otherwise.
    pub fn of(outcome: &Outcome) -> Self {
        let (outcome, error) = match outcome {
            Outcome::Completed(_) => ("completed", None),
            Outcome::Failed(error) => ("failed", Some(error)),
            Outcome::Cancelled => ("cancelled", None),
            Outcome::HandBack => ("handed_back", None),
            Outcome::Retry { error, .. } => ("retried", Some(error)),
        };
        Self { outcome, code: error.map(|error| error.code.clone()) }
    }

    /// The same, now that the job is in `state`.
    pub fn settled_as(self, state: JobState) -> Self {
        match state {
            // Going back is what was wished for.
            JobState::Queued | JobState::Running => self,
            JobState::Completed | JobState::Failed => Self { outcome: state.as_str(), ..self },
            JobState::Cancelled => Self { outcome: state.as_str(), code: None },
        }
    }
}

impl End {
    /// Tell a collector of traces the same.
    pub fn note_on(&self, span: &Span) {
        span.note("outcome", || self.outcome);
        if let Some(code) = &self.code {
            span.fail(word(code));
        }
    }
}

/// A code as a label: one of ours, whatever it was.
fn word(code: &str) -> &'static str {
    Code::ALL.into_iter().map(Code::as_str).find(|known| *known == code).unwrap_or(OTHER)
}

fn how_ended(outcome: &'static str, has_code: bool) -> impl Iterator<Item = HowEnded> {
    let codes = Code::ALL.into_iter().map(Code::as_str).chain([OTHER]).filter(move |_| has_code);
    let codes = codes.chain(Some("").filter(|_| !has_code));
    codes.map(move |code| [("outcome", outcome), ("code", code)])
}

/// Whether this worker is one of the workers, and when it last said that it lives.
#[derive(Debug)]
pub struct Pulse {
    is_joined: AtomicBool,
    begun: Instant,
    /// Milliseconds after `begun`; 0 before the first.
    last_beat: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { is_joined: AtomicBool::new(false), begun: Instant::now(), last_beat: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// Whether this worker is one of the workers.
    pub fn is_joined(&self) -> bool {
        self.is_joined.load(Ordering::Relaxed)
    }

    /// This worker joined, or left.
    pub fn set_joined(&self, is_joined: bool) {
        self.is_joined.store(is_joined, Ordering::Relaxed);
    }

    /// The database took a beat.
    pub fn beat(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_beat.store(since.max(1), Ordering::Relaxed);
    }

    /// How long ago the last beat was taken.
    pub fn age(&self) -> Option<Duration> {
        let last = self.last_beat.load(Ordering::Relaxed);
        (last > 0).then(|| self.begun.elapsed().saturating_sub(Duration::from_millis(last)))
    }
}

#[cfg(test)]
mod tests {
    use shared::job::{JobError, JobResult, NanoUsd, Usage};

    use super::*;

    fn failed(code: &str) -> Outcome {
        Outcome::Failed(JobError::new(code, "something", false))
    }

    #[test]
    fn an_end_is_counted_by_what_the_record_says() {
        let retry = Outcome::Retry { error: JobError::new("cli_crashed", "x", true), delay: Duration::ZERO };

        let labels = |outcome: &Outcome, state| {
            let end = End::of(outcome).settled_as(state);
            (end.outcome, end.code)
        };
        assert_eq!(labels(&retry, JobState::Queued), ("retried", Some("cli_crashed".to_owned())));
        assert_eq!(labels(&retry, JobState::Failed), ("failed", Some("cli_crashed".to_owned())));
        assert_eq!(labels(&retry, JobState::Cancelled), ("cancelled", None));
        assert_eq!(labels(&Outcome::HandBack, JobState::Queued), ("handed_back", None));
        assert_eq!(labels(&Outcome::Completed(JobResult::default()), JobState::Completed), ("completed", None));
    }

    #[tokio::test]
    async fn no_code_from_elsewhere_becomes_a_label() {
        let metrics = Metrics::new(1);
        let attempt = Attempt { metrics: metrics.clone(), claimed: Instant::now() };
        metrics.running.inc();

        for n in 0..50 {
            attempt.settled(&End::of(&failed(&format!("code_{n}"))));
        }
        attempt.settled(&End::of(&failed("timed_out")));
        drop(attempt);

        let page = metrics.page();
        let series = page.lines().filter(|line| line.starts_with("claude_worker_attempts_ended_total")).count();
        assert_eq!(series, 4 + 2 * (Code::ALL.len() + 1), "{page}");
        assert!(page.contains("claude_worker_attempts_ended_total{outcome=\"failed\",code=\"other\"} 50\n"), "{page}");
        assert!(page.contains("claude_worker_attempts_ended_total{outcome=\"failed\",code=\"timed_out\"} 1\n"), "{page}");
        assert!(page.contains("claude_worker_attempts_running 0\n") && !page.contains("code_"), "{page}");
    }

    #[tokio::test]
    async fn tokens_and_cost_are_told_by_model_of_so_many_models() {
        let metrics = Metrics::new(1);
        let usage = Usage { input_tokens: 3, output_tokens: 5, ..Usage::default() };
        let ran = |model: String| {
            let report = Report { model: Some(model), usage: Some(usage), cost: Some(NanoUsd(250_000_000)), ..Report::default() };
            metrics.spending.note(&report);
        };

        for _ in 0..2 {
            ran("sonnet".to_owned());
        }
        for n in 0..MODELS + 10 {
            ran(format!("model-{n}"));
        }

        let page = metrics.page();
        assert!(page.contains("claude_worker_tokens_total{model=\"sonnet\",kind=\"output\"} 10\n"), "{page}");
        assert!(page.contains("claude_worker_cost_usd_total{model=\"sonnet\"} 0.5\n"), "{page}");
        assert!(page.contains("claude_worker_tokens_total{model=\"other\",kind=\"input\"} 33\n") && !page.contains("cache_read"), "{page}");
        assert_eq!(page.lines().filter(|line| line.starts_with("claude_worker_cost_usd_total{")).count(), MODELS + 1);
    }

    #[tokio::test]
    async fn a_heart_that_never_beat_has_no_age() {
        let metrics = Metrics::new(3);
        assert!(!metrics.page().contains("heartbeat_age") && metrics.page().contains("claude_worker_joined 0.0\n"));

        metrics.pulse.set_joined(true);
        metrics.pulse.beat();

        let page = metrics.page();
        assert!(page.contains("claude_worker_heartbeat_age_seconds 0.0") && page.contains("claude_worker_joined 1.0\n"), "{page}");
    }
}
