//! Spans for a collector of traces. Where none is named (see [`crate::telemetry`]) a span is nothing and costs nothing.
//! They are made by hand at the few places that matter, and not out of what is logged: nothing of a prompt can get
//! into one by accident, and `LOG_LEVEL` changes nothing about them.

use std::{
    borrow::Cow,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use opentelemetry::{
    Context, Key, KeyValue, Value,
    trace::{SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    resource::{EnvResourceDetector, ResourceDetector, SdkProvidedResourceDetector, TelemetryResourceDetector},
    trace::{SdkTracer, SdkTracerProvider, SpanData, SpanExporter as Export},
};
use uuid::Uuid;

use crate::{
    config::{ConfigError, Env},
    trace_context::TraceContext,
};

/// How often a collector that takes nothing is complained of.
const COMPLAINT_PAUSE: Duration = Duration::from_mins(1);
/// How long the last spans may take to reach the collector once the process is about to end.
const FLUSH: Duration = Duration::from_secs(2);

/// What makes spans in this process, where somebody collects them.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// A piece of work, from its beginning until this is dropped.
#[derive(Debug, Default)]
pub struct Span(Option<Context>);

impl Span {
    /// A request begins that came from elsewhere. `name` is few: a pattern, never a path.
    pub fn server(name: impl FnOnce() -> String, parent: Option<&TraceContext>) -> Self {
        TRACER.get().map_or(Self(None), |tracer| Self::begin(tracer, name(), SpanKind::Server, &outside(parent)))
    }

    /// Something begins that was asked for before, by a message.
    pub fn consumer(name: &'static str, parent: Option<&TraceContext>) -> Self {
        TRACER.get().map_or(Self(None), |tracer| Self::begin(tracer, name, SpanKind::Consumer, &outside(parent)))
    }

    /// A part of this begins.
    #[must_use]
    pub fn part(&self, name: &'static str) -> Self {
        match (TRACER.get(), &self.0) {
            (Some(tracer), Some(whole)) => Self::begin(tracer, name, SpanKind::Internal, whole),
            _ => Self(None),
        }
    }

    fn begin(tracer: &SdkTracer, name: impl Into<Cow<'static, str>>, kind: SpanKind, parent: &Context) -> Self {
        let span = tracer.build_with_context(tracer.span_builder(name).with_kind(kind), parent);
        Self(Some(parent.with_span(span)))
    }

    /// Note what is known of it. Nothing that a client said, and no secret.
    pub fn note<V: Into<Value>>(&self, name: &'static str, value: impl FnOnce() -> V) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(name, value()));
        }
    }

    /// It failed; `why` is one of few words.
    pub fn fail(&self, why: &str) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(why.to_owned()));
        }
    }

    /// Where what it causes elsewhere belongs.
    pub fn context(&self) -> Option<TraceContext> {
        let context = self.0.as_ref()?;
        Some(TraceContext::from(context.span().span_context()))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

fn outside(parent: Option<&TraceContext>) -> Context {
    let nowhere = Context::new();
    parent.map_or_else(Context::new, |parent| nowhere.with_remote_span_context(parent.span_context()))
}

/// The collection of this process's spans. Dropping it sends what is left, for two seconds at most.
#[derive(Debug)]
pub(crate) struct Collection(SdkTracerProvider);

impl Collection {
    /// Begin it where the standard's variables name a collector: spans of `service`, which they may call otherwise.
    pub(crate) fn begin(env: &Env, service: &'static str) -> Result<Option<Self>, ConfigError> {
        let is_named = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"].iter().any(|name| env.text(name).is_some());
        let is_disabled = env.text("OTEL_SDK_DISABLED").is_some_and(|word| word.eq_ignore_ascii_case("true"));
        if !is_named || is_disabled || env.text("OTEL_TRACES_EXPORTER") == Some("none") {
            return Ok(None);
        }
        check(env)?;
        // For an `https` collector. An error says that a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let way = SpanExporter::builder()
            .with_http()
            .build()
            .map_err(|error| ConfigError::invalid("OTEL_EXPORTER_OTLP_ENDPOINT", format_args!("not usable: {error}")))?;
        let exporter = Exporter { way, complained: Mutex::default(), lost: AtomicUsize::default() };
        // What else the standard says (sampler, limits, batches, headers, timeouts) the SDK reads for itself.
        let provider = SdkTracerProvider::builder().with_resource(resource(service)).with_batch_exporter(exporter).build();
        // Once in a process: whoever begins a second one gets nothing of it.
        let _ = TRACER.set(provider.tracer("claude-api"));
        Ok(Some(Self(provider)))
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "The last spans did not reach the collector of traces");
        }
    }
}

/// Refuse what the SDK would pass over without a word.
fn check(env: &Env) -> Result<(), ConfigError> {
    for name in ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] {
        if env.text(name).is_some_and(|protocol| protocol != "http/protobuf") {
            return Err(ConfigError::invalid(
                name,
                "not `http/protobuf`, the only one that is spoken here (hint: collectors listen for it on port 4318)",
            ));
        }
    }
    let is_ratio = match env.text("OTEL_TRACES_SAMPLER") {
        None | Some("always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off") => false,
        Some("traceidratio" | "parentbased_traceidratio") => true,
        Some(_) => {
            return Err(ConfigError::invalid("OTEL_TRACES_SAMPLER", "not a sampler that is known here (hint: `parentbased_traceidratio`)"));
        }
    };
    let ratio: f64 = env.parsed("OTEL_TRACES_SAMPLER_ARG", 1.0)?;
    if is_ratio && !(0.0..=1.0).contains(&ratio) {
        return Err(ConfigError::invalid("OTEL_TRACES_SAMPLER_ARG", "not between 0 and 1"));
    }
    Ok(())
}

/// What all spans of this process have in common. What the variables say of it wins.
fn resource(service: &'static str) -> Resource {
    const SERVICE_NAME: Key = Key::from_static_str("service.name");
    let named = SdkProvidedResourceDetector.detect().get(&SERVICE_NAME);
    let is_named = named.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let own =
        [KeyValue::new("service.version", env!("CARGO_PKG_VERSION")), KeyValue::new("service.instance.id", Uuid::new_v4().to_string())];
    let detectors: [Box<dyn ResourceDetector>; 3] =
        [Box::new(SdkProvidedResourceDetector), Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())];
    let resource = Resource::builder_empty().with_attributes(own).with_detectors(&detectors);
    if is_named { resource.build() } else { resource.with_service_name(service).build() }
}

/// Sends spans, and says so when they are not taken.
#[derive(Debug)]
struct Exporter {
    way: SpanExporter,
    complained: Mutex<Option<Instant>>,
    /// How many spans were lost since then.
    lost: AtomicUsize,
}

impl Exporter {
    fn complain(&self, error: &OTelSdkError, spans: usize) {
        self.lost.fetch_add(spans, Ordering::Relaxed);
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|at| at.elapsed() >= COMPLAINT_PAUSE) {
            *complained = Some(Instant::now());
            let lost = self.lost.swap(0, Ordering::Relaxed);
            tracing::warn!(%error, lost, "The collector of traces takes no spans; this is said once a minute");
        }
    }
}

impl Export for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.way.export(batch).await.inspect_err(|error| self.complain(error, spans))
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        self.way.shutdown_with_timeout(limit)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.way.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_collector_there_are_no_spans() {
        let span = Span::server(|| unreachable!("nobody reads its name"), None);
        span.note("x", || -> i64 { unreachable!("nobody reads it") });

        assert!(span.context().is_none() && span.part("y").context().is_none());
    }

    #[test]
    fn nothing_is_collected_unless_a_collector_is_named_and_wanted() {
        const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        for env in [
            Env::of([("OTEL_SERVICE_NAME", "x")]),
            Env::of([ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]),
            Env::of([ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]),
        ] {
            assert!(Collection::begin(&env, "x").expect("usable").is_none(), "{env:?}");
        }
    }

    #[test]
    fn what_the_sdk_would_pass_over_is_refused_by_name() {
        for (name, wrong) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_TRACES_SAMPLER_ARG", "half"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ] {
            let sampler = ("OTEL_TRACES_SAMPLER", "traceidratio");
            let error = check(&Env::of([sampler, (name, wrong)])).expect_err(wrong).to_string();
            assert!(error.starts_with(&format!("`{name}` is ")), "{error}");
        }
    }
}
