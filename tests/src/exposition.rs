//! A page of metrics, read as strictly as its format is written (Prometheus text 0.0.4), and held against
//! the conventions for names.

use std::collections::HashSet;

use anyhow::{Context as _, bail, ensure};

/// One metric with its samples.
#[derive(Clone, Debug)]
pub struct Family {
    /// Its name.
    pub name: String,
    /// What it means.
    pub help: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Its samples, in order.
    pub samples: Vec<Sample>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The family's name, and for histograms what the value is.
    pub name: String,
    /// Its labels, in order.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: f64,
}

/// Read a page.
pub fn parse(page: &str) -> anyhow::Result<Vec<Family>> {
    ensure!(page.ends_with('\n'), "the last line has no end");
    let mut families: Vec<Family> = Vec::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').with_context(|| format!("no help: {line}"))?;
            let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE ")?.strip_prefix(name)?.strip_prefix(' '));
            let kind = kind.with_context(|| format!("no type after the help of {name}"))?;
            ensure!(families.iter().all(|family| family.name != name), "{name} twice");
            families.push(Family { name: name.to_owned(), help: help.to_owned(), kind: kind.to_owned(), samples: Vec::new() });
        } else {
            ensure!(!line.starts_with('#'), "neither help nor sample: {line}");
            let family = families.last_mut().with_context(|| format!("a sample before any family: {line}"))?;
            let sample = sample(line).with_context(|| line.to_owned())?;
            let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            let suffix = sample.name.strip_prefix(family.name.as_str()).with_context(|| format!("not of {}: {line}", family.name))?;
            ensure!(suffixes.contains(&suffix), "not a sample of {}: {line}", family.name);
            family.samples.push(sample);
        }
    }
    Ok(families)
}

fn sample(line: &str) -> anyhow::Result<Sample> {
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let (name, labels) = match series.split_once('{') {
        None => (series, Vec::new()),
        Some((name, labels)) => (name, self::labels(labels.strip_suffix('}').context("no end of the labels")?)?),
    };
    Ok(Sample { name: name.to_owned(), labels, value: value.parse()? })
}

fn labels(mut text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut labels = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").context("a label without a value")?;
        // None of ours needs to be escaped; one that does came from outside.
        let (value, rest) = rest.split_once('"').context("a value without an end")?;
        ensure!(!value.contains('\\'), "{value}");
        labels.push((name.to_owned(), value.to_owned()));
        text = match rest.strip_prefix(',') {
            Some(rest) => rest,
            None if rest.is_empty() => rest,
            None => bail!("{rest} after a label"),
        };
    }
    Ok(labels)
}

/// Fail unless `families` are named as they should be, whole, and without repeats.
pub fn check(families: &[Family]) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for family in families {
        let Family { name, help, kind, samples } = family;
        ensure!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'), "{name}");
        ensure!(name.starts_with("claude_") || name.starts_with("process_"), "{name} is nobody's");
        ensure!(help.len() > 10 && help.ends_with('.') && !help.ends_with(".."), "{name}: {help}");
        ensure!(["counter", "gauge", "histogram"].contains(&kind.as_str()), "{name} is a {kind}");
        ensure!((kind == "counter") == name.ends_with("_total"), "{name} is a {kind}");
        for unit in ["_ms", "_millis", "_milliseconds", "_minutes", "_hours", "_kb", "_kilobytes", "_percent", "_count", "_sum", "_bucket"]
        {
            ensure!(!name.trim_end_matches("_total").ends_with(unit), "{name}");
        }
        ensure!(kind != "histogram" || name.ends_with("_seconds"), "{name} has no unit");
        for sample in samples {
            ensure!(seen.insert((sample.name.clone(), sample.labels.clone())), "{sample:?} twice");
            ensure!(sample.value >= 0.0, "{sample:?}");
            for (label, value) in &sample.labels {
                // Ids are what grows without an end.
                ensure!(!["job_", "user_", "worker_", "key_"].iter().any(|brand| value.starts_with(brand)), "{label}={value} in {name}");
            }
        }
        if kind == "histogram" {
            check_histogram(family)?;
        }
    }
    Ok(())
}

fn check_histogram(family: &Family) -> anyhow::Result<()> {
    let (mut last, mut bound) = (0.0, f64::NEG_INFINITY);
    let mut counts = Vec::new();
    for sample in &family.samples {
        if sample.name.ends_with("_count") {
            counts.push(sample.value);
            (last, bound) = (0.0, f64::NEG_INFINITY);
        } else if sample.name.ends_with("_bucket") {
            let (_, le) = sample.labels.iter().find(|(name, _)| name == "le").with_context(|| format!("{sample:?}"))?;
            let le: f64 = le.parse()?;
            ensure!(le > bound && sample.value >= last, "not in order: {sample:?}");
            (last, bound) = (sample.value, le);
            if le == f64::INFINITY {
                ensure!(counts.last() == Some(&last), "the last bucket is not the count: {sample:?}");
            }
        }
    }
    ensure!(counts.is_empty() || bound == f64::INFINITY, "{} does not end at +Inf", family.name);
    Ok(())
}

/// The value of the one sample `name` with all of `labels`, and maybe others.
pub fn value(families: &[Family], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has = |sample: &Sample, label: &str, value: &str| sample.labels.iter().any(|(l, v)| l == label && v == value);
    let mut found = families
        .iter()
        .flat_map(|family| &family.samples)
        .filter(|sample| sample.name == name && labels.iter().all(|(label, value)| has(sample, label, value)));
    let first = found.next()?.value;
    found.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_against_the_rules_is_found_out() {
        let good = "# HELP claude_naps_total How many naps.\n# TYPE claude_naps_total counter\nclaude_naps_total{a=\"x\",b=\"y\"} 1\n";
        assert!(check(&parse(good).expect("readable")).is_ok());
        assert_eq!(value(&parse(good).expect("readable"), "claude_naps_total", &[("b", "y")]), Some(1.0));

        for unreadable in
            ["claude_naps_total 1\n", &good.replace("# TYPE", "# KIND"), &good.replace(" 1\n", "\n"), &format!("{good}{good}")]
        {
            assert!(parse(unreadable).is_err(), "{unreadable}");
        }
        let repeated = format!("{good}claude_naps_total{{a=\"x\",b=\"y\"}} 2\n");
        for wrong in [
            good.replace("_total", ""),
            good.replace("counter", "gauge"),
            good.replace("\"x\"", "\"job_1\""),
            good.replace("naps", "Naps"),
            good.replace("claude_naps", "claude_naps_ms"),
            repeated,
        ] {
            assert!(check(&parse(&wrong).expect("readable")).is_err(), "{wrong}");
        }
    }
}
