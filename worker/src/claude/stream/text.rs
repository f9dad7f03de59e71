//! Texts as large as events may hold them. Cuts fall between characters.

use serde_json::value::RawValue;

use super::line::Output;

/// The longest piece of text in one event, in bytes.
pub const MAX_DELTA_BYTES: usize = 32 * 1024;

/// The most of a tool's output that is shown, in bytes.
pub const MAX_OUTPUT_BYTES: usize = 16 * 1024;

/// `text` in pieces that fit in an event; none of an empty text.
pub(super) fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (piece, rest) = text.split_at(text.floor_char_boundary(MAX_DELTA_BYTES));
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// A tool's output as far as it is shown, and whether it was cut. What is not text is named.
pub(super) fn shown(content: &RawValue) -> (String, bool) {
    let mut output = match serde_json::from_str(content.get()) {
        Ok(Output::Text(text)) => text,
        Ok(Output::Blocks(blocks)) => {
            let blocks = blocks.into_iter().map(|block| block.text.unwrap_or_else(|| format!("[{}]", block.kind)));
            blocks.collect::<Vec<_>>().join("\n")
        }
        Err(_) => String::new(),
    };
    let end = output.floor_char_boundary(MAX_OUTPUT_BYTES);
    let truncated = end < output.len();
    output.truncate(end);
    (output, truncated)
}

/// A text that may become a database column, where NUL cannot be.
pub(super) fn column(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
