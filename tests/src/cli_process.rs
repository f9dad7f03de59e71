//! A CLI, scripted or real, that a test talks to line by line.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Value, json};

use crate::recording::kind;

/// Longer than any CLI should be silent in a test; a longer silence is a failure, not a hang.
const PATIENCE: Duration = Duration::from_mins(1);

/// A child that speaks stream-json. Killed when dropped.
pub struct CliProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
    reader: Option<JoinHandle<()>>,
    heard: Vec<Value>,
}

impl CliProcess {
    /// Start `command` with its input and output connected. Lines that are no JSON are left out.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (sender, lines) = sync_channel(1024);
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let Ok(line) = serde_json::from_slice(&line) else { continue };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, stdin, lines, reader: Some(reader), heard: Vec::new() })
    }

    /// All that `command` prints, and its exit code, when it is asked `prompt`; it is interrupted at the
    /// first line of the kind `interrupt_at`.
    pub fn play(command: &mut Command, prompt: &str, interrupt_at: Option<&str>) -> io::Result<(Vec<Value>, Option<i32>)> {
        let mut cli = Self::spawn(command)?;
        cli.ask(prompt)?;
        if let Some(kind) = interrupt_at {
            cli.until(kind)?;
            cli.interrupt()?;
        }
        cli.until("result")?;
        cli.finish()
    }

    /// Write one line.
    pub fn write(&mut self, line: &Value) -> io::Result<()> {
        let stdin = self.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(format!("{line}\n").as_bytes())
    }

    /// Send a user message.
    pub fn ask(&mut self, text: &str) -> io::Result<()> {
        self.write(&json!({"type": "user", "message": {"role": "user", "content": text}}))
    }

    /// Send the message that the product asks a CLI with what it offers.
    pub fn greet(&mut self) -> io::Result<()> {
        let message = worker::claude::control::silent_message(uuid::Uuid::new_v4());
        self.write(&serde_json::from_str(&message)?)
    }

    /// Send the control request to interrupt the turn.
    pub fn interrupt(&mut self) -> io::Result<()> {
        self.write(&json!({"type": "control_request", "request_id": "int-1", "request": {"subtype": "interrupt"}}))
    }

    /// Read on until a line whose kind starts with `start`. `None` when the output ends before.
    pub fn until(&mut self, start: &str) -> io::Result<Option<Value>> {
        while let Some(line) = self.next()? {
            if kind(&line).starts_with(start) {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// Close the input, read to the end and say what was printed in all, and the exit code.
    pub fn finish(mut self) -> io::Result<(Vec<Value>, Option<i32>)> {
        self.stdin = None;
        while self.next()?.is_some() {}
        let status = self.child.wait()?;
        Ok((std::mem::take(&mut self.heard), status.code()))
    }

    /// Wait for its exit code; its output may stay open for longer.
    pub fn wait(&mut self) -> io::Result<Option<i32>> {
        Ok(self.child.wait()?.code())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn next(&mut self) -> io::Result<Option<Value>> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                self.heard.push(line.clone());
                Ok(Some(line))
            }
            Err(Disconnected) => Ok(None),
            Err(Timeout) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("silence after {:?}", self.heard.last().map(kind)))),
        }
    }
}

impl Drop for CliProcess {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A reader blocked on a full channel has to see that nobody listens.
        self.lines = sync_channel(1).1;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
