//! The events of one running attempt. The worker is their source of truth until the job has ended: Redis
//! may lose any of them and ask again. The newest stay in memory, all of them go to a file once they
//! are many.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
};

use bytes::Bytes;

/// What stays in memory, in bytes; beyond it all events are in the file as well.
const MEMORY: usize = 1024 * 1024;

/// The most bytes of one attempt's events, but for its last one.
pub const CAPACITY: usize = 16 * 1024 * 1024;

/// The attempt produced more than its events may take, or the file could not take it.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Too much output.
    #[error("the attempt's events passed {CAPACITY} bytes")]
    Full,
    /// The disk.
    #[error("could not spill events to a file")]
    Io(#[from] io::Error),
}

/// An append-only list of events with a bounded share of memory.
pub struct Spool {
    path: PathBuf,
    file: Option<Spilled>,
    memory: VecDeque<Bytes>,
    memory_bytes: usize,
    len: u32,
    bytes: usize,
}

struct Spilled {
    file: File,
    /// Where each event begins.
    offsets: Vec<u64>,
    end: u64,
}

impl Spool {
    /// An empty list that would spill to a file at `path`, which is gone with it.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, memory: VecDeque::new(), memory_bytes: 0, len: 0, bytes: 0 }
    }

    /// How many events there are.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// How large they are together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Append an event.
    pub fn push(&mut self, json: Bytes) -> Result<(), SpoolError> {
        if self.bytes + json.len() > CAPACITY {
            return Err(SpoolError::Full);
        }
        self.push_last(json)
    }

    /// Append an event that must not be missing, whatever the capacity says.
    pub fn push_last(&mut self, json: Bytes) -> Result<(), SpoolError> {
        if let Some(spilled) = &mut self.file {
            spilled.write(&json)?;
        }
        self.len += 1;
        self.bytes += json.len();
        self.memory_bytes += json.len();
        self.memory.push_back(json);
        if self.memory_bytes > MEMORY {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<(), SpoolError> {
        if self.file.is_none() {
            let file = File::options().create_new(true).read(true).write(true).open(&self.path)?;
            // Nobody else needs its name, and without one it goes with this process, however that ends.
            fs::remove_file(&self.path)?;
            let mut spilled = Spilled { file, offsets: Vec::new(), end: 0 };
            for json in &self.memory {
                spilled.write(json)?;
            }
            self.file = Some(spilled);
        }
        while self.memory_bytes > MEMORY {
            let Some(oldest) = self.memory.pop_front() else { break };
            self.memory_bytes -= oldest.len();
        }
        Ok(())
    }

    /// Events from number `from` on, at least one if there is one, at most `limit` and about `max_bytes`.
    pub fn read(&mut self, from: u32, limit: usize, max_bytes: usize) -> Result<Vec<Bytes>, SpoolError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for n in from..self.len {
            let json = self.get(n)?;
            bytes += json.len();
            if !batch.is_empty() && (bytes > max_bytes || batch.len() == limit) {
                break;
            }
            batch.push(json);
        }
        Ok(batch)
    }

    fn get(&mut self, n: u32) -> Result<Bytes, SpoolError> {
        let in_memory = self.memory.len();
        let oldest = self.len as usize - in_memory;
        let n = n as usize;
        match (n.checked_sub(oldest), &mut self.file) {
            (Some(place), _) => Ok(self.memory[place].clone()),
            (None, Some(spilled)) => Ok(spilled.read(n)?),
            (None, None) => Err(SpoolError::Io(io::ErrorKind::NotFound.into())),
        }
    }

    /// All events, one a line.
    pub fn lines(&mut self) -> Result<Vec<u8>, SpoolError> {
        let mut lines = Vec::with_capacity(self.bytes + self.len as usize);
        for n in 0..self.len {
            lines.extend_from_slice(&self.get(n)?);
            lines.push(b'\n');
        }
        Ok(lines)
    }
}

impl Spilled {
    fn write(&mut self, json: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(json)?;
        self.offsets.push(self.end);
        self.end += json.len() as u64;
        Ok(())
    }

    fn read(&mut self, n: usize) -> io::Result<Bytes> {
        let start = self.offsets[n];
        let end = self.offsets.get(n + 1).copied().unwrap_or(self.end);
        let mut json = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
        self.file.seek(SeekFrom::Start(start))?;
        self.file.read_exact(&mut json)?;
        Ok(json.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u32, bytes: usize) -> Bytes {
        format!("{n}{}", "x".repeat(bytes - n.to_string().len())).into()
    }

    #[test]
    fn many_events_are_read_back_from_memory_and_file_alike() {
        let folder = std::env::temp_dir().join(format!("spool-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&folder).expect("a folder");
        let mut spool = Spool::new(folder.join("events"));

        for n in 0..300 {
            spool.push(event(n, 10_000)).expect("room");
        }

        assert!(spool.memory_bytes <= MEMORY);
        assert_eq!(fs::read_dir(&folder).expect("read").count(), 0);
        for from in [0, 1, 150, 299] {
            assert_eq!(spool.read(from, 1, usize::MAX).expect("read"), [event(from, 10_000)]);
        }
        assert_eq!(spool.read(0, 1000, 25_000).expect("read").len(), 2);
        assert_eq!(spool.lines().expect("lines").split_inclusive(|&byte| byte == b'\n').count(), 300);
        fs::remove_dir_all(&folder).expect("clean");
    }

    #[test]
    fn a_full_spool_takes_only_the_last_event() {
        let folder = std::env::temp_dir().join(format!("spool-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&folder).expect("a folder");
        let mut spool = Spool::new(folder.join("events"));
        for n in 0..16 {
            spool.push(event(n, 1024 * 1024)).expect("room");
        }

        assert!(matches!(spool.push(event(16, 2)), Err(SpoolError::Full)));
        spool.push_last(event(16, 5)).expect("the last event always fits");

        assert_eq!(spool.read(16, 9, usize::MAX).expect("read"), [event(16, 5)]);
        fs::remove_dir_all(&folder).expect("clean");
    }
}
