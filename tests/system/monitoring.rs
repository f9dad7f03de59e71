//! What operators are given to watch the service by: Prometheus scrapes the real processes, and every expression of
//! the alerts and of the dashboard is one that it understands, over names that there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use reqwest::Method;
use serde_json::Value;
use tests::{
    client::Client,
    exposition::{self, value},
    prometheus::{Prometheus, promtool},
    servers::Kind,
    system::{Cli, System},
};

use crate::metrics::{address_of, pages_of};

fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

/// The expressions of the dashboard, by the titles of their panels.
fn of_dashboard() -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(deployed("grafana/claude-api.json"))?)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let expressions = |panel: &Value| {
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(|target| target["expr"].as_str().unwrap_or_default().replace("$__rate_interval", "1m")).collect()
    };
    let titled = panels.iter().filter(|panel| panel["type"] != "row");
    Ok(titled.map(|panel| (panel["title"].as_str().unwrap_or_default().to_owned(), expressions(panel))).collect())
}

/// The names of series in `expression`: words of ours that are followed by what only a series is.
fn names(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_name = |word: &&str| *word == "up" || ["claude_", "process_"].iter().any(|prefix| word.starts_with(prefix));
    words.filter(is_name).map(str::to_owned).collect()
}

/// Every name that a page may have.
async fn offered(client: &Client) -> anyhow::Result<(String, BTreeSet<String>)> {
    let page = client.request(Method::GET, "/health/metrics").send().await?.error_for_status()?.text().await?;
    let mut names = BTreeSet::new();
    for family in exposition::parse(&page)? {
        let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        names.extend(suffixes.iter().map(|suffix| format!("{}{suffix}", family.name)));
    }
    Ok((page, names))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_understands_the_pages_the_alerts_and_the_dashboard() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("WORKER_HTTP_PORT", "0").with("MAX_WORKERS", "1");
    let (api, mut worker) = (system.api().await?, system.worker().await?);
    let address = address_of(&mut worker).await?;
    let pages = pages_of(&address);
    api.client.chat("say:hello").await?.rest().await?;
    // The worker has one place: once the second job has it, all of the first is counted.
    let mut second = api.client.chat("slow:40:0.05").await?;
    second.until("text.delta", &mut Vec::new()).await?;

    let mut known = BTreeSet::from(["up".to_owned()]);
    for client in [&api.client, &pages] {
        let (page, names) = offered(client).await?;
        assert_eq!(promtool(&["check", "metrics"], &page).await?, "");
        known.extend(names);
    }

    let prometheus = Prometheus::start(
        system.directory(),
        &[("claude-api", api.client.base().trim_start_matches("http://")), ("claude-worker", &address)],
        &deployed("alerts.yml"),
    )
    .await?;
    let panels = of_dashboard()?;
    assert!(panels.len() > 20 && panels.values().all(|expressions| !expressions.is_empty()), "{panels:?}");
    for (panel, expressions) in &panels {
        for expression in expressions {
            prometheus.query(expression).await.with_context(|| panel.clone())?;
            let unknown: Vec<_> = names(expression).difference(&known).cloned().collect();
            ensure!(unknown.is_empty(), "{panel}: nobody tells {unknown:?}");
        }
    }
    let rules = fs::read_to_string(deployed("alerts.yml"))?;
    let unknown: Vec<_> = names(&rules).difference(&known).cloned().collect();
    assert_eq!(unknown, Vec::<String>::new(), "of the alerts");

    let submitted = prometheus.query("sum(claude_api_jobs_submitted_total)").await?;
    assert_eq!(submitted[0]["value"][1], "2", "{submitted}");
    let rules = prometheus.evaluated_rules().await?;
    for rule in &rules {
        assert_eq!((&rule["health"], rule.get("lastError")), (&"ok".into(), None), "{rule}");
        assert_eq!(rule["alerts"], Value::Array(Vec::new()), "{rule}");
    }
    assert!(rules.len() >= 17);
    prometheus.stop().await?;
    second.rest().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_alerts_come_when_they_should() -> anyhow::Result<()> {
    let path = |name: &str| deployed(name).to_string_lossy().into_owned();

    promtool(&["check", "config", &path("prometheus.yml")], "").await?;
    promtool(&["test", "rules", &path("alerts.test.yml")], "").await?;

    // Each of them is tried, and told what to do about.
    let (rules, tried) = (fs::read_to_string(deployed("alerts.yml"))?, fs::read_to_string(deployed("alerts.test.yml"))?);
    let documented = fs::read_to_string(deployed("../docs/operations.md"))?;
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 17);
    for alert in alerts {
        assert!(tried.contains(&format!("alertname=\"{alert}\"")), "{alert} is not in alerts.test.yml");
        assert!(documented.contains(&format!("`{alert}`")), "{alert} is not in docs/operations.md");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_right_is_counted() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("WORKER_HTTP_PORT", "0").with("MAX_WORKERS", "1");
    let (api, mut worker) = (system.api().await?, system.worker().await?);
    let mut stream = api.client.chat("slow:40:0.05").await?;
    stream.until("text.delta", &mut Vec::new()).await?;

    worker.kill().await?;
    let mut successor = system.worker().await?;
    let address = address_of(&mut successor).await?;
    assert_eq!(stream.rest().await?.last().map(|event| event.kind.clone()).as_deref(), Some("job.completed"));

    let (of_api, of_worker) = (offered(&api.client).await?.0, offered(&pages_of(&address)).await?.0);
    let (of_api, of_worker) = (exposition::parse(&of_api)?, exposition::parse(&of_worker)?);
    let both = |name: &str| {
        let of = |families, prefix: &str| value(families, &format!("claude_{prefix}_{name}"), &[]).unwrap_or(0.0);
        of(&of_api, "api") + of(&of_worker, "worker")
    };
    for (name, expected) in [("leads", 1.0), ("workers_buried_total", 1.0), ("jobs_reclaimed_total", 1.0)] {
        assert!((both(name) - expected).abs() < 0.5, "{name}: {}", both(name));
    }
    assert_eq!(value(&of_worker, "claude_worker_tokens_total", &[("kind", "output")]).map(|tokens| tokens > 0.0), Some(true));
    Ok(())
}
