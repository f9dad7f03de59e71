//! Text that reads like one to a machine: made-up words, of which a few come often and most rarely, in lines
//! and with quotation marks. It compresses about as people's text does.

use super::filling::mix;

/// How many words there are.
const WORDS: u64 = 8000;
/// How many of them the longest text has.
const LONGEST: u64 = 1500;

/// The text number `number`, always the same.
pub fn prose(number: u64) -> String {
    let mut dice = Dice(mix(number));
    let mut text = String::new();
    for _ in 0..=dice.rarely_large(LONGEST) {
        text += &word(dice.rarely_large(WORDS));
        text += match dice.roll(40) {
            0 => ".\n\n",
            1 | 2 => ",\n    ",
            3 => " \"",
            _ => " ",
        };
    }
    text
}

/// Numbers without a pattern.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % sides
    }

    fn rarely_large(&mut self, sides: u64) -> u64 {
        self.roll(sides) * self.roll(sides) / sides
    }
}

/// The word number `number`.
fn word(number: u64) -> String {
    const SYLLABLES: [&str; 16] = ["ba", "den", "fi", "gor", "ka", "le", "min", "no", "pu", "ras", "se", "ti", "u", "ver", "wo", "zy"];
    let mut bits = mix(number);
    let count = 1 + bits % 4;
    let mut word = String::new();
    for _ in 0..count {
        bits /= 16;
        word += SYLLABLES[usize::try_from(bits % 16).unwrap_or_default()];
    }
    word
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_text_is_always_the_same_and_like_no_other() {
        let texts: BTreeSet<String> = (0..100).map(prose).collect();

        assert_eq!(texts.len(), 100);
        assert!((0..100).all(|number| texts.contains(&prose(number))));
    }

    #[test]
    fn texts_are_as_long_as_messages_are() {
        let mut lengths: Vec<usize> = (0..1000).map(|number| prose(number).len()).collect();
        lengths.sort_unstable();

        assert!((500..3000).contains(&lengths[500]) && lengths[0] < 100 && lengths[999] < 15_000, "{lengths:?}");
    }
}
