//! What this server measures. Every request is counted under the pattern of its path, as the contract
//! writes it: a path that is in no contract is `other`, so nobody can make the page grow. The tables are
//! complete from the start, and counting is a few atomics.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use poem::http::{Method, StatusCode};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        gauge::Gauge,
    },
    registry::Registry,
};
use shared::{
    limits::Limits,
    metrics::{self, Durations, EventLoop, Figures, Record},
    store::Store,
};

use crate::openapi;

/// What all names of ours begin with.
const PREFIX: &str = "claude_api";
/// What is in no contract.
const OTHER: &str = "other";
/// The methods a label may have, and [`OTHER`].
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", OTHER];
/// The statuses a label may have, and [`OTHER`].
const STATUSES: [&str; 32] = [
    "101", "200", "201", "202", "204", "206", "301", "302", "303", "304", "307", "308", "400", "401", "402", "403", "404", "405", "408",
    "409", "410", "413", "415", "416", "422", "426", "429", ABANDONED, "500", "501", "503", OTHER,
];
/// The client was gone before it had an answer: no status was sent, and this is how proxies count it.
const ABANDONED: &str = "499";
/// Where buckets of durations end. A long poll may take a minute.
const BOUNDS: [f64; 15] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Everything this server measures.
pub struct Metrics {
    /// Requests and streams.
    pub traffic: Arc<Traffic>,
    /// Jobs that were accepted, without those that were accepted before.
    pub submitted: Counter,
    /// What the record knows of the whole system.
    pub record: Record,
    /// Whether this process still turns.
    pub event_loop: EventLoop,
    registry: Registry,
}

impl Metrics {
    /// The metrics of a server over `store` that keeps `limits`, in the runtime that this is called in.
    pub fn new(store: &Store, limits: &Limits) -> Self {
        let traffic = Arc::new(Traffic::of_contract());
        let submitted = Counter::default();
        let mut registry = Registry::default();
        let stores = store.clone();
        let event_loop = EventLoop::watch();
        let own = metrics::register(&mut registry, PREFIX, &event_loop, move || Some(stores.clone()));
        own.register("http_requests_in_flight", "Requests whose answer has not begun", traffic.in_flight.clone());
        own.register("event_streams_open", "Event streams that are being followed", traffic.streams.clone());
        own.register("websockets_open", "WebSockets that are open", traffic.sockets.clone());
        let readers = &traffic.readers;
        own.register("feeds_open", "Jobs whose events this server follows for somebody", readers.feeds.clone());
        own.register("feed_gaps", "Events that were announced, did not come, and were read from the log", readers.gaps.clone());
        own.register(
            "readers_behind",
            "Times that a reader of events was too slow to be told, and read the log itself",
            readers.behind.clone(),
        );
        own.register(
            "slow_readers_dropped",
            "Clients that took nothing of their answer for 30 seconds, and were cut off",
            readers.dropped.clone(),
        );
        own.register("jobs_submitted", "Jobs accepted by this server, repeated requests not counted", submitted.clone());
        own.register_collector(Box::new(traffic.clone()));
        own.register_collector(Box::new(Limiter(limits.clone())));
        Self { traffic, submitted, record: Record::new(store), event_loop, registry }
    }

    /// The page of metrics. What the record says is left out while it is away.
    pub async fn page(&self) -> String {
        let mut page = metrics::text(&self.registry);
        if let Some(figures) = self.record.figures().await {
            page.push_str(&system(figures));
        }
        page
    }
}

fn system(figures: Figures) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(figures));
    metrics::text(&registry)
}

/// Shows what the hourly limit decided.
struct Limiter(Limits);

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Limiter")
    }
}

impl Collector for Limiter {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let counts = self.0.counts();
        let mut counter = encoder.encode_descriptor("limiter_decisions", "Requests the rate limit judged.", None, MetricType::Counter)?;
        for (decision, count) in [("granted", counts.granted), ("refused", counts.refused)] {
            ConstCounter::new(count).encode(counter.encode_family(&[("decision", decision)])?)?;
        }
        let help = "Decisions of the rate limit that were made without Redis.";
        let by_fallback = ConstCounter::new(counts.fallbacks);
        by_fallback.encode(encoder.encode_descriptor("limiter_fallback_decisions", help, None, MetricType::Counter)?)
    }
}

/// Requests and their answers.
#[derive(Debug)]
pub struct Traffic {
    routes: Vec<Route>,
    in_flight: Gauge,
    streams: Gauge,
    sockets: Gauge,
    /// Those who follow events.
    pub readers: Readers,
}

/// How those who follow events keep up. Clones count into the same figures.
#[derive(Clone, Debug, Default)]
pub struct Readers {
    /// Jobs that are followed for them.
    pub feeds: Gauge,
    /// Events that were announced and did not come.
    pub gaps: Counter,
    /// How often one of them had to read the log itself.
    pub behind: Counter,
    /// Clients that took nothing for too long.
    pub dropped: Counter,
}

/// One path of the contract.
#[derive(Debug)]
struct Route {
    pattern: String,
    /// In the order of [`METHODS`].
    methods: [Series; METHODS.len()],
}

/// What is counted of one method of a route.
#[derive(Debug)]
struct Series {
    durations: Durations,
    /// In the order of [`STATUSES`].
    statuses: [AtomicU64; STATUSES.len()],
}

impl Route {
    fn new(pattern: String) -> Self {
        let series = |_| Series { durations: Durations::new(&BOUNDS), statuses: std::array::from_fn(|_| AtomicU64::new(0)) };
        Self { pattern, methods: std::array::from_fn(series) }
    }

    /// How many segments of the pattern stand for anything, if `path` fits it.
    fn fits(&self, path: &str) -> Option<usize> {
        let mut parameters = 0;
        let (mut pattern, mut asked) = (self.pattern.split('/'), path.split('/'));
        loop {
            match (pattern.next(), asked.next()) {
                (None, None) => return Some(parameters),
                (Some(part), Some(_)) if part.starts_with('{') => parameters += 1,
                (Some(part), Some(segment)) if part == segment => {}
                _ => return None,
            }
        }
    }
}

impl Traffic {
    /// Nothing yet, over every path of the contract.
    pub fn of_contract() -> Self {
        let routes = openapi::patterns().into_iter().chain([OTHER.to_owned()]).map(Route::new).collect();
        let (in_flight, streams, sockets) = Default::default();
        Self { routes, in_flight, streams, sockets, readers: Readers::default() }
    }

    /// A request came. It counts once it is answered, or dropped.
    pub fn begin(self: &Arc<Self>, method: &Method, path: &str) -> Request {
        self.in_flight.inc();
        let method = METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1);
        let fitting = self.routes.iter().enumerate().filter_map(|(route, known)| Some((known.fits(path)?, route)));
        // Where two fit, the one that is meant says more by itself.
        let route = fitting.min().map_or(self.routes.len() - 1, |(_, route)| route);
        Request { traffic: self.clone(), method, route, started: Instant::now(), status: None }
    }

    /// An event stream was opened; it closes with what this answers.
    pub fn open_stream(&self) -> Open {
        Open::new(&self.streams)
    }

    /// A WebSocket was opened; it closes with what this answers.
    pub fn open_socket(&self) -> Open {
        Open::new(&self.sockets)
    }

    fn series(&self) -> impl Iterator<Item = (&str, &str, &Series)> {
        self.routes
            .iter()
            .flat_map(|route| route.methods.iter().zip(METHODS).map(|(series, method)| (method, route.pattern.as_str(), series)))
    }
}

/// A request that is being answered.
pub struct Request {
    traffic: Arc<Traffic>,
    method: usize,
    route: usize,
    started: Instant,
    status: Option<StatusCode>,
}

impl Request {
    /// Its method, as it is counted.
    pub fn method(&self) -> &'static str {
        METHODS[self.method]
    }

    /// The pattern of its path, as it is counted.
    pub fn route(&self) -> &str {
        &self.traffic.routes[self.route].pattern
    }

    /// Its answer begins.
    pub fn answered(mut self, status: StatusCode) {
        self.status = Some(status);
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let status = self.status.as_ref().map_or(ABANDONED, StatusCode::as_str);
        let status = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        let series = &self.traffic.routes[self.route].methods[self.method];
        series.statuses[status].fetch_add(1, Ordering::Relaxed);
        series.durations.observe(self.started.elapsed());
        self.traffic.in_flight.dec();
    }
}

/// Something that counts as open while this lives.
pub struct Open(Gauge);

impl Open {
    /// Count as open in `gauge`.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "Requests by their answer; 499: the client was gone before it.";
        let mut requests = encoder.encode_descriptor("http_requests", help, None, MetricType::Counter)?;
        for (method, route, series) in self.series() {
            for (status, count) in STATUSES.iter().zip(&series.statuses) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let labels = [("method", method), ("route", route), ("status", status)];
                    ConstCounter::new(count).encode(requests.encode_family(&labels)?)?;
                }
            }
        }
        let help = "From a request to the beginning of its answer, in seconds.";
        let mut durations = encoder.encode_descriptor("http_request_duration_seconds", help, None, MetricType::Histogram)?;
        for (method, route, series) in self.series().filter(|(.., series)| series.durations.count() > 0) {
            series.durations.encode(durations.encode_family(&[("method", method), ("route", route)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(traffic: &Arc<Traffic>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(traffic.clone()));
        metrics::text(&registry)
    }

    fn answer(traffic: &Arc<Traffic>, method: &Method, path: &str, status: StatusCode) {
        traffic.begin(method, path).answered(status);
    }

    #[test]
    fn a_request_counts_under_the_pattern_of_its_path() {
        let traffic = Arc::new(Traffic::of_contract());
        answer(&traffic, &Method::GET, "/api/jobs/job_1", StatusCode::OK);
        answer(&traffic, &Method::GET, "/api/jobs/job_2", StatusCode::OK);
        answer(&traffic, &Method::POST, "/api/jobs/job_2/cancel", StatusCode::ACCEPTED);
        answer(&traffic, &Method::GET, "/", StatusCode::SEE_OTHER);

        let page = page(&traffic);

        for line in [
            "http_requests_total{method=\"GET\",route=\"/api/jobs/{id}\",status=\"200\"} 2",
            "http_requests_total{method=\"POST\",route=\"/api/jobs/{id}/cancel\",status=\"202\"} 1",
            "http_requests_total{method=\"GET\",route=\"/\",status=\"303\"} 1",
            "http_request_duration_seconds_count{method=\"GET\",route=\"/api/jobs/{id}\"} 2",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}:\n{page}");
        }
        assert!(!page.contains("job_"), "{page}");
    }

    #[test]
    fn what_nobody_knows_is_one_label_however_often_it_comes() {
        let traffic = Arc::new(Traffic::of_contract());
        let odd = Method::from_bytes(b"BREW").expect("a token");
        answer(&traffic, &odd, "/nothing/0", StatusCode::IM_A_TEAPOT);
        let before = page(&traffic).lines().count();

        for n in 1..50 {
            answer(
                &traffic,
                &Method::from_bytes(format!("BREW{n}").as_bytes()).expect("a token"),
                &format!("/{n}/x"),
                StatusCode::IM_A_TEAPOT,
            );
        }

        let page = page(&traffic);
        assert_eq!(page.lines().count(), before);
        assert!(page.contains("http_requests_total{method=\"other\",route=\"other\",status=\"other\"} 50\n"), "{page}");
    }

    #[test]
    fn a_request_that_is_dropped_was_abandoned() {
        let traffic = Arc::new(Traffic::of_contract());
        let request = traffic.begin(&Method::GET, "/api/jobs");
        assert_eq!(traffic.in_flight.get(), 1);

        drop(request);

        assert_eq!(traffic.in_flight.get(), 0);
        assert!(page(&traffic).contains("http_requests_total{method=\"GET\",route=\"/api/jobs\",status=\"499\"} 1\n"));
    }

    #[test]
    fn every_status_of_the_contract_has_its_label() {
        for code in crate::error::Code::ALL {
            assert!(STATUSES.contains(&code.status().as_str()), "{code:?}");
        }
    }
}
