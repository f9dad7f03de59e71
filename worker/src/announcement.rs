//! What the installed CLI offers, asked of itself: it announces its tools when it has read a first message,
//! also one that the model is not to answer. It is asked where and how jobs run, but for the way to the
//! API: there is none. The record follows it when its file changes.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use shared::{
    id::WorkerId,
    job::may_be_offered,
    tool::{AnnouncedTool, Category},
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    claude::{
        command::{self, Relay},
        control,
        lines::LineError,
        process::{LINE_LIMIT, Launch, Process, SpawnError, WriteError},
        sandbox,
        stream::{Parser, Step},
    },
    workshop::{self, Workshop},
};

/// How long the CLI may take to answer. It takes half a second.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The longest wait before a question that failed is asked again.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// What the CLI said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Its version.
    pub version: String,
    /// The names of its tools.
    pub tools: Vec<String>,
}

/// Why the CLI could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Its folder could not be made.
    #[error("could not make a folder for it")]
    Folder(#[from] io::Error),
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It did not read the question.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// What it printed could not be read.
    #[error(transparent)]
    Read(#[from] LineError),
    /// It ended, or said nothing for too long.
    #[error("it announced nothing")]
    Silent,
    /// It announced a turn without tools or without a version, which no CLI of ours does.
    #[error("it announced no version, or no tools")]
    Empty,
    /// The record did not take the answer.
    #[error("the record did not take its answer")]
    Record(#[from] shared::Error),
}

/// Keep the record of what the CLI of `worker` offers true until `stop`. Jobs run meanwhile.
pub async fn watch(workshop: Arc<Workshop>, worker: WorkerId, stop: CancellationToken) {
    let mut looks = interval(workshop.config.store.timing.beat);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut recorded = None;
    let mut failed: Option<Failed> = None;
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        let file = Identity::of(&workshop.config.find_claude());
        if file.is_some() && file == recorded {
            continue;
        }
        if failed.as_ref().is_some_and(|failed| failed.file == file && Instant::now() < failed.again) {
            continue;
        }
        match ask_and_record(&workshop, worker, &stop).await {
            Ok(None) => return,
            Ok(Some(announcement)) => {
                let Announcement { version, tools } = announcement;
                tracing::info!(version, tools = tools.len(), "The CLI is {version} and offers {} tools", tools.len());
                (recorded, failed) = (file, None);
            }
            Err(error) => {
                let pause = failed.map_or(Duration::from_secs(5), |failed| (failed.pause * 2).min(LONGEST_PAUSE));
                tracing::warn!(%error, cause = ?std::error::Error::source(&error), "Could not ask the CLI what it offers; asking again in {pause:?}");
                failed = Some(Failed { file, pause, again: Instant::now() + pause });
            }
        }
    }
}

/// The file that would be started, told apart from what is put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    file: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(program: &Path) -> Option<Self> {
        let file = fs::metadata(program).ok()?;
        Some(Self { device: file.dev(), file: file.ino(), bytes: file.len(), changed: (file.ctime(), file.ctime_nsec()) })
    }
}

struct Failed {
    file: Option<Identity>,
    pause: Duration,
    again: Instant,
}

/// `None` once `stop` fired.
async fn ask_and_record(workshop: &Workshop, worker: WorkerId, stop: &CancellationToken) -> Result<Option<Announcement>, AskError> {
    let Some(mut announcement) = ask(workshop, None, stop).await? else { return Ok(None) };
    // Some tools are there for whoever names them, and not announced to whoever does not.
    let known = KNOWN.map(|(name, ..)| name.to_owned());
    let Some(named) = ask(workshop, Some(&known), stop).await? else { return Ok(None) };
    announcement.tools.extend(named.tools);
    announcement.tools.retain(|name| may_be_offered(name));
    announcement.tools.sort_unstable();
    announcement.tools.dedup();
    let announced: Vec<AnnouncedTool> = announcement.tools.iter().map(|name| described(name)).collect();
    workshop.tools.announce(worker, &announcement.version, &announced).await?;
    Ok(Some(announcement))
}

/// Start the CLI, ask it, and end it. `None` once `stop` fired.
async fn ask(workshop: &Workshop, named: Option<&[String]>, stop: &CancellationToken) -> Result<Option<Announcement>, AskError> {
    let dir = workshop.jobs.attempt()?;
    // Nothing listens there: whatever the CLI would ask of the API is refused.
    let nowhere = Relay::UnixSocket(match workshop.sandbox {
        Some(_) => PathBuf::from(sandbox::SOCKETS).join("none.sock"),
        None => dir.sockets().join("none.sock"),
    });
    let command = command::question(named, &workshop::surroundings(workshop, &dir, nowhere, None));
    // Whoever asks waits for the answer, and ends the process if it does not come.
    let launch = Launch { silence: ANSWER_LIMIT, ..workshop::launch(workshop, command, &dir, std::time::Instant::now()) };
    let mut process = Process::spawn(&launch, LINE_LIMIT, &workshop.metrics.living)?;
    let answer = stop.run_until_cancelled(timeout(ANSWER_LIMIT, answer(&mut process))).await;
    // The folder goes after the process, not under it.
    process.kill().await;
    match answer {
        None => Ok(None),
        Some(Ok(answer)) => answer.map(Some),
        Some(Err(_)) => Err(AskError::Silent),
    }
}

async fn answer(process: &mut Process) -> Result<Announcement, AskError> {
    process.write_line(control::silent_message(Uuid::new_v4()).as_bytes(), ANSWER_LIMIT).await?;
    let mut parser = Parser::new();
    while let Some(line) = process.next_line().await? {
        for step in parser.feed(&line) {
            if let Step::Initialized { version, tools, .. } = step {
                let is_whole = !version.is_empty() && !tools.is_empty();
                return if is_whole { Ok(Announcement { version, tools }) } else { Err(AskError::Empty) };
            }
        }
    }
    Err(AskError::Silent)
}

/// Our words about the tools that we know. The CLI's own descriptions are pages, written for the model.
const KNOWN: [(&str, Category, &str); 19] = [
    ("Bash", Category::Shell, "Runs a command in the workspace."),
    ("Edit", Category::Files, "Changes a part of a file."),
    ("Glob", Category::Search, "Finds files by a pattern of their names."),
    ("Grep", Category::Search, "Finds lines of files by a regular expression."),
    ("NotebookEdit", Category::Files, "Changes a cell of a Jupyter notebook."),
    ("Read", Category::Files, "Reads a file, also an image, a PDF or a notebook."),
    ("ReportFindings", Category::Other, "Hands in the findings of a review, one by one."),
    ("Skill", Category::Other, "Follows a set of instructions that the CLI brings along."),
    ("Task", Category::Agents, "Gives a part of the work to another agent of the same job."),
    ("TaskCreate", Category::Planning, "Adds an item to the list of things to do."),
    ("TaskGet", Category::Planning, "Reads an item of the list of things to do."),
    ("TaskList", Category::Planning, "Reads the list of things to do."),
    ("TaskOutput", Category::Agents, "Reads what an agent or a command in the background has said so far."),
    ("TaskStop", Category::Agents, "Stops an agent or a command in the background."),
    ("TaskUpdate", Category::Planning, "Changes an item of the list of things to do."),
    ("ToolSearch", Category::Other, "Finds tools whose descriptions the model has not read yet."),
    ("WebFetch", Category::Web, "Reads a page of the web. Where jobs have no network it finds nothing."),
    ("WebSearch", Category::Web, "Searches the web; the model's provider does it."),
    ("Write", Category::Files, "Writes a file."),
];

fn described(name: &str) -> AnnouncedTool {
    let known = KNOWN.iter().find(|(known, ..)| *known == name);
    AnnouncedTool {
        name: name.to_owned(),
        description: known.map(|(_, _, description)| (*description).to_owned()),
        category: known.map_or(Category::Other, |(_, category, _)| *category),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_we_know_may_be_asked_for_and_is_known_once() {
        let mut names: Vec<&str> = KNOWN.iter().map(|(name, ..)| *name).collect();
        assert!(names.iter().all(|name| may_be_offered(name)), "{names:?}");

        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KNOWN.len());
    }

    #[test]
    fn a_tool_nobody_knows_is_one_of_the_others() {
        assert_eq!(described("Bash").category, Category::Shell);
        assert_eq!(described("Teleport"), AnnouncedTool { name: "Teleport".into(), description: None, category: Category::Other });
    }

    #[test]
    fn a_file_that_is_put_in_the_place_of_another_is_another() {
        let directory = std::env::temp_dir().join(format!("identity-{}", Uuid::now_v7()));
        fs::create_dir_all(&directory).expect("a directory");
        let (program, other) = (directory.join("claude"), directory.join("other"));
        fs::write(&program, "one").expect("written");
        fs::write(&other, "two").expect("written");

        let before = Identity::of(&program);
        assert!(before.is_some() && before == Identity::of(&program));
        fs::rename(&other, &program).expect("replaced");

        assert_ne!(before, Identity::of(&program));
        assert_eq!(Identity::of(&directory.join("none")), None);
        fs::remove_dir_all(&directory).expect("cleaned");
    }
}
