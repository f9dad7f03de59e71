//! What the streams of the bench say: each piece tells its number and when it was due, and the rest of it is
//! known, so whoever hears one can tell whether it is the one they wait for and how late it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use shared::event::EventBody;

/// What fills a piece, so that its event is about 200 bytes as JSON: a delta of a real model, in its event.
const FILLING: &str = "\"naïve\" <b>&amp;</b> 🦀 and nothing lost, whatever it takes";

/// Nanoseconds since 1970, by the one clock that all processes of a machine share.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// How long it has been at `now` since `then`; nothing where the clock was set back.
pub fn between(then: u64, now: u64) -> Duration {
    Duration::from_nanos(now.saturating_sub(then))
}

/// The piece with the number `n`, which was due at `due`.
pub fn piece(n: u32, due: u64) -> EventBody {
    EventBody::TextDelta { message_id: "msg_1".to_owned(), text: format!("{n} {due} {FILLING}"), parent_tool_use_id: None }
}

/// When the piece number `n`, whose text is `text`, was due. Fails where it is another one.
pub fn due(n: usize, text: &str) -> anyhow::Result<u64> {
    let (number, rest) = text.split_once(' ').context("a piece has a number")?;
    let (due, filling) = rest.split_once(' ').context("a piece says when it was due")?;
    ensure!(number == n.to_string() && filling == FILLING, "the piece {n} says `{text}`");
    Ok(due.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_recognised_by_its_number_and_by_all_of_its_text() {
        let EventBody::TextDelta { text, .. } = piece(7, 1_234) else { panic!("a piece is text") };

        assert_eq!(due(7, &text).ok(), Some(1_234));
        assert!(due(8, &text).is_err());
        assert!(due(7, text.trim_end_matches('s')).is_err());
    }
}
