//! The door to tools: what the workers' CLIs announce, and which of it admins let jobs use. Read from the
//! record at each question, so a switch works on every replica at once.

use std::collections::HashSet;

use serde_json::json;

use crate::{
    Result,
    audit::{Action, By},
    db::{self, audit, tools as table},
    id::WorkerId,
    store::Store,
    tool::{AnnouncedTool, Tool},
};

/// What can be done with tools.
#[derive(Clone)]
pub struct Tools {
    store: Store,
}

impl Tools {
    /// The door over `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// Record what the CLI of `worker` announces. What the same version announced before stays.
    pub async fn announce(&self, worker: WorkerId, cli_version: &str, tools: &[AnnouncedTool]) -> Result<()> {
        let transaction = self.store.db().begin().await?;
        // In one order everywhere: two workers that announce at once must not wait for each other.
        let mut tools: Vec<&AnnouncedTool> = tools.iter().collect();
        tools.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for tool in tools {
            table::record(&transaction, cli_version, tool).await?;
        }
        // Last: whoever sees that the worker has this version sees its tools.
        table::set_version(&transaction, worker, cli_version).await?;
        db::commit(transaction).await
    }

    /// The tools, by name: those of every version that a living worker has, or of the version seen last
    /// where no worker lives. Empty before any worker told.
    pub async fn list(&self) -> Result<Vec<Tool>> {
        table::list(self.store.db()).await
    }

    /// A tool of whatever version of the CLI.
    pub async fn find(&self, name: &str) -> Result<Option<Tool>> {
        table::find(self.store.db().pool(), name).await
    }

    /// The names of the tools that no job may use.
    pub async fn switched_off(&self) -> Result<HashSet<String>> {
        table::switched_off(self.store.db()).await
    }

    /// Let jobs use the tool `name`, or not, in this version of the CLI and every other. `None` when no
    /// version ever had it.
    pub async fn switch(&self, name: &str, enabled: bool, by: &By) -> Result<Option<Tool>> {
        let transaction = self.store.db().begin().await?;
        if !table::switch(&transaction, name, enabled).await? {
            return Ok(None);
        }
        audit::insert(&transaction, by, Action::ToolSwitch, Some(name.to_owned()), Some(json!({"enabled": enabled}))).await?;
        let tool = table::find(&transaction, name).await?;
        db::commit(transaction).await?;
        Ok(tool)
    }
}
