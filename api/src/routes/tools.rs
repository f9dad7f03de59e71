//! The tools that jobs may ask for: what the workers' CLIs have, less what an admin switched off, less what
//! the caller's key does not allow. A job that names another is refused here.

use poem::web::Data;
use poem_openapi::{Object, OpenApi, payload::Json};
use shared::{
    principal::Principal,
    session::Session,
    tool::{self, Category, allowed_of_mcp_server},
};

use crate::{
    app::App,
    auth::{Authenticated, Read},
    contract::Wire,
    error::{ApiError, FieldError},
    openapi::Tag,
};

/// The operations on tools.
pub struct ToolsApi;

/// A tool.
#[derive(Debug, Object)]
pub struct Tool {
    /// Its name, as `tools` of a job takes it.
    name: String,
    /// What it does; null of a tool that this service does not know.
    #[oai(nullable)]
    description: Option<String>,
    /// What it acts on.
    category: Wire<Category>,
    /// Whether an admin lets jobs use it.
    enabled: bool,
    /// Whether your jobs may use it: it is enabled, and your key allows it.
    allowed: bool,
}

/// All tools, by name.
#[derive(Debug, Object)]
pub struct ToolList {
    /// The tools. None before any worker has told what it has.
    data: Vec<Tool>,
}

/// An MCP server that an operator lets jobs use.
#[derive(Debug, Object)]
pub struct McpServer {
    /// Its name, as `mcp_servers` of a job takes it. Its tools are `mcp__<name>__<tool>`.
    name: String,
    /// Whether your jobs may use it, or some of its tools.
    allowed: bool,
}

/// All MCP servers, by name.
#[derive(Debug, Object)]
pub struct McpServerList {
    /// The servers. None before any worker has told what it knows.
    data: Vec<McpServer>,
}

#[OpenApi(prefix_path = "/api", tag = "Tag::Tools")]
impl ToolsApi {
    /// List the tools.
    ///
    /// They are those of the installed CLI, by name, and whether your jobs may use them.
    #[oai(path = "/tools", method = "get", operation_id = "list_tools")]
    async fn list_tools(&self, auth: Authenticated<Read>, app: Data<&App>) -> Result<Json<ToolList>, ApiError> {
        let allowed = allowed_by_key(&auth);
        let tools = app.tools.list().await?;
        Ok(Json(ToolList { data: tools.into_iter().map(|tool| Tool::shown(tool, allowed)).collect() }))
    }

    /// List the MCP servers.
    ///
    /// They are those that an operator named on the workers, and whether your jobs may use them.
    #[oai(path = "/mcp-servers", method = "get", operation_id = "list_mcp_servers")]
    async fn list_mcp_servers(&self, auth: Authenticated<Read>, app: Data<&App>) -> Result<Json<McpServerList>, ApiError> {
        let known = app.workers.mcp_servers().await?.unwrap_or_default();
        let allowed = allowed_by_key(&auth);
        let server = |name: String| McpServer { allowed: allowed_of_mcp_server(allowed, &name).is_some(), name };
        Ok(Json(McpServerList { data: known.into_iter().map(server).collect() }))
    }
}

/// Refuse a job, of a conversation perhaps, that names an MCP server it may not use.
pub async fn check_mcp_servers(app: &App, principal: &Principal, session: Option<&Session>, named: &[String]) -> Result<(), ApiError> {
    if named.is_empty() {
        return Ok(());
    }
    let known = app.workers.mcp_servers().await?;
    let of_session = session.and_then(|session| session.mcp_servers.as_deref());
    let fault = |name: &String| {
        if known.as_ref().is_some_and(|known| !known.contains(name)) {
            Some("is not an MCP server that this service has: see `GET /api/mcp-servers`")
        } else if allowed_of_mcp_server(allowed_by_key(principal), name).is_none() {
            Some("is not among the MCP servers that this key allows")
        } else if !includes(of_session, name) {
            Some("is not among the MCP servers of the session")
        } else {
            None
        }
    };
    let faults = named.iter().enumerate().filter_map(|(index, name)| Some((index, fault(name)?)));
    let faults: Vec<_> = faults.map(|(index, detail)| FieldError::new(format!("/mcp_servers/{index}"), detail)).collect();
    ApiError::refuse(faults)
}

impl Tool {
    fn shown(tool: tool::Tool, allowed_by_key: Option<&[String]>) -> Self {
        let allowed = tool.enabled && includes(allowed_by_key, &tool.name);
        Self { name: tool.name, description: tool.description, category: Wire(tool.category), enabled: tool.enabled, allowed }
    }
}

/// What the caller's key allows its jobs; everything where it does not say.
pub fn allowed_by_key(principal: &Principal) -> Option<&[String]> {
    principal.key().and_then(|key| key.allowed_tools.as_deref())
}

/// Refuse a job, of a conversation perhaps, that names a tool it may not use.
pub async fn check(app: &App, principal: &Principal, session: Option<&Session>, named: &[String]) -> Result<(), ApiError> {
    if named.is_empty() {
        return Ok(());
    }
    let of_session = session.and_then(|session| session.tools.as_deref());
    let faults = faults(named, &app.tools.list().await?, allowed_by_key(principal), of_session);
    ApiError::refuse(faults)
}

/// What is wrong with the tools that a job names. Before any worker told what it has, nothing is unknown.
fn faults(named: &[String], known: &[tool::Tool], allowed_by_key: Option<&[String]>, of_session: Option<&[String]>) -> Vec<FieldError> {
    let fault = |name: &String| match known.iter().find(|tool| tool.name == *name) {
        None if !known.is_empty() => Some("is not a tool that this service has: see `GET /api/tools`"),
        Some(tool) if !tool.enabled => Some("is switched off"),
        Some(_) | None if !includes(allowed_by_key, name) => Some("is not among the tools that this key allows"),
        Some(_) | None if !includes(of_session, name) => Some("is not among the tools of the session"),
        Some(_) | None => None,
    };
    let faults = named.iter().enumerate().filter_map(|(index, name)| Some((index, fault(name)?)));
    faults.map(|(index, detail)| FieldError::new(format!("/tools/{index}"), detail)).collect()
}

fn includes(list: Option<&[String]>, name: &str) -> bool {
    list.is_none_or(|list| list.iter().any(|one| one == name))
}

#[cfg(test)]
mod tests {
    use shared::time::Timestamp;

    use super::*;

    fn known(name: &str, enabled: bool) -> tool::Tool {
        let at = Timestamp::from_unix_ms(0);
        let (description, category, cli_versions) = (None, Category::Other, Vec::new());
        tool::Tool { name: name.into(), description, category, enabled, cli_versions, first_seen_at: at, last_seen_at: at }
    }

    fn pointers(named: &[&str], known: &[tool::Tool], allowed: Option<&[&str]>) -> Vec<(String, String)> {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let allowed = allowed.map(own);
        let faults = faults(&own(named), known, allowed.as_deref(), None);
        faults.into_iter().map(|fault| (fault.pointer, fault.detail)).collect()
    }

    #[test]
    fn each_tool_that_a_job_may_not_use_is_pointed_at_with_its_reason() {
        let known = [known("Bash", true), known("Read", true), known("Write", false)];

        let faults = pointers(&["Read", "Teleport", "Write", "Bash"], &known, Some(&["Read", "Write"]));

        let pointers: Vec<&str> = faults.iter().map(|(pointer, _)| pointer.as_str()).collect();
        assert_eq!(pointers, ["/tools/1", "/tools/2", "/tools/3"]);
        for ((_, detail), reason) in faults.iter().zip(["not a tool that this service has", "switched off", "this key allows"]) {
            assert!(detail.contains(reason), "{detail}");
        }
    }

    #[test]
    fn a_job_may_not_name_what_its_conversation_does_not_have() {
        let named = ["Read", "Bash"].map(str::to_owned);

        let faults = faults(&named, &[], None, Some(&named[..1]));

        assert_eq!(faults.into_iter().map(|fault| fault.pointer).collect::<Vec<_>>(), ["/tools/1"]);
    }

    #[test]
    fn before_any_worker_told_only_the_key_is_asked() {
        assert_eq!(pointers(&["Anything"], &[], None), []);
        assert_eq!(pointers(&["Anything", "Read"], &[], Some(&["Read"])).len(), 1);
    }
}
