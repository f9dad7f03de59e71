//! An HTTP/1.1 answer without an end, taken apart as it comes: what a client of 10,000 of them can afford.

use anyhow::{bail, ensure};

/// The most that a head may have.
const LONGEST_HEAD: usize = 8 * 1024;

/// One answer.
#[derive(Default)]
pub struct Answer {
    state: State,
    /// What came of the body and was not taken yet.
    pub body: Vec<u8>,
}

#[derive(Default)]
enum State {
    #[default]
    Start,
    /// The head so far.
    Head(Vec<u8>),
    /// The size of the next chunk, as far as its digits are there.
    Size(usize),
    /// So much of the chunk is to come.
    Chunk(usize),
    AfterChunk,
    AfterLast,
    Ended,
}

impl Answer {
    /// Whether the head is there.
    pub fn has_begun(&self) -> bool {
        !matches!(self.state, State::Start | State::Head(_))
    }

    /// Whether the last chunk is there: a body that was cut off has none.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Take up what came next.
    pub fn push(&mut self, mut bytes: &[u8]) -> anyhow::Result<()> {
        while let Some((&byte, rest)) = bytes.split_first() {
            match &mut self.state {
                State::Start => self.state = State::Head(Vec::new()),
                State::Head(head) => {
                    head.push(byte);
                    bytes = rest;
                    if head.ends_with(b"\r\n\r\n") {
                        check(head)?;
                        self.state = State::Size(0);
                    } else if head.len() > LONGEST_HEAD {
                        bail!("a head without an end");
                    }
                }
                State::Size(size) => {
                    bytes = rest;
                    match (byte, char::from(byte).to_digit(16)) {
                        (_, Some(digit)) => *size = *size * 16 + digit as usize,
                        (b'\r', _) => {}
                        (b'\n', _) if *size == 0 => self.state = State::AfterLast,
                        (b'\n', _) => self.state = State::Chunk(*size),
                        _ => bail!("no size of a chunk: {byte:#x}"),
                    }
                }
                State::Chunk(left) => {
                    let (chunk, rest) = bytes.split_at(bytes.len().min(*left));
                    self.body.extend_from_slice(chunk);
                    bytes = rest;
                    *left -= chunk.len();
                    if *left == 0 {
                        self.state = State::AfterChunk;
                    }
                }
                State::AfterChunk | State::AfterLast => {
                    bytes = rest;
                    match byte {
                        b'\r' => {}
                        b'\n' if matches!(self.state, State::AfterLast) => self.state = State::Ended,
                        b'\n' => self.state = State::Size(0),
                        _ => bail!("a chunk that is longer than its size"),
                    }
                }
                State::Ended => bail!("something after the end of an answer"),
            }
        }
        Ok(())
    }
}

fn check(head: &[u8]) -> anyhow::Result<()> {
    let head = String::from_utf8_lossy(head).to_lowercase();
    let is_stream = head.starts_with("http/1.1 200 ")
        && head.contains("\r\ntransfer-encoding: chunked\r\n")
        && head.contains("\r\ncontent-type: text/event-stream\r\n");
    ensure!(is_stream, "no stream of events: {head}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

    #[test]
    fn a_body_is_the_same_however_it_is_cut() {
        let whole = format!("{HEAD}5\r\nid: 1\r\n19\r\n-0\ndata: two\r\nlines, 25 b\r\n0\r\n\r\n");
        for size in 1..whole.len() {
            let mut answer = Answer::default();

            for piece in whole.as_bytes().chunks(size) {
                answer.push(piece).expect("an answer");
            }

            assert!(answer.has_begun() && answer.has_ended());
            assert_eq!(answer.body, b"id: 1-0\ndata: two\r\nlines, 25 b", "cut at {size}");
        }
    }

    #[test]
    fn what_is_cut_off_has_not_ended() {
        let mut answer = Answer::default();

        answer.push(format!("{HEAD}5\r\nid: 1\r\n").as_bytes()).expect("an answer");

        assert!(answer.has_begun() && !answer.has_ended());
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        for head in [HEAD.replace("200", "503"), HEAD.replace("chunked", "gzip"), HEAD.replace("event-stream", "plain")] {
            assert!(Answer::default().push(head.as_bytes()).is_err(), "{head}");
        }
        assert!(Answer::default().push(format!("{HEAD}2\r\nabc\r\n").as_bytes()).is_err());
    }
}
