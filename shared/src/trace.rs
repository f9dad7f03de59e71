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
    Context, KeyValue, Value,
    trace::{SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    resource::{EnvResourceDetector, ResourceDetector, SdkProvidedResourceDetector, TelemetryResourceDetector},
    trace::{SdkTracer, SdkTracerProvider, SpanData, SpanExporter as Export},
};
use uuid::Uuid;

use crate::{Error, Result, config::Reading, settings, trace_context::TraceContext};

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
    /// Begin it, for spans of `service`, which the variables may call otherwise.
    pub(crate) fn begin(wish: Wish, service: &'static str) -> Result<Self> {
        // For an `https` collector. An error says that a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let failed = |error: ExporterBuildError| Error::Internal { what: "could not begin to collect spans", source: error.into() };
        let way = SpanExporter::builder().with_http().build().map_err(failed)?;
        let exporter = Exporter { way, complained: Mutex::default(), lost: AtomicUsize::default() };
        // What else the standard says (sampler, limits, batches, headers, timeouts) the SDK reads for itself.
        let provider = SdkTracerProvider::builder().with_resource(resource(wish, service)).with_batch_exporter(exporter).build();
        // Once in a process: whoever begins a second one gets nothing of it.
        let _ = TRACER.set(provider.tracer("claude-api"));
        Ok(Self(provider))
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "The last spans did not reach the collector of traces");
        }
    }
}

/// That spans are to be collected, as the standard's variables say. The SDK reads them for itself; here it is looked
/// whether they can be meant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    is_named: bool,
}

impl Wish {
    pub(crate) fn read(reading: &Reading<'_>) -> Option<Self> {
        let endpoints = [&settings::OTEL_EXPORTER_OTLP_ENDPOINT, &settings::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT];
        let has_endpoint = endpoints.map(|endpoint| reading.maybe(endpoint, address)).iter().any(Option::is_some);
        reading.maybe(&settings::OTEL_EXPORTER_OTLP_HEADERS, pairs);
        reading.word(&settings::OTEL_EXPORTER_OTLP_PROTOCOL, &[("http/protobuf", ())]);
        let attributes = reading.maybe(&settings::OTEL_RESOURCE_ATTRIBUTES, |text| pairs(text).map(|()| text.to_owned()));
        let is_named = reading.text(&settings::OTEL_SERVICE_NAME).is_some()
            || attributes.is_some_and(|text| text.split(',').any(|pair| pair.trim().starts_with("service.name=")));
        reading.word(&settings::OTEL_TRACES_SAMPLER, &SAMPLERS.map(|sampler| (sampler, ())));
        reading.within(&settings::OTEL_TRACES_SAMPLER_ARG, 0.0..=1.0);
        let is_disabled = reading.word(&settings::OTEL_SDK_DISABLED, &[("false", false), ("true", true)]);
        let is_wanted = reading.word(&settings::OTEL_TRACES_EXPORTER, &[("otlp", true), ("none", false)]);
        (has_endpoint && is_wanted && !is_disabled).then_some(Self { is_named })
    }
}

/// What the SDK knows. It would take another for the first of them without a word.
const SAMPLERS: [&str; 6] =
    ["parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio", "always_on", "always_off", "traceidratio"];

fn address(text: &str) -> Result<(), &'static str> {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    if host.is_some_and(|host| !host.is_empty()) { Ok(()) } else { Err("not an `http://` or `https://` address") }
}

fn pairs(text: &str) -> Result<(), &'static str> {
    let are_pairs = text.split(',').all(|pair| pair.split_once('=').is_some_and(|(name, _)| !name.trim().is_empty()));
    if are_pairs { Ok(()) } else { Err("not a list of pairs") }
}

/// What all spans of this process have in common. What the variables say of it wins.
fn resource(wish: Wish, service: &'static str) -> Resource {
    let own =
        [KeyValue::new("service.version", env!("CARGO_PKG_VERSION")), KeyValue::new("service.instance.id", Uuid::new_v4().to_string())];
    let detectors: [Box<dyn ResourceDetector>; 3] =
        [Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new()), Box::new(SdkProvidedResourceDetector)];
    let resource = Resource::builder_empty().with_attributes(own).with_detectors(&detectors);
    if wish.is_named { resource.build() } else { resource.with_service_name(service).build() }
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
    use crate::config::{self, Env};

    #[test]
    fn without_a_collector_there_are_no_spans() {
        let span = Span::server(|| unreachable!("nobody reads its name"), None);
        span.note("x", || -> i64 { unreachable!("nobody reads it") });

        assert!(span.context().is_none() && span.part("y").context().is_none());
    }

    fn wish<const N: usize>(variables: [(&str, &str); N]) -> std::result::Result<Option<Wish>, String> {
        config::read(&Env::of(variables), Wish::read).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_collected_unless_a_collector_is_named_and_wanted() {
        const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");

        assert!(wish([ENDPOINT]).expect("usable").is_some());
        for variables in [
            [("OTEL_SERVICE_NAME", "x"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            [ENDPOINT, ("OTEL_SDK_DISABLED", "true")],
            [ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            assert!(wish(variables).expect("usable").is_none(), "{variables:?}");
        }
    }

    #[test]
    fn what_the_sdk_would_pass_over_is_refused_by_name() {
        for (name, wrong) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://x"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=1,hunter2"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_TRACES_SAMPLER_ARG", "half"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_TRACES_SAMPLER_ARG", "NaN"),
        ] {
            let error = wish([(name, wrong)]).expect_err(wrong);
            assert!(error.contains(&format!("`{name}` is ")) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_service_has_its_name_by_either_variable() {
        let is_named = |name, value| {
            let wish = wish([("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x"), (name, value)]).expect("usable");
            wish.expect("an endpoint").is_named
        };

        assert!(is_named("OTEL_SERVICE_NAME", "x") && is_named("OTEL_RESOURCE_ATTRIBUTES", "a=1, service.name=x"));
        assert!(!is_named("OTEL_RESOURCE_ATTRIBUTES", "a=1"));
    }
}
