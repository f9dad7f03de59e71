//! Where a request belongs in a trace that somebody else began: the W3C Trace Context that goes from a client's
//! request with its job to the CLI, whether or not anybody collects traces. What is malformed counts as absent.

use std::str::FromStr as _;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The version that is written, and the length of what it writes.
const VERSION: &str = "00";
const LENGTH: usize = 55;
/// The most of a `tracestate` that is passed on, in bytes. Entries beyond it are left out, the oldest first.
const LONGEST_STATE: usize = 512;

/// A place in a trace: what happens because of it names it as its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The `traceparent`, which is always [`LENGTH`] long, and what follows is the `tracestate`: jobs are many, and most
    /// have none of this.
    both: Box<str>,
}

impl TraceContext {
    /// What the headers `traceparent` and `tracestate` say, each as often as it came. `None` where that is no place in
    /// a trace (W3C Trace Context, sections 3.2 and 4.3).
    pub fn of_headers<'a>(mut traceparents: impl Iterator<Item = &'a [u8]>, tracestates: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let traceparent = traceparents.next()?;
        if traceparents.next().is_some() {
            return None;
        }
        let traceparent = known_part(std::str::from_utf8(traceparent).ok()?)?;
        // Where one cannot be read, none is passed on: half of it would say something else.
        let states: Option<Vec<&str>> = tracestates.map(|state| std::str::from_utf8(state).ok()).collect();
        let tracestate = states.filter(|states| !states.is_empty()).and_then(|states| sane_state(&states.join(",")));
        Some(Self::of_both(traceparent, tracestate.as_deref()))
    }

    /// What was kept of one.
    pub(crate) fn of_record(traceparent: Option<&str>, tracestate: Option<&str>) -> Option<Self> {
        Some(Self::of_both(known_part(traceparent?)?, tracestate))
    }

    fn of_both(traceparent: String, tracestate: Option<&str>) -> Self {
        Self { both: (traceparent + tracestate.unwrap_or_default()).into() }
    }

    /// The value of `traceparent`.
    pub fn traceparent(&self) -> &str {
        &self.both[..LENGTH]
    }

    /// The value of `tracestate`, where there is one.
    pub fn tracestate(&self) -> Option<&str> {
        Some(&self.both[LENGTH..]).filter(|state| !state.is_empty())
    }

    /// The trace, as the logs name it.
    pub fn trace_id(&self) -> &str {
        &self.both[3..35]
    }

    /// The same for the collector's SDK.
    pub(crate) fn span_context(&self) -> SpanContext {
        let field = |range| self.both.get(range).unwrap_or_default();
        let flags = u8::from_str_radix(field(53..55), 16).unwrap_or_default();
        SpanContext::new(
            TraceId::from_hex(field(3..35)).unwrap_or(TraceId::INVALID),
            SpanId::from_hex(field(36..52)).unwrap_or(SpanId::INVALID),
            TraceFlags::new(flags) & TraceFlags::SAMPLED,
            true,
            self.tracestate().and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default(),
        )
    }
}

impl From<&SpanContext> for TraceContext {
    fn from(span: &SpanContext) -> Self {
        let sampled = (span.trace_flags() & TraceFlags::SAMPLED).to_u8();
        let traceparent = format!("{VERSION}-{}-{}-{sampled:02x}", span.trace_id(), span.span_id());
        Self::of_both(traceparent, Some(&span.trace_state().header()))
    }
}

/// As much of a `traceparent` as this version of the standard knows, if it is one.
fn known_part(text: &str) -> Option<String> {
    let (known, rest) = text.split_at_checked(LENGTH)?;
    let fields: Vec<&str> = known.split('-').collect();
    let [version, trace, parent, flags] = fields[..] else { return None };
    let is_hex = |field: &str, length| field.len() == length && field.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_id = |field: &str, length| is_hex(field, length) && field.bytes().any(|b| b != b'0');
    let is_whole = if version == VERSION { rest.is_empty() } else { rest.is_empty() || rest.starts_with('-') };
    let is_one = is_whole && is_hex(version, 2) && version != "ff" && is_id(trace, 32) && is_id(parent, 16) && is_hex(flags, 2);
    is_one.then(|| format!("{VERSION}{}", &known[2..]))
}

/// As many entries of a `tracestate` as may be passed on, if it is one.
fn sane_state(text: &str) -> Option<String> {
    let is_printable = text.bytes().all(|b| matches!(b, b'\t' | 0x20..0x7f));
    let state = TraceState::from_str(text).ok().filter(|_| is_printable)?.header();
    if state.starts_with('=') || state.contains(",=") {
        return None;
    }
    let kept = match state.get(..=LONGEST_STATE) {
        Some(beginning) => beginning.rsplit_once(',').map_or("", |(kept, _)| kept),
        None => &state,
    };
    Some(kept.to_owned()).filter(|kept| !kept.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn of(traceparents: &[&str], tracestates: &[&str]) -> Option<TraceContext> {
        TraceContext::of_headers(traceparents.iter().map(|value| value.as_bytes()), tracestates.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn a_good_one_is_passed_on_as_it_came() {
        let context = of(&[GOOD], &["a=1, b=2", "c@d=3"]).expect("a context");

        assert_eq!(context.traceparent(), GOOD);
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.tracestate(), Some("a=1,b=2,c@d=3"));
        assert_eq!(of(&[GOOD], &[]).expect("a context").tracestate(), None);
    }

    #[test]
    fn what_is_malformed_counts_as_absent() {
        let long = format!("{GOOD}-00");
        let upper = GOOD.to_uppercase();
        for wrong in [
            "",
            "00-x-y-01",
            &upper,
            &long,
            &GOOD[..54],
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b71692033311-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
            "é0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
        ] {
            assert_eq!(of(&[wrong], &[]), None, "{wrong}");
        }
        assert_eq!(of(&[GOOD, GOOD], &[]), None);
        assert_eq!(of(&[], &["a=1"]), None);
    }

    #[test]
    fn of_a_later_version_the_known_part_is_taken() {
        let later = format!("cc{}-what-the-future-brings", &GOOD[2..]);

        assert_eq!(of(&[&later], &[]).expect("a context").traceparent(), GOOD);
    }

    #[test]
    fn a_state_that_cannot_be_read_costs_nothing_but_itself() {
        for wrong in ["A B=1", "a", "a=1,,=", "=1"] {
            assert_eq!(of(&[GOOD], &[wrong]).expect("a context").tracestate(), None, "{wrong}");
        }
        let bytes: [&[u8]; 1] = [b"a=\xff"];
        let context = TraceContext::of_headers(std::iter::once(GOOD.as_bytes()), bytes.into_iter()).expect("a context");
        assert_eq!(context.tracestate(), None);
    }

    #[test]
    fn a_long_state_loses_its_oldest_entries() {
        let entries: Vec<String> = (0..30).map(|n| format!("k{n}={}", "v".repeat(40))).collect();

        let context = of(&[GOOD], &[&entries.join(",")]).expect("a context");

        let kept = context.tracestate().expect("some of it");
        assert!(kept.len() <= LONGEST_STATE && kept.len() > LONGEST_STATE - 50, "{}", kept.len());
        assert!(entries.join(",").starts_with(kept) && kept.ends_with('v'), "{kept}");
        let exact = format!("a={}", "v".repeat(200));
        assert_eq!(of(&[GOOD], &[&exact]).expect("a context").tracestate(), Some(exact.as_str()));
    }

    #[test]
    fn it_is_the_same_after_a_way_through_the_sdk() {
        let context = of(&[GOOD], &["a=1,b=2"]).expect("a context");

        assert_eq!(TraceContext::from(&context.span_context()), context);
    }

    #[test]
    fn what_the_record_cannot_have_written_is_none() {
        assert_eq!(TraceContext::of_record(Some("x"), None), None);
        assert_eq!(TraceContext::of_record(None, Some("a=1")), None);
        assert_eq!(TraceContext::of_record(Some(GOOD), None).expect("kept").traceparent(), GOOD);
    }
}
