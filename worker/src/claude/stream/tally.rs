//! The tokens of messages that no result has accounted for yet: what is known of a process's use when it
//! does not come to tell it.

use std::collections::VecDeque;

use shared::job::Usage;

use super::line::Tokens;

/// Of more messages than this the oldest is not looked for any more: a sub-agent speaks one at a time.
const MAX_OPEN: usize = 128;

/// Tokens by message, as far as they were told.
#[derive(Default)]
pub(super) struct Tally {
    open: VecDeque<(String, Usage)>,
    /// Those that grew out of the list.
    closed: Usage,
}

impl Tally {
    /// The message `id` used so much so far. Its numbers come several times and only grow; a line that
    /// leaves one out, or tells an early one late, changes nothing.
    pub fn note(&mut self, id: &str, tokens: &Tokens) {
        let known = self.open.iter().position(|(known, _)| known == id);
        let at = known.unwrap_or_else(|| self.begin(id));
        let usage = &mut self.open[at].1;
        for (known, told) in [
            (&mut usage.input_tokens, tokens.input_tokens),
            (&mut usage.output_tokens, tokens.output_tokens),
            (&mut usage.cache_read_tokens, tokens.cache_read_input_tokens),
            (&mut usage.cache_write_tokens, tokens.cache_creation_input_tokens),
        ] {
            *known = told.map_or(*known, |told| told.max(*known));
        }
    }

    /// A place for the message `id`.
    fn begin(&mut self, id: &str) -> usize {
        if self.open.len() == MAX_OPEN
            && let Some((_, usage)) = self.open.pop_front()
        {
            self.closed = self.closed + usage;
        }
        self.open.push_back((id.to_owned(), Usage::default()));
        self.open.len() - 1
    }

    /// A result accounts for all of it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The sum.
    pub fn sum(&self) -> Usage {
        self.open.iter().fold(self.closed, |sum, (_, usage)| sum + *usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(input: Option<u64>, output: Option<u64>) -> Tokens {
        Tokens { input_tokens: input, output_tokens: output, ..Tokens::default() }
    }

    #[test]
    fn the_numbers_of_a_message_count_once_and_those_of_many_add_up() {
        let mut tally = Tally::default();

        tally.note("a", &tokens(Some(10), Some(1)));
        tally.note("b", &tokens(Some(5), Some(1)));
        tally.note("a", &tokens(None, Some(7)));
        tally.note("a", &tokens(Some(10), Some(1)));

        assert_eq!(tally.sum(), Usage { input_tokens: 15, output_tokens: 8, ..Usage::default() });
        tally.clear();
        assert_eq!(tally.sum(), Usage::default());
    }

    #[test]
    fn nothing_is_lost_of_more_messages_than_are_kept() {
        let mut tally = Tally::default();

        for n in 0..10_000 {
            tally.note(&format!("msg_{n}"), &tokens(Some(1), None));
        }

        assert_eq!((tally.sum().input_tokens, tally.open.len()), (10_000, MAX_OPEN));
    }
}
