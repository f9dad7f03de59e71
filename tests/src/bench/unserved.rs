//! A conversation without the service: laid out and gathered by the worker's own code, and gone on with by
//! the CLI in between, so that a turn's parts can be told apart.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use shared::{id::SessionId, transcript::Transcript};
use tokio::task::block_in_place;
use worker::{claude::command::Thread, job_dir::JobDir, transcript};

use super::{
    direct::{Direct, Question},
    past::Past,
};
use crate::sessions::transcript_of;

/// A conversation that nobody serves.
pub struct Unserved {
    /// What it is called.
    pub name: &'static str,
    session: SessionId,
    /// What the last turn left.
    transcript: Transcript,
    /// The lines it was begun with.
    begun: Vec<u8>,
    /// How many bytes they had when they were packed.
    packed: usize,
    /// How many turns went on from there.
    turns: usize,
}

/// What a turn consists of, but for the service.
pub struct Parts {
    /// Unpack and check what the turn before left.
    pub restore: Duration,
    /// From the start of the CLI to its first piece of text.
    pub first_text: Duration,
    /// Check and pack what the CLI left.
    pub save: Duration,
}

impl Unserved {
    /// Begin one with `past`.
    pub async fn begin(direct: &Direct, past: Past) -> anyhow::Result<Self> {
        let dir = direct.dir()?;
        let session = SessionId::new();
        let question = Question::with(past.message(), past.name);
        direct.first_text_in(&dir, Thread::New(session.uuid()), &question).await?;
        let begun = fs::read(file(&dir, session)?)?;
        let transcript = transcript::pack(&dir.config(), session, question.id, None)?;
        let packed = transcript.body.len();
        Ok(Self { name: past.name, session, transcript, begun, packed, turns: 0 })
    }

    /// How many bytes it was begun with, as they are and packed.
    pub fn size(&self) -> (usize, usize) {
        (self.begun.len(), self.packed)
    }

    /// Go on with it by one turn that is to answer `answer`.
    pub async fn turn(&mut self, direct: &Direct, answer: &str) -> anyhow::Result<Parts> {
        let dir = direct.dir()?;
        let question = Question::of(answer);
        let (restored, restore) = timed(|| transcript::restore(&dir.config(), self.session, &self.transcript));
        restored.context("could not be restored")?;
        let first_text = direct.first_text_in(&dir, Thread::Resumed(self.session.uuid()), &question).await?;
        let (packed, save) = timed(|| transcript::pack(&dir.config(), self.session, question.id, None));
        self.transcript = packed.context("could not be packed")?;
        self.turns += 1;
        Ok(Parts { restore, first_text, save })
    }

    /// Fail where it is not what it was begun with, and each turn after that; all answers hold `answers`.
    pub fn check(&self, direct: &Direct, answers: &str) -> anyhow::Result<()> {
        let dir = direct.dir()?;
        transcript::restore(&dir.config(), self.session, &self.transcript)?;
        let lines = fs::read(file(&dir, self.session)?)?;
        let added = lines.strip_prefix(self.begun.as_slice()).context("it does not begin as it was begun")?;
        let answered = std::str::from_utf8(added)?.lines().filter(|line| line.contains(r#""type":"assistant""#));
        let answered = answered.filter(|line| line.contains(answers)).count();
        ensure!(answered == self.turns, "{answered} answers are left of {} turns", self.turns);
        Ok(())
    }
}

/// Where the CLI keeps `session` in `dir`.
fn file(dir: &JobDir, session: SessionId) -> anyhow::Result<PathBuf> {
    transcript_of(&dir.config(), &session.uuid().to_string()).context("there is no transcript")
}

/// Do what blocks.
fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
    block_in_place(|| {
        let started = Instant::now();
        let done = act();
        (done, started.elapsed())
    })
}
