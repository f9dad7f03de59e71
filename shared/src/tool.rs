//! A tool of the CLI that jobs may ask for. What may not ([`crate::job::may_be_offered`]) is never one.

use std::{convert::Infallible, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

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
}
