//! The rows of tools: what each version of the CLI announced, and the switches, which know no versions.

use std::collections::HashSet;

use sea_orm::{ConnectionTrait, FromQueryResult};

use super::{Db, execute, rows};
use crate::{
    Result,
    id::WorkerId,
    time::Timestamp,
    tool::{AnnouncedTool, Category, Tool},
};

/// Note that a version of the CLI has a tool.
pub async fn record(db: &impl ConnectionTrait, cli_version: &str, tool: &AnnouncedTool) -> Result<()> {
    execute(
        db,
        "INSERT INTO cli_tools (cli_version, name, description, category, first_seen_at, last_seen_at) VALUES ($1, $2, $3, $4, {now}, {now})
         ON CONFLICT (cli_version, name) DO UPDATE
         SET description = excluded.description, category = excluded.category, last_seen_at = excluded.last_seen_at",
        [cli_version.into(), tool.name.as_str().into(), tool.description.clone().into(), tool.category.as_str().into()],
    )
    .await?;
    Ok(())
}

/// Note which version of the CLI a worker has.
pub async fn set_version(db: &impl ConnectionTrait, worker: WorkerId, cli_version: &str) -> Result<()> {
    execute(db, "UPDATE workers SET cli_version = $2 WHERE id = $1", [worker.uuid().into(), cli_version.into()]).await?;
    Ok(())
}

#[derive(FromQueryResult)]
struct Row {
    cli_version: String,
    name: String,
    description: Option<String>,
    category: Option<String>,
    first_seen_at: i64,
    last_seen_at: i64,
    enabled: Option<bool>,
}

/// The tools of the versions that living workers have, or of the one seen last.
pub async fn list(db: &Db) -> Result<Vec<Tool>> {
    let rows: Vec<Row> = rows(
        db.pool(),
        "SELECT tool.cli_version, tool.name, tool.description, tool.category, tool.first_seen_at, tool.last_seen_at, switch.enabled
         FROM cli_tools tool LEFT JOIN tool_switches switch ON switch.name = tool.name
         WHERE tool.cli_version IN (SELECT cli_version FROM workers WHERE NOT dead AND cli_version IS NOT NULL)
            OR (tool.cli_version = (SELECT cli_version FROM cli_tools ORDER BY last_seen_at DESC, cli_version DESC LIMIT 1)
                AND NOT EXISTS (SELECT 1 FROM workers WHERE NOT dead AND cli_version IS NOT NULL))
         ORDER BY tool.name, tool.last_seen_at DESC, tool.cli_version DESC",
        [],
    )
    .await?;
    Ok(merge(rows))
}

/// A tool that any version ever had.
pub async fn find(db: &impl ConnectionTrait, name: &str) -> Result<Option<Tool>> {
    let rows: Vec<Row> = rows(
        db,
        "SELECT tool.cli_version, tool.name, tool.description, tool.category, tool.first_seen_at, tool.last_seen_at, switch.enabled
         FROM cli_tools tool LEFT JOIN tool_switches switch ON switch.name = tool.name
         WHERE tool.name = $1 ORDER BY tool.last_seen_at DESC, tool.cli_version DESC",
        [name.into()],
    )
    .await?;
    Ok(merge(rows).pop())
}

/// One tool for the rows of one name, which follow each other, the latest first. Its words win.
fn merge(rows: Vec<Row>) -> Vec<Tool> {
    let mut tools: Vec<Tool> = Vec::new();
    for row in rows {
        let (first, last) = (Timestamp::from_unix_ms(row.first_seen_at), Timestamp::from_unix_ms(row.last_seen_at));
        match tools.last_mut().filter(|tool| tool.name == row.name) {
            Some(tool) => {
                tool.cli_versions.push(row.cli_version);
                tool.first_seen_at = tool.first_seen_at.min(first);
            }
            None => tools.push(Tool {
                name: row.name,
                description: row.description,
                category: row.category.and_then(|word| word.parse().ok()).unwrap_or(Category::Other),
                enabled: row.enabled.unwrap_or(true),
                cli_versions: vec![row.cli_version],
                first_seen_at: first,
                last_seen_at: last,
            }),
        }
    }
    tools
}

#[derive(FromQueryResult)]
struct Name {
    name: String,
}

/// The tools that are switched off.
pub async fn switched_off(db: &Db) -> Result<HashSet<String>> {
    let names: Vec<Name> = rows(db.pool(), "SELECT name FROM tool_switches WHERE NOT enabled", []).await?;
    Ok(names.into_iter().map(|row| row.name).collect())
}

/// Set the switch of a tool. False when no version ever had it.
pub async fn switch(db: &impl ConnectionTrait, name: &str, enabled: bool) -> Result<bool> {
    let touched = execute(
        db,
        "INSERT INTO tool_switches (name, enabled, updated_at)
         SELECT $1, $2, {now} WHERE EXISTS (SELECT 1 FROM cli_tools WHERE name = $1)
         ON CONFLICT (name) DO UPDATE SET enabled = excluded.enabled, updated_at = excluded.updated_at",
        [name.into(), enabled.into()],
    )
    .await?;
    Ok(touched == 1)
}
