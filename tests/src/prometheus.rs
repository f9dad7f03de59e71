//! Prometheus as Debian has it: it scrapes what it is told to, and says what expressions come to. And `promtool`,
//! which judges pages, rules and configurations.

#![expect(clippy::disallowed_types, reason = "starts programs that are not the product's")]

use std::{fmt::Write as _, fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use shared::{config::Env, time::Timestamp};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    time::{interval, timeout},
};

use crate::system::PATIENCE;

/// A running Prometheus. Dropping it kills it; what it keeps is in its directory.
pub struct Prometheus {
    base: String,
    http: reqwest::Client,
    process: Child,
}

impl Prometheus {
    /// Scrape `targets`, each the name of a job and an address, four times a second, and judge by the rules in
    /// `rules`. Answers once all of them were scraped.
    pub async fn start(directory: &Path, targets: &[(&str, &str)], rules: &Path) -> anyhow::Result<Self> {
        let mut config = format!(
            "global: {{ scrape_interval: 250ms, evaluation_interval: 250ms }}\nrule_files: [\"{}\"]\nscrape_configs:\n",
            rules.display()
        );
        for (job, address) in targets {
            writeln!(config, "  - {{ job_name: {job}, metrics_path: /health/metrics, static_configs: [{{ targets: [\"{address}\"] }}] }}")?;
        }
        let (file, data) = (directory.join("prometheus.yml"), directory.join("prometheus"));
        fs::write(&file, config)?;
        let program = Env::of_process().text("PROMETHEUS_SERVER").unwrap_or("prometheus").to_owned();
        let mut process = Command::new(&program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("could not start `{program}`"))?;
        let mut lines = BufReader::new(process.stderr.take().context("piped")?).lines();
        let address = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(address) = line.split("msg=\"Listening on\" address=").nth(1) {
                    return Ok(address.trim().to_owned());
                }
            }
            anyhow::bail!("it ended before it listened")
        };
        let address = timeout(PATIENCE, address).await.context("Prometheus does not listen")??;
        // Who stops reading would have it die of a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let prometheus = Self { base: format!("http://{address}"), http: reqwest::Client::new(), process };
        timeout(PATIENCE, prometheus.scraped(targets.len())).await.context("not all targets could be scraped")??;
        Ok(prometheus)
    }

    async fn scraped(&self, targets: usize) -> anyhow::Result<()> {
        let mut looks = interval(Duration::from_millis(100));
        loop {
            looks.tick().await;
            let up = self.query("sum(up)").await.unwrap_or_default();
            if up[0]["value"][1].as_str() == Some(&targets.to_string()) {
                return Ok(());
            }
        }
    }

    /// What `expression` comes to now: a list of series. Fails where it cannot be evaluated.
    pub async fn query(&self, expression: &str) -> anyhow::Result<Value> {
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/query", self.base), [("query", expression)])?;
        let mut answer: Value = self.http.get(url).send().await?.json().await?;
        ensure!(answer["status"] == "success", "{expression}: {answer}");
        Ok(answer["data"]["result"].take())
    }

    /// The rules, once each was evaluated since all targets are there.
    pub async fn evaluated_rules(&self) -> anyhow::Result<Vec<Value>> {
        let scraped = Timestamp::now();
        let mut looks = interval(Duration::from_millis(100));
        let looking = async {
            loop {
                looks.tick().await;
                let answer: Value = self.http.get(format!("{}/api/v1/rules", self.base)).send().await?.json().await?;
                let groups = answer["data"]["groups"].as_array().into_iter().flatten();
                let rules: Vec<Value> = groups.flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect();
                let is_fresh = |rule: &Value| {
                    let evaluated = rule["lastEvaluation"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
                    evaluated.is_some_and(|evaluated| evaluated > scraped)
                };
                if !rules.is_empty() && rules.iter().all(is_fresh) {
                    return anyhow::Ok(rules);
                }
            }
        };
        timeout(PATIENCE, looking).await.context("the rules were not evaluated")?
    }

    /// End it.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        Ok(self.process.kill().await?)
    }
}

/// Have `promtool` do something with `input`; what it said. Fails where it finds something.
pub async fn promtool(arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let program = Env::of_process().text("PROMTOOL").unwrap_or("promtool").to_owned();
    let mut tool = Command::new(&program);
    tool.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut tool = tool.spawn().with_context(|| format!("could not start `{program}`"))?;
    tool.stdin.take().context("piped")?.write_all(input.as_bytes()).await?;
    let output = tool.wait_with_output().await?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(said)
}
