//! A tool of the CLI that jobs may ask for. What may not ([`crate::job::may_be_offered`]) is never one.

use std::{convert::Infallible, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Whether this may be the name of an MCP server: it is a part of its tools' names, `mcp__<server>__<tool>`.
pub fn is_mcp_server_name(name: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    name.len() <= 32 && name.starts_with(|first: char| first.is_ascii_lowercase()) && name.split('_').all(is_word)
}

/// What a list of allowed tools allows of an MCP server: nothing, all of it (`None` within), or some of its tools.
pub fn allowed_of_mcp_server(allowed: Option<&[String]>, server: &str) -> Option<Option<Vec<String>>> {
    let Some(allowed) = allowed else { return Some(None) };
    let whole = format!("mcp__{server}");
    if allowed.contains(&whole) {
        return Some(None);
    }
    let some: Vec<String> = allowed.iter().filter_map(|tool| tool.strip_prefix(&whole)?.strip_prefix("__")).map(str::to_owned).collect();
    (!some.is_empty()).then_some(Some(some))
}

/// What a tool acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// The files of the workspace.
    Files,
    /// Looks for things in them.
    Search,
    /// Runs commands.
    Shell,
    /// The world outside.
    Web,
    /// Agents of the same job.
    Agents,
    /// The model's own notes.
    Planning,
    /// Anything else.
    Other,
}

impl Category {
    /// Every category.
    pub const ALL: [Self; 7] = [Self::Files, Self::Search, Self::Shell, Self::Web, Self::Agents, Self::Planning, Self::Other];

    /// The word for it in the record and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Search => "search",
            Self::Shell => "shell",
            Self::Web => "web",
            Self::Agents => "agents",
            Self::Planning => "planning",
            Self::Other => "other",
        }
    }
}

impl FromStr for Category {
    type Err = Infallible;

    /// A word of another version of this service is read as [`Category::Other`].
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::ALL.into_iter().find(|category| category.as_str() == text).unwrap_or(Self::Other))
    }
}

/// What a CLI announces, with our words about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedTool {
    /// The CLI's name for it, as clients use it.
    pub name: String,
    /// What it does, in a sentence; absent of a tool we do not know.
    pub description: Option<String>,
    /// What it acts on.
    pub category: Category,
}

/// A tool as the record has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The CLI's name for it.
    pub name: String,
    /// What it does, in a sentence.
    pub description: Option<String>,
    /// What it acts on.
    pub category: Category,
    /// Whether an admin lets jobs use it.
    pub enabled: bool,
    /// The versions of the CLI that have it, of those that are looked at.
    pub cli_versions: Vec<String>,
    /// When one of them was first seen with it.
    pub first_seen_at: Timestamp,
    /// When one of them was last seen with it.
    pub last_seen_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_category_is_read_back_and_an_unknown_one_is_another() {
        for category in Category::ALL {
            assert_eq!(category.as_str().parse(), Ok(category));
        }
        assert_eq!("time travel".parse(), Ok(Category::Other));
    }

    #[test]
    fn a_list_of_tools_allows_all_of_a_server_or_some_of_it_or_nothing() {
        let list = ["Read", "mcp__docs", "mcp__wiki__search", "mcp__wiki__read"].map(str::to_owned);
        let of = |server| allowed_of_mcp_server(Some(&list), server);

        assert_eq!(of("docs"), Some(None));
        assert_eq!(of("wiki"), Some(Some(vec!["search".to_owned(), "read".to_owned()])));
        assert_eq!((of("doc"), of("wik")), (None, None));
        assert_eq!(allowed_of_mcp_server(None, "any"), Some(None));
    }

    #[test]
    fn the_name_of_a_server_cannot_be_taken_for_more() {
        assert!(["docs", "d0cs", "my_docs"].into_iter().all(is_mcp_server_name));
        for wrong in ["", "Docs", "a__b", "_a", "a_", "0a", "a-b", "a.b", &"a".repeat(33)] {
            assert!(!is_mcp_server_name(wrong), "{wrong}");
        }
    }
}
