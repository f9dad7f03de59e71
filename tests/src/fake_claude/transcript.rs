//! What the CLI writes down of a session, a line at a time as the turn goes on, so that a kill leaves what
//! was said until then. The closing lines, with what was spent, come only when the process ends in order.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use shared::time::Timestamp;

use crate::model::TranscriptFault;

use super::{
    VERSION, damage,
    inbox::Message,
    options::{Options, Start},
    past::Past,
    projects::Projects,
    spent::Spent,
    voice,
};

/// The transcript of this process's session. Its clones are the same one: a signal closes it, too.
#[derive(Clone)]
pub(super) struct Transcript(Arc<Mutex<Book>>);

/// Why a session cannot begin.
pub(super) enum Refusal {
    /// There is one of this id.
    IsInUse,
    /// There is none of this id to go on with.
    IsUnknown,
}

struct Book {
    /// `None` when nothing is written, or nothing more.
    path: Option<PathBuf>,
    /// Open from the first line on.
    file: Option<File>,
    session: String,
    working_dir: PathBuf,
    /// The id of the last message.
    leaf: Option<String>,
    /// Whether the former process's last message still awaits an answer.
    awaits_answer: bool,
    /// Whether the file's last line was cut.
    is_cut: bool,
    last_prompt: Option<String>,
    spent: Spent,
}

impl Transcript {
    /// Begin or resume the session `options` ask for, and say what came before.
    pub(super) fn open(options: &Options) -> Result<(Self, Past), Refusal> {
        let working_dir = std::env::current_dir().unwrap_or_default();
        let projects = options.config_dir.as_deref().map(|config| Projects::of(config, &working_dir));
        let session = &options.session;
        let (path, past) = match options.start {
            Start::Begun => {
                let path = projects.map(|projects| projects.file(session));
                if path.as_deref().is_some_and(Path::exists) {
                    return Err(Refusal::IsInUse);
                }
                (path, Past::default())
            }
            Start::Resumed => {
                let path = projects.and_then(|projects| projects.find(session)).ok_or(Refusal::IsUnknown)?;
                let past = fs::read(&path).ok().and_then(|transcript| Past::read(&transcript)).ok_or(Refusal::IsUnknown)?;
                (Some(path), past)
            }
        };
        let book = Book {
            path: path.filter(|_| options.is_kept),
            file: None,
            session: session.clone(),
            working_dir,
            leaf: past.leaf.clone(),
            awaits_answer: past.awaits_answer,
            is_cut: past.is_cut,
            last_prompt: None,
            spent: past.spent.clone(),
        };
        Ok((Self(Arc::new(Mutex::new(book))), past))
    }

    /// A message of the host waits.
    pub(super) fn enqueue(&self, message: &Message) {
        self.book().queue("enqueue", Some(&message.text));
    }

    /// A message of the host is taken up; `id` becomes its own.
    pub(super) fn take_up(&self, message: &Message, id: &str) {
        let mut book = self.book();
        book.queue("dequeue", None);
        if std::mem::take(&mut book.awaits_answer) {
            book.answer_the_former();
        }
        book.last_prompt = Some(message.text.clone());
        book.message("user", id, &json!({"role": "user", "content": message.content}), json!({"promptSource": "sdk"}));
    }

    /// A message of the model, or of the CLI in a person's name, with fields that only this kind has.
    pub(super) fn message(&self, kind: &str, id: &str, message: &Value, more: Value) {
        self.book().message(kind, id, message, more);
    }

    /// What was spent until now.
    pub(super) fn note_spent(&self, spent: &Spent) {
        self.book().spent = spent.clone();
    }

    /// Let `fault` happen to the file.
    pub(super) fn suffer(&self, fault: TranscriptFault) {
        let mut book = self.book();
        let Some(path) = book.path.clone() else { return };
        if damage::inflict(fault, &path, &book.session).is_err() {
            voice::complain("the transcript cannot be broken");
        }
        if !matches!(fault, TranscriptFault::Talk(_) | TranscriptFault::Grow(_)) {
            book.give_up();
        }
    }

    /// Write what an orderly end leaves; nothing is written after it.
    pub(super) fn close(&self) {
        let mut book = self.book();
        // Who resumed and said nothing leaves its mark as well.
        if book.file.is_some() || book.leaf.is_some() {
            book.close();
        }
        book.give_up();
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn queue(&mut self, operation: &str, content: Option<&str>) {
        let mut line = json!({"type": "queue-operation", "operation": operation, "timestamp": Timestamp::now(), "sessionId": self.session});
        if let Some(content) = content {
            line["content"] = json!(content);
        }
        self.write(&line);
    }

    /// The real CLI never lets two prompts follow each other.
    fn answer_the_former(&mut self) {
        let message = json!({
            "id": uuid::Uuid::new_v4(), "type": "message", "role": "assistant", "model": "<synthetic>",
            "content": [{"type": "text", "text": "No response requested."}], "stop_reason": "stop_sequence", "stop_sequence": "",
        });
        self.message("assistant", &uuid::Uuid::new_v4().to_string(), &message, json!({"isApiErrorMessage": false}));
    }

    fn message(&mut self, kind: &str, id: &str, message: &Value, more: Value) {
        let mut line = json!({
            "parentUuid": self.leaf, "isSidechain": false, "type": kind, "message": message, "uuid": id, "timestamp": Timestamp::now(),
            "userType": "external", "entrypoint": "sdk-cli", "cwd": self.working_dir.to_string_lossy(), "sessionId": self.session,
            "version": VERSION,
        });
        if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
            line.extend(more);
        }
        self.write(&line);
        self.leaf = Some(id.to_owned());
    }

    fn close(&mut self) {
        if let Some(prompt) = &self.last_prompt {
            let line = json!({"type": "last-prompt", "lastPrompt": prompt, "leafUuid": self.leaf, "sessionId": self.session});
            self.write(&line);
        }
        let line = json!({
            "type": "cost-state", "sessionId": self.session, "totalCostUSD": self.spent.dollars(), "modelUsage": self.spent.json(),
            "hasUnknownModelCost": false,
        });
        self.write(&line);
    }

    /// Append `line` with one write, so that whoever reads meanwhile sees it whole or not at all.
    fn write(&mut self, line: &Value) {
        if self.try_write(line).is_err() {
            voice::complain("the transcript cannot be written");
            self.give_up();
        }
    }

    fn try_write(&mut self, line: &Value) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut text = if std::mem::take(&mut self.is_cut) { b"\n".to_vec() } else { Vec::new() };
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
        let file = if let Some(file) = &mut self.file { file } else { self.file.insert(open(path)?) };
        file.write_all(&text)
    }

    fn give_up(&mut self) {
        self.path = None;
        self.file = None;
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}
