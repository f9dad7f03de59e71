//! A conversation: what its turns have in common, and what became of them so far. Data and its laws, no I/O.

use std::collections::BTreeMap;

use crate::{
    id::{SessionId, UserId},
    job::{ChatSpec, NanoUsd, Usage},
    time::Timestamp,
};

/// A conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id; the CLI knows the conversation by the same UUID.
    pub id: SessionId,
    /// Whose it is.
    pub user_id: UserId,
    /// What its owner calls it.
    pub title: Option<String>,
    /// The model of jobs that name none.
    pub model: Option<String>,
    /// The system prompt of jobs that have none.
    pub system_prompt: Option<String>,
    /// The tools its jobs may use at most, and use when they name none; no bound when absent.
    pub tools: Option<Vec<String>>,
    /// The MCP servers its jobs may use at most, and use when they name none; no bound when absent.
    pub mcp_servers: Option<Vec<String>>,
    /// Its owner's own words about it, which its jobs get as well.
    pub metadata: BTreeMap<String, String>,
    /// Whether it takes no more jobs.
    pub archived: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed by its owner.
    pub updated_at: Timestamp,
}

impl Session {
    /// `spec` with what it leaves to its conversation. Tools are not filled in: which ones there are is
    /// decided when the job starts, by what the conversation allows then.
    pub fn complete(&self, spec: ChatSpec) -> ChatSpec {
        let mut metadata = self.metadata.clone();
        metadata.extend(spec.metadata);
        ChatSpec {
            model: spec.model.or_else(|| self.model.clone()),
            system_prompt: spec.system_prompt.or_else(|| self.system_prompt.clone()),
            metadata,
            ..spec
        }
    }
}

/// A conversation to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of `Session`")]
pub struct NewSession {
    pub title: Option<String>,
    pub model: Option<String>,
    pub system_prompt: Option<String>,
    pub tools: Option<Vec<String>>,
    pub mcp_servers: Option<Vec<String>>,
    pub metadata: BTreeMap<String, String>,
}

/// What is to change of a conversation. What is absent stays; `Some(None)` takes away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of `Session`")]
pub struct SessionChange {
    pub title: Option<Option<String>>,
    pub model: Option<Option<String>>,
    pub tools: Option<Option<Vec<String>>>,
    pub mcp_servers: Option<Option<Vec<String>>>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub archived: Option<bool>,
}

impl SessionChange {
    /// What becomes of `session`.
    pub fn applied_to(self, session: Session) -> Session {
        Session {
            title: self.title.unwrap_or(session.title),
            model: self.model.unwrap_or(session.model),
            tools: self.tools.unwrap_or(session.tools),
            mcp_servers: self.mcp_servers.unwrap_or(session.mcp_servers),
            metadata: self.metadata.unwrap_or(session.metadata),
            archived: self.archived.unwrap_or(session.archived),
            ..session
        }
    }
}

/// What became of a conversation so far: sums over its jobs and their attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionFigures {
    /// Jobs, however they ended.
    pub jobs: u64,
    /// Of them, those that have not ended.
    pub active_jobs: u64,
    /// Of them, those that completed: the turns that the conversation consists of.
    pub turns: u64,
    /// Tokens of all attempts.
    pub usage: Usage,
    /// What they cost.
    pub cost: NanoUsd,
    /// How large the transcript is that the next turn goes on from.
    pub transcript_bytes: u64,
    /// How many files the workspace has.
    pub files: u64,
    /// How large they are together.
    pub workspace_bytes: u64,
    /// When something last happened to a job of it.
    pub last_activity_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session {
            id: SessionId::new(),
            user_id: UserId::new(),
            title: Some("t".into()),
            model: Some("sonnet".into()),
            system_prompt: Some("be brief".into()),
            tools: Some(vec!["Read".into()]),
            mcp_servers: None,
            metadata: BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]),
            archived: false,
            created_at: Timestamp::from_unix_ms(0),
            updated_at: Timestamp::from_unix_ms(0),
        }
    }

    #[test]
    fn a_job_has_of_its_conversation_what_it_does_not_say_itself() {
        let silent = session().complete(ChatSpec::text("hi"));
        let spoken = session().complete(ChatSpec {
            model: Some("opus".into()),
            system_prompt: Some("sing".into()),
            metadata: BTreeMap::from([("b".into(), "3".into())]),
            ..ChatSpec::text("hi")
        });

        assert_eq!((silent.model.as_deref(), silent.system_prompt.as_deref()), (Some("sonnet"), Some("be brief")));
        assert_eq!(silent.metadata, session().metadata);
        assert_eq!(silent.tools, None);
        assert_eq!((spoken.model.as_deref(), spoken.system_prompt.as_deref()), (Some("opus"), Some("sing")));
        assert_eq!(spoken.metadata, BTreeMap::from([("a".into(), "1".into()), ("b".into(), "3".into())]));
    }

    #[test]
    fn what_is_not_named_in_a_change_stays() {
        let before = session();

        let same = SessionChange::default().applied_to(before.clone());
        let change = SessionChange { title: Some(None), archived: Some(true), ..SessionChange::default() };
        let after = change.applied_to(before.clone());

        assert_eq!(same, before);
        assert_eq!((after.title, after.archived, after.model), (None, true, before.model));
    }
}
