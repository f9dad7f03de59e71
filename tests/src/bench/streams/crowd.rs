//! The process of watchers, as the one who started it sees it.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::part::Part;
use crate::bench::figures::Columns;

/// What is watched.
#[derive(Clone)]
pub struct Target {
    /// The server.
    pub address: SocketAddr,
    /// The path of the events.
    pub path: String,
    /// The key of the client.
    pub key: String,
}

/// Watchers of one job, all connected.
pub struct Crowd {
    part: Part,
    /// The last event that all are known to have, and since when.
    had: Option<(u32, u64)>,
}

/// What they have seen.
pub struct Report {
    /// The events that told when they were due, all watchers together.
    pub events: f64,
    /// When the last of those came, in nanoseconds since 1970.
    pub last: u64,
    /// How late they were, in milliseconds.
    pub delays: Columns,
}

/// What the process says.
enum News {
    Connected,
    Had(u32, u64),
    Report(Value),
}

impl Crowd {
    /// Let `count` of them connect. They tell of every so many events that all have it.
    pub async fn connect(target: &Target, count: usize, every: u32) -> anyhow::Result<Self> {
        let (count, every, address) = (count.to_string(), every.to_string(), target.address.to_string());
        let arguments = ["--count", &count, "--every", &every, "--address", &address, "--path", &target.path, "--key", &target.key];
        let mut crowd = Self { part: Part::start("watchers", &arguments)?, had: None };
        match crowd.hear().await? {
            News::Connected => Ok(crowd),
            News::Had(..) | News::Report(_) => bail!("watchers that are not connected have nothing to tell"),
        }
    }

    /// Wait until all have the event `n`, or a later one; since when they do, in nanoseconds since 1970.
    pub async fn all_have(&mut self, n: u32) -> anyhow::Result<u64> {
        loop {
            if let Some((_, at)) = self.had.filter(|(had, _)| *had >= n) {
                return Ok(at);
            }
            match self.hear().await? {
                News::Had(had, at) => self.had = Some((had, at)),
                News::Connected | News::Report(_) => bail!("the streams ended before event {n}"),
            }
        }
    }

    /// The end of all streams.
    pub async fn report(mut self) -> anyhow::Result<Report> {
        let report = loop {
            match self.hear().await? {
                News::Had(..) => {}
                News::Report(report) => break report,
                News::Connected => bail!("the watchers connected twice"),
            }
        };
        self.part.ended().await?;
        let figure = |value: &Value| value.as_f64().context("a figure");
        let mut delays = Columns::default();
        for (delay, told) in delays.iter_mut().zip(report["delays"].as_array().context("delays")?) {
            *delay = figure(told)?;
        }
        let last = report["last"].as_u64().context("a time")?;
        Ok(Report { events: figure(&report["events"])?, last, delays })
    }

    async fn hear(&mut self) -> anyhow::Result<News> {
        let line = self.part.line().await?;
        let had = || line.strip_prefix("had ")?.split_once(' ');
        Ok(match (line.as_str(), had()) {
            ("connected", _) => News::Connected,
            (_, Some((n, at))) => News::Had(n.parse()?, at.parse()?),
            (report, None) => News::Report(serde_json::from_str(report)?),
        })
    }
}
