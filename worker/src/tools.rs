//! Which tools a job has when it starts: that may be less than it was accepted with.

use std::collections::HashSet;

use shared::{job::ChatSpec, lease::Outcome, session::Session, tool::allowed_of_mcp_server};

use crate::{
    chat::unread,
    claude::failure::{Code, Failure},
    mcp::Grant,
    workshop::Workshop,
};

/// The tools of this job: what it names, or else what its conversation has, or else the operator's default, as
/// far as its conversation, the key it came with and the switches allow now. Without a sandbox there are none, unless the operator insists.
pub async fn of_job(workshop: &Workshop, spec: &ChatSpec, session: Option<&Session>) -> Result<Vec<String>, Outcome> {
    let of_session = session.and_then(|session| session.tools.as_ref());
    let wanted = spec.tools.as_ref().or(of_session).unwrap_or(&workshop.config.default_tools);
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    if workshop.sandbox.is_none() && !workshop.config.unsandboxed_tools {
        let is_named = spec.tools.is_some();
        return if is_named { Err(Outcome::Failed(Failure::new(Code::ToolsUnavailable).error)) } else { Ok(Vec::new()) };
    }
    let switched_off = workshop.tools.switched_off().await.map_err(|error| {
        tracing::warn!(%error, cause = ?std::error::Error::source(&error), "Could not read which tools are switched off");
        unread(&error)
    })?;
    allowed(spec, wanted, of_session, &switched_off).map_err(|failure| Outcome::Failed(failure.error))
}

/// What this job may use of MCP servers: of those it names, or else of those its conversation has, as far as its
/// conversation and the key it came with allow.
pub fn mcp_of_job(workshop: &Workshop, spec: &ChatSpec, session: Option<&Session>) -> Result<Vec<Grant>, Outcome> {
    let of_session = session.and_then(|session| session.mcp_servers.as_ref());
    let wanted = spec.mcp_servers.as_ref().or(of_session).map(Vec::as_slice).unwrap_or_default();
    let is_named = spec.mcp_servers.is_some();
    let mut grants = Vec::new();
    for server in wanted {
        let is_of_session = of_session.is_none_or(|servers| servers.contains(server));
        let allowed = allowed_of_mcp_server(spec.allowed_tools.as_deref(), server).filter(|_| is_of_session);
        match allowed {
            Some(tools) if workshop.config.mcp.includes(server) => grants.push(Grant { server: server.clone(), tools }),
            // Of what it was only offered, a job has what there is.
            Some(_) | None if !is_named => {}
            Some(_) => return Err(Outcome::Failed(Failure::of_unknown_server(server).error)),
            None => return Err(Outcome::Failed(Failure::of_tool(server).error)),
        }
    }
    Ok(grants)
}

/// Those of `wanted` that the job may use: of what it names, all or none of it runs.
fn allowed(
    spec: &ChatSpec,
    wanted: &[String],
    of_session: Option<&Vec<String>>,
    switched_off: &HashSet<String>,
) -> Result<Vec<String>, Failure> {
    let lists = [spec.allowed_tools.as_ref(), of_session];
    let is_allowed = |tool: &String| !switched_off.contains(tool) && lists.iter().flatten().all(|list| list.contains(tool));
    match wanted.iter().find(|tool| !is_allowed(tool)) {
        Some(tool) if spec.tools.is_some() => Err(Failure::of_tool(tool)),
        _ => Ok(wanted.iter().filter(|tool| is_allowed(tool)).cloned().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claude::failure::Retry;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn of_the_operators_default_a_job_has_what_is_allowed() {
        let spec = ChatSpec { allowed_tools: Some(names(&["Read", "Bash"])), ..ChatSpec::text("hi") };
        let defaults = names(&["Bash", "Read", "Write"]);

        assert_eq!(allowed(&ChatSpec::text("hi"), &defaults, None, &HashSet::new()), Ok(defaults.clone()));
        assert_eq!(allowed(&spec, &defaults, None, &HashSet::from(["Bash".to_owned()])), Ok(names(&["Read"])));
        assert_eq!(allowed(&ChatSpec { allowed_tools: Some(Vec::new()), ..spec }, &defaults, None, &HashSet::new()), Ok(Vec::new()));
    }

    #[test]
    fn a_job_that_names_what_is_not_allowed_fails_and_says_what() {
        let tools = names(&["Read", "Bash"]);
        let spec = ChatSpec { tools: Some(tools.clone()), ..ChatSpec::text("hi") };
        let narrow = ChatSpec { allowed_tools: Some(names(&["Read"])), ..spec.clone() };

        let switched_off = allowed(&spec, &tools, None, &HashSet::from(["Bash".to_owned()])).expect_err("switched off");
        let beyond = allowed(&narrow, &tools, None, &HashSet::new()).expect_err("beyond the key");

        assert_eq!(switched_off, beyond);
        assert_eq!((switched_off.error.code.as_str(), switched_off.retry), ("tool_not_allowed", Retry::No));
        assert!(switched_off.error.detail.contains("`Bash`"), "{}", switched_off.error.detail);
    }

    #[test]
    fn a_job_has_no_tool_that_its_conversation_does_not_have() {
        let (defaults, of_session) = (names(&["Bash", "Read", "Write"]), names(&["Read", "Bash"]));
        let silent = ChatSpec { allowed_tools: Some(names(&["Read"])), ..ChatSpec::text("hi") };
        let named = ChatSpec { tools: Some(names(&["Write"])), ..ChatSpec::text("hi") };

        assert_eq!(allowed(&silent, &of_session, Some(&of_session), &HashSet::new()), Ok(names(&["Read"])));
        assert_eq!(allowed(&ChatSpec::text("hi"), &defaults, Some(&of_session), &HashSet::new()), Ok(names(&["Bash", "Read"])));
        let refused = allowed(&named, &names(&["Write"]), Some(&of_session), &HashSet::new()).expect_err("not of the conversation");
        assert_eq!(refused.error.code, "tool_not_allowed");
    }
}
