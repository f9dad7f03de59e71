//! A transcript read back: the conversation a resumed session goes on with. Lines that cannot be read are
//! passed over, as the real CLI does with one that was cut.

use std::collections::HashMap;

use serde_json::Value;

use crate::model::said_in;

use super::spent::Spent;

/// What happened before this process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    /// The id of the last message.
    pub(super) leaf: Option<String>,
    /// All that a person said on the way to it, oldest first.
    pub(super) said: Vec<String>,
    /// Whether the last message is a person's: its process ended before the model could answer.
    pub(super) awaits_answer: bool,
    pub(super) spent: Spent,
    /// Whether the last line does not end as a line does.
    pub(super) is_cut: bool,
}

/// A line that has a place in the conversation.
struct Link {
    id: String,
    parent: Option<String>,
    content: Content,
}

enum Content {
    /// What a person said.
    Prompt(Vec<String>),
    /// A message of the model, or of a tool to it.
    Answer,
    /// No message.
    Other,
}

impl Past {
    /// Read a transcript. `None` when there is no conversation in it.
    pub(super) fn read(transcript: &[u8]) -> Option<Self> {
        let mut links = Vec::new();
        let mut spent = Spent::default();
        for line in transcript.split(|byte| *byte == b'\n') {
            let Ok(line) = serde_json::from_slice::<Value>(line) else { continue };
            if line["type"] == "cost-state" {
                spent = Spent::read(&line["modelUsage"]);
            } else {
                links.extend(Link::read(&line));
            }
        }
        let last = links.iter().rposition(|link| !matches!(link.content, Content::Other))?;
        Some(Self {
            leaf: Some(links[last].id.clone()),
            awaits_answer: matches!(links[last].content, Content::Prompt(_)),
            said: said_until(&links, last),
            spent,
            is_cut: !transcript.ends_with(b"\n"),
        })
    }
}

impl Link {
    fn read(line: &Value) -> Option<Self> {
        let content = &line["message"]["content"];
        let content = match line["type"].as_str() {
            Some("user" | "assistant") if line["isSidechain"] == true => Content::Other,
            Some("user") if content[0]["type"] != "tool_result" => Content::Prompt(said_in(content)),
            Some("user" | "assistant") => Content::Answer,
            _ => Content::Other,
        };
        Some(Self { id: line["uuid"].as_str()?.to_owned(), parent: line["parentUuid"].as_str().map(str::to_owned), content })
    }
}

/// Follow the parents from the link number `last`: what two processes wrote at once is two branches, and
/// only one of them is remembered. Where a parent is lost, the line before stands in for it.
fn said_until(links: &[Link], last: usize) -> Vec<String> {
    let places: HashMap<&str, usize> = links.iter().enumerate().map(|(place, link)| (link.id.as_str(), place)).collect();
    let mut said = Vec::new();
    let mut next = Some(last);
    while let Some(place) = next {
        let link = &links[place];
        if let Content::Prompt(texts) = &link.content {
            said.extend(texts.iter().rev().cloned());
        }
        next = match &link.parent {
            None => None,
            // An earlier one alone, so that no circle holds us.
            Some(parent) => places.get(parent.as_str()).copied().filter(|parent| *parent < place).or(place.checked_sub(1)),
        };
    }
    said.reverse();
    said
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Usage;

    fn user(id: &str, parent: Option<&str>, text: &str) -> String {
        let message = json!({"role": "user", "content": text});
        json!({"type": "user", "uuid": id, "parentUuid": parent, "isSidechain": false, "message": message}).to_string()
    }

    fn assistant(id: &str, parent: &str) -> String {
        let message = json!({"role": "assistant", "content": [{"type": "text", "text": "yes"}]});
        json!({"type": "assistant", "uuid": id, "parentUuid": parent, "isSidechain": false, "message": message}).to_string()
    }

    fn read(lines: &[String]) -> Option<Past> {
        Past::read((lines.join("\n") + "\n").as_bytes())
    }

    #[test]
    fn a_transcript_tells_what_was_said_and_spent() {
        let spent = Spent::by("m", Usage::uncached(7));
        let state = json!({"type": "cost-state", "modelUsage": spent.json()}).to_string();

        let past = read(&[user("1", None, "a"), assistant("2", "1"), state, user("3", Some("2"), "b")]).expect("a conversation");

        assert_eq!(past.said, ["a", "b"]);
        assert_eq!((past.leaf.as_deref(), past.awaits_answer, past.is_cut), (Some("3"), true, false));
        assert_eq!(past.spent, spent);
    }

    #[test]
    fn a_line_that_is_cut_is_as_if_it_were_not_there() {
        let whole = [user("1", None, "a"), assistant("2", "1")].join("\n");

        let past = Past::read(&whole.as_bytes()[..whole.len() - 20]).expect("a conversation");

        assert_eq!(past.said, ["a"]);
        assert!(past.awaits_answer && past.is_cut);
    }

    #[test]
    fn of_two_branches_the_last_one_is_remembered() {
        let lines = [user("1", None, "a"), assistant("2", "1"), user("3", Some("2"), "b"), user("4", Some("2"), "c"), assistant("5", "4")];

        assert_eq!(read(&lines).expect("a conversation").said, ["a", "c"]);
    }

    #[test]
    fn a_lost_line_does_not_end_the_memory() {
        let lines = [user("1", None, "a"), assistant("2", "1"), user("4", Some("3"), "c"), assistant("5", "5")];

        assert_eq!(read(&lines).expect("a conversation").said, ["a", "c"]);
    }

    #[test]
    fn a_file_without_a_message_is_no_conversation() {
        for text in ["", "\n", "root:x:0:0\n", r#"{"type":"cost-state","modelUsage":{}}"#, r#"{"type":"attachment","uuid":"1"}"#] {
            assert_eq!(Past::read(text.as_bytes()), None, "{text}");
        }
    }
}
