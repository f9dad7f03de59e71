//! The places where a test lets a process of the product die, freeze, or do without a part of the protocol.
//! Only builds with the feature `failpoints` have them, and only those named in the variable `FAILPOINTS` do
//! anything: `worker.after_claim=kill@2;lease.fence=off` kills the process the second time it passes
//! `worker.after_claim`, and takes the fence away. What each stands for is told by the tests in
//! `tests/system/crash_points/`.

#[cfg(feature = "failpoints")]
pub use armed::{is_off, pass};

/// Nothing, in a build without failpoints.
#[cfg(not(feature = "failpoints"))]
pub fn pass(_name: &str) {}

/// No, in a build without failpoints.
#[cfg(not(feature = "failpoints"))]
pub fn is_off(_name: &str) -> bool {
    false
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::{
        collections::HashMap,
        sync::{
            LazyLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    use rustix::process::{Signal, getpid, kill_process};

    use crate::config::Env;

    static ARMED: LazyLock<HashMap<String, Point>> =
        LazyLock::new(|| parse(Env::of_process().text("FAILPOINTS").unwrap_or_default()).expect("`FAILPOINTS` is readable"));

    /// What is to happen at one place.
    #[derive(Debug)]
    struct Point {
        action: Action,
        /// How many more passes before it happens.
        before: AtomicU32,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Action {
        /// `kill`: the process is gone, as by `kill -9`.
        Kill,
        /// `stop`: the process stands still, as by `kill -STOP`.
        Stop,
        /// `off`: a part of the protocol is left out.
        Off,
    }

    /// Pass the place `name`: the process dies or freezes here if that was asked for.
    pub fn pass(name: &str) {
        let Some(point) = ARMED.get(name) else { return };
        if point.before.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) == Ok(1) {
            match point.action {
                Action::Kill => send(Signal::KILL),
                Action::Stop => send(Signal::STOP),
                Action::Off => {}
            }
        }
    }

    /// Whether the part of the protocol that is called `name` is left out.
    pub fn is_off(name: &str) -> bool {
        ARMED.get(name).is_some_and(|point| point.action == Action::Off)
    }

    fn send(signal: Signal) {
        // It reaches this process before the call returns, or the test sees that nothing happened.
        let _ = kill_process(getpid(), signal);
    }

    /// `name=action[@pass]`, separated by `;`. `None` when it is something else.
    fn parse(text: &str) -> Option<HashMap<String, Point>> {
        let point = |text: &str| {
            let (name, what) = text.split_once('=')?;
            let (action, nth) = what.split_once('@').map_or(Some((what, 1)), |(action, nth)| Some((action, nth.parse().ok()?)))?;
            let action = match action {
                "kill" => Action::Kill,
                "stop" => Action::Stop,
                "off" => Action::Off,
                _ => return None,
            };
            Some((name.trim().to_owned(), Point { action, before: AtomicU32::new(nth) }))
        };
        text.split(';').filter(|point| !point.trim().is_empty()).map(point).collect()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_place_is_named_with_what_happens_there_and_at_which_pass() {
            let points = parse("worker.after_claim=kill@2; lease.fence=off").expect("readable");

            let of = |name: &str| points.get(name).map(|point| (point.action, point.before.load(Ordering::Relaxed)));
            assert_eq!(of("worker.after_claim"), Some((Action::Kill, 2)));
            assert_eq!(of("lease.fence"), Some((Action::Off, 1)));
            assert!(parse("").expect("nothing is readable").is_empty());
            for wrong in ["x", "x=", "x=die", "x=kill@y"] {
                assert!(parse(wrong).is_none(), "{wrong}");
            }
        }
    }
}
