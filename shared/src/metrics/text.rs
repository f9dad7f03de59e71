//! The page itself, in Prometheus's text format 0.0.4. The library writes `OpenMetrics`, whose families are
//! named without the `_total` and `_info` of their samples; readers of the older format would find those
//! samples without a type.

use std::fmt::Write as _;

use prometheus_client::{encoding::text::encode_registry, registry::Registry};

/// The media type of [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything in `registry`.
pub fn text(registry: &Registry) -> String {
    let mut written = String::new();
    encode_registry(&mut written, registry).expect("writing to a string cannot fail");
    let mut text = String::with_capacity(written.len());
    // A family's help comes directly before its type, which says what the family is called.
    let mut help = "";
    for line in written.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            write!(text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n").expect("writing to a string cannot fail");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        metrics::{counter::Counter, gauge::Gauge, info::Info},
        registry::Unit,
    };

    use super::*;

    #[test]
    fn a_family_has_the_name_of_its_samples() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc();
        registry.register("doors_opened", "How many doors", counter);
        registry.register("build", "Which one", Info::new([("version", "1")]));
        registry.register_with_unit("age", "How old", Unit::Seconds, Gauge::<i64>::default());

        let expected = "# HELP doors_opened_total How many doors.\n# TYPE doors_opened_total counter\ndoors_opened_total 1\n\
                        # HELP build_info Which one.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n\
                        # HELP age_seconds How old.\n# TYPE age_seconds gauge\nage_seconds 0\n";
        assert_eq!(text(&registry), expected);
    }
}
