//! The file a test reads to learn which runs there were: `start PID MS SESSION` and `stop PID MS CODE`,
//! appended line by line. A start without a stop was killed. Whoever starts while an earlier run of the same ledger
//! still lives says so: `beside PID MS OTHER`. One process keeps one ledger.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process,
    sync::OnceLock,
};

use shared::time::Timestamp;

use crate::runs::Runs;

static LEDGER: OnceLock<(PathBuf, File)> = OnceLock::new();

/// Note the start of this process in the ledger at `path` and say how many starts there are by then. A
/// process that is in it already is not noted again.
pub(super) fn enter(path: &Path, session: &str) -> u32 {
    if LEDGER.get().is_none() {
        let Ok(file) = OpenOptions::new().create(true).append(true).open(path) else {
            super::voice::complain("the ledger cannot be opened");
            end(2)
        };
        let _ = LEDGER.set((path.to_owned(), file));
        let earlier = Runs::read(path).living();
        note("start", session);
        for other in earlier {
            note("beside", &other.to_string());
        }
    }
    let lines = fs::read_to_string(path).unwrap_or_default();
    u32::try_from(lines.lines().filter(|line| line.starts_with("start ")).count()).unwrap_or(u32::MAX)
}

/// Where the ledger is, for children to note themselves.
pub(super) fn path() -> Option<&'static Path> {
    LEDGER.get().map(|(path, _)| path.as_path())
}

/// Note the end of this process and end it.
pub(super) fn end(code: u8) -> ! {
    note("stop", &code.to_string());
    process::exit(code.into())
}

fn note(what: &str, detail: &str) {
    let Some((_, file)) = LEDGER.get() else { return };
    let line = format!("{what} {} {} {detail}\n", process::id(), Timestamp::now().unix_ms());
    // One write, so lines of several processes do not mix.
    if (&*file).write_all(line.as_bytes()).is_err() {
        super::voice::complain("the ledger cannot be written");
    }
}
