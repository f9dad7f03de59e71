//! What only a broken CLI does: the `cli:…` steps of a script. The API takes them for plain prompts.

use super::script::MAX_BYTES;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CliFault {
    /// `exit:CODE`: ends at once, without a result.
    Exit(u8),
    /// `crash`: aborts after two deltas.
    Crash,
    /// `garbage`: lines that are no JSON, then answers.
    Garbage,
    /// `longline:BYTES`: one line so long, then answers.
    LongLine(usize),
    /// `hang`: answers nothing any more, also not to control requests and the end of its input.
    Hang,
    /// `ignore_term`: SIGTERM no longer ends it.
    IgnoreTerm,
    /// `linger`: answers, and does not end with its input.
    Linger,
    /// `children:N`: starts processes that ignore SIGTERM, some outside its session.
    Children(u8),
    /// `noresult`: answers and exits 0 without a result.
    NoResult,
    /// `withdraw`: takes back what it streamed and streams something else.
    Withdraw,
    /// `stderr:TEXT`: says this on stderr, then answers.
    Stderr(String),
    /// `transcript:…`: answers, then does this to the session's file.
    Transcript(TranscriptFault),
    /// `unknown`: lines and fields of a CLI from the future, then answers.
    Unknown,
}

/// What a session's file can become. After all but the last two the CLI writes to it no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranscriptFault {
    /// `empty`: nothing is left in it.
    Empty,
    /// `garbage`: it holds lines that are no JSON.
    Garbage,
    /// `cut`: its last line ends in its middle.
    Cut,
    /// `gone`: it is removed.
    Gone,
    /// `symlink`: it is a link to a file that is none of the session's.
    Symlink,
    /// `talk:BYTES`: it is filled up to about this size with messages that are no part of the conversation.
    Talk(usize),
    /// `grow:BYTES`: it is filled up to this size with lines that are no part of the conversation and hard to
    /// compress.
    Grow(usize),
}

impl CliFault {
    /// Read what follows `cli:`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (word, rest) = text.split_once(':').map_or((text, None), |(word, rest)| (word, Some(rest)));
        match (word, rest) {
            ("exit", Some(code)) => Some(Self::Exit(code.parse().ok()?)),
            ("crash", None) => Some(Self::Crash),
            ("garbage", None) => Some(Self::Garbage),
            ("longline", Some(bytes)) => Some(Self::LongLine(bytes.parse().ok().filter(|bytes| *bytes <= MAX_BYTES)?)),
            ("hang", None) => Some(Self::Hang),
            ("ignore_term", None) => Some(Self::IgnoreTerm),
            ("linger", None) => Some(Self::Linger),
            ("children", Some(count)) => Some(Self::Children(count.parse().ok()?)),
            ("noresult", None) => Some(Self::NoResult),
            ("withdraw", None) => Some(Self::Withdraw),
            ("stderr", Some(text)) => Some(Self::Stderr(text.into())),
            ("transcript", Some(fault)) => Some(Self::Transcript(TranscriptFault::parse(fault)?)),
            ("unknown", None) => Some(Self::Unknown),
            _ => None,
        }
    }
}

impl TranscriptFault {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "empty" => Some(Self::Empty),
            "garbage" => Some(Self::Garbage),
            "cut" => Some(Self::Cut),
            "gone" => Some(Self::Gone),
            "symlink" => Some(Self::Symlink),
            text => {
                let (word, bytes) = text.split_once(':')?;
                let bytes = bytes.parse().ok().filter(|bytes| *bytes <= MAX_BYTES)?;
                match word {
                    "talk" => Some(Self::Talk(bytes)),
                    "grow" => Some(Self::Grow(bytes)),
                    _ => None,
                }
            }
        }
    }
}
