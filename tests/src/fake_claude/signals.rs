//! The real CLI ends on SIGTERM and SIGHUP with 143 and 129 and without a result, at any moment.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tokio::signal::unix::{SignalKind, signal};

use super::{ledger, transcript::Transcript};

static IGNORES_TERM: AtomicBool = AtomicBool::new(false);

/// From here on SIGTERM changes nothing.
pub(super) fn ignore_term() {
    IGNORES_TERM.store(true, Ordering::SeqCst);
}

/// End this process when it is told to, with its transcript closed.
pub(super) fn watch(transcript: Transcript) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a process has descriptors left at its start");
    let (mut terminate, mut hang_up) = {
        let _within = runtime.enter();
        let watch = |kind| signal(kind).expect("these signals can be caught");
        (watch(SignalKind::terminate()), watch(SignalKind::hangup()))
    };
    // It lives as long as the process does.
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                let code = tokio::select! {
                    _ = terminate.recv() => 143,
                    _ = hang_up.recv() => 129,
                };
                if code == 143 && IGNORES_TERM.load(Ordering::SeqCst) {
                    continue;
                }
                transcript.close();
                ledger::end(code)
            }
        })
    });
}
