//! Lines of a child's output, bounded. The CLI never waits for its reader, and a line may be a whole
//! image: without a bound one line could take all the memory.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// How much is read from the pipe at once.
const CHUNK: usize = 64 * 1024;

/// Reads lines of at most a given length.
pub struct Lines<R> {
    source: BufReader<R>,
    partial: Vec<u8>,
    limit: usize,
    is_overrun: bool,
}

/// Why a line could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The line is longer than the limit. The rest of the output is not read any more.
    #[error("line is longer than {limit} bytes")]
    TooLong {
        /// The most bytes a line may have, its end not counted.
        limit: usize,
    },
    /// The pipe could not be read.
    #[error("could not read a line")]
    Io(#[from] io::Error),
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// The lines of `source`, each at most `limit` bytes long.
    pub fn new(source: R, limit: usize) -> Self {
        Self { source: BufReader::with_capacity(CHUNK, source), partial: Vec::new(), limit, is_overrun: false }
    }

    /// The next line without its end, or `None` at the end of the output. Cancel-safe: what was read of
    /// a line stays for the next call.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        loop {
            if self.is_overrun {
                return Err(LineError::TooLong { limit: self.limit });
            }
            let chunk = self.source.fill_buf().await?;
            if chunk.is_empty() {
                return Ok((!self.partial.is_empty()).then(|| std::mem::take(&mut self.partial)));
            }
            let end = memchr::memchr(b'\n', chunk);
            let piece = &chunk[..end.unwrap_or(chunk.len())];
            if self.partial.len() + piece.len() > self.limit {
                self.is_overrun = true;
                self.partial = Vec::new();
                continue;
            }
            reserve(&mut self.partial, piece.len(), self.limit);
            self.partial.extend_from_slice(piece);
            let used = piece.len() + usize::from(end.is_some());
            self.source.consume(used);
            if end.is_some() {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
        }
    }
}

/// Make room as a vector does, by doubling, but never beyond the limit.
fn reserve(partial: &mut Vec<u8>, more: usize, limit: usize) {
    let needed = partial.len() + more;
    if needed > partial.capacity() {
        let room = needed.max((partial.capacity() * 2).min(limit));
        partial.reserve_exact(room - partial.len());
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, task::Context};

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn lines_come_whole_and_a_last_one_needs_no_end() {
        let mut lines = Lines::new(&b"one\n\ntwo"[..], 3);

        assert_eq!(lines.next().await.unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(lines.next().await.unwrap().as_deref(), Some(&b""[..]));
        assert_eq!(lines.next().await.unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_line_beyond_the_limit_is_an_error_that_stays() {
        let mut lines = Lines::new(&b"1234\n12345\n1\n"[..], 4);

        assert_eq!(lines.next().await.unwrap().as_deref(), Some(&b"1234"[..]));
        for _ in 0..2 {
            assert!(matches!(lines.next().await, Err(LineError::TooLong { limit: 4 })));
        }
    }

    #[tokio::test]
    async fn what_was_read_of_a_line_survives_a_cancelled_call() {
        let (mut writer, reader) = tokio::io::duplex(64);
        let mut lines = Lines::new(reader, 100);
        writer.write_all(b"first ").await.unwrap();

        {
            let mut cancelled = std::pin::pin!(lines.next());
            assert!(cancelled.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
        }
        writer.write_all(b"half\n").await.unwrap();

        assert_eq!(lines.next().await.unwrap().as_deref(), Some(&b"first half"[..]));
    }

    #[test]
    fn memory_never_exceeds_the_limit() {
        let mut partial = Vec::new();
        for _ in 0..100 {
            reserve(&mut partial, 10, 1000);
            partial.extend_from_slice(&[0; 10]);
            assert!(partial.capacity() <= 1000, "{}", partial.capacity());
        }
    }
}
