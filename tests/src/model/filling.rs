//! Text that only has to be long: the same for the same length, and no easier to compress than hexadecimal
//! digits are.

use std::fmt::Write as _;

/// `bytes` bytes of it.
pub fn filling(bytes: usize) -> String {
    filling_from(0, bytes)
}

/// `bytes` bytes that are not in the filling before number `first`, where each number has sixteen of them.
pub fn filling_from(first: u64, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes.next_multiple_of(16));
    for number in (first..).take(bytes.div_ceil(16)) {
        write!(text, "{:016x}", mix(number)).expect("memory takes every write");
    }
    text.truncate(bytes);
    text
}

/// The finalizer of `SplitMix64`: neighbours become strangers.
pub(super) const fn mix(number: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_filling_is_as_long_as_asked_for_and_always_the_same() {
        for bytes in [0, 1, 16, 1000] {
            assert_eq!(filling(bytes).len(), bytes);
        }
        assert!(filling(1000).starts_with(&filling(100)));
    }

    #[test]
    fn a_filling_goes_on_from_any_number() {
        assert_eq!(filling(64)[32..], filling_from(2, 32));
    }

    #[test]
    fn a_filling_does_not_repeat_itself() {
        let text = filling(160_000);

        let parts: BTreeSet<_> = text.as_bytes().chunks(16).collect();

        assert_eq!(parts.len(), 10_000);
    }
}
