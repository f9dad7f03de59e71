//! The switches of tools. One holds for every version of the CLI, and at once on every replica: nothing here
//! keeps a copy.

use poem::web::Data;
use poem_openapi::{Object, OpenApi, param::Path, payload::Json};
use serde::Deserialize;
use shared::{
    job::may_be_offered,
    time::Timestamp,
    tool::{Category, Tool},
};

use crate::{
    app::App,
    auth::{Admin, Authenticated},
    body::{Check, Checked},
    contract::Wire,
    error::{ApiError, FieldError},
    openapi::Tag,
};

/// The operations on switches.
pub struct SwitchesApi;

/// A tool, as those see it who switch it.
#[derive(Debug, Object)]
struct InstalledTool {
    /// Its name.
    name: String,
    /// What it does; null of a tool that this service does not know.
    #[oai(nullable)]
    description: Option<String>,
    /// What it acts on.
    category: Wire<Category>,
    /// Whether jobs may use it.
    enabled: bool,
    /// The versions of the CLI that have it.
    cli_versions: Vec<String>,
    /// When it was first seen.
    first_seen_at: Wire<Timestamp>,
    /// When a worker last told that it has it.
    last_seen_at: Wire<Timestamp>,
}

/// All tools, by name.
#[derive(Debug, Object)]
struct InstalledToolList {
    /// The tools of the versions that living workers have, or of the one seen last.
    data: Vec<InstalledTool>,
}

/// A switch.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct SwitchTool {
    /// Whether jobs may use the tool.
    enabled: bool,
}

impl Check for SwitchTool {
    fn check(&self) -> Vec<FieldError> {
        Vec::new()
    }
}

#[OpenApi(prefix_path = "/api/admin", tag = "Tag::Admin")]
impl SwitchesApi {
    /// List the tools and their switches.
    #[oai(path = "/tools", method = "get", operation_id = "list_installed_tools")]
    async fn list_installed_tools(&self, _auth: Authenticated<Admin>, app: Data<&App>) -> Result<Json<InstalledToolList>, ApiError> {
        let tools = app.tools.list().await?;
        Ok(Json(InstalledToolList { data: tools.into_iter().map(InstalledTool::from).collect() }))
    }

    /// Look at a tool, of whatever version of the CLI.
    #[oai(path = "/tools/:name", method = "get", operation_id = "get_installed_tool")]
    async fn get_installed_tool(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The tool.
        name: Path<String>,
    ) -> Result<Json<InstalledTool>, ApiError> {
        let tool = app.tools.find(checked(&name.0)?).await?.ok_or_else(ApiError::not_found)?;
        Ok(Json(tool.into()))
    }

    /// Switch a tool on or off.
    ///
    /// From now on jobs that name a tool that is off are refused, and waiting ones fail with `tool_not_allowed`;
    /// running ones go on. It stays so when the CLI is replaced by another version.
    #[oai(path = "/tools/:name", method = "put", operation_id = "switch_tool")]
    async fn switch_tool(
        &self,
        auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The tool.
        name: Path<String>,
        body: Checked<SwitchTool>,
    ) -> Result<Json<InstalledTool>, ApiError> {
        let tool = app.tools.switch(checked(&name.0)?, body.0.enabled, &auth.by()).await?.ok_or_else(ApiError::not_found)?;
        Ok(Json(tool.into()))
    }
}

/// A name that a tool of ours could have; there is none of any other.
fn checked(name: &str) -> Result<&str, ApiError> {
    if may_be_offered(name) { Ok(name) } else { Err(ApiError::not_found()) }
}

impl From<Tool> for InstalledTool {
    fn from(tool: Tool) -> Self {
        let Tool { name, description, category, enabled, cli_versions, first_seen_at, last_seen_at } = tool;
        let (category, first_seen_at, last_seen_at) = (Wire(category), Wire(first_seen_at), Wire(last_seen_at));
        Self { name, description, category, enabled, cli_versions, first_seen_at, last_seen_at }
    }
}
