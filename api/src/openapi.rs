//! The contract: every operation, and the page that shows it. It is made from the code alone, so printing
//! it needs neither database nor Redis.

use std::{fmt::Write as _, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use poem::{IntoEndpoint, IntoResponse as _, Response, Route, get, http::header, web::Redirect};
use poem_openapi::{OpenApi, OpenApiService, Tags};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    dashboard::{self, Dashboard},
    routes::{
        admin, api_keys::ApiKeysApi, auth::AuthApi, chat::ChatApi, events::EventsApi, files::FilesApi, health::HealthApi, jobs::JobsApi,
        quota::QuotaApi, sessions::SessionsApi, socket::SocketApi, tools::ToolsApi, usage::UsageApi,
    },
};

/// The bodies of requests.
const BODIES: &[&str] = &[
    "CreateChat",
    "TextBlock",
    "ImageBlock",
    "Register",
    "Login",
    "Refresh",
    "UpdateProfile",
    "CreateApiKey",
    "CreateUser",
    "UpdateUser",
    "SwitchTool",
    "CreateSession",
    "UpdateSession",
];

/// The groups of operations.
#[derive(Tags)]
pub enum Tag {
    /// Who you are, and by what you show it.
    Accounts,
    /// Ask the model.
    Chat,
    /// What became of it.
    Jobs,
    /// What is said one thing after the other, and the files beside it.
    Sessions,
    /// What the model may use.
    Tools,
    /// What it cost.
    Usage,
    /// What admins see and do.
    Admin,
    /// Whether this server is well.
    Health,
}

type Operations = (
    AuthApi,
    ApiKeysApi,
    ChatApi,
    JobsApi,
    EventsApi,
    SocketApi,
    SessionsApi,
    FilesApi,
    ToolsApi,
    UsageApi,
    QuotaApi,
    admin::Operations,
    HealthApi,
);

/// Every operation.
pub fn service() -> OpenApiService<impl OpenApi, ()> {
    let operations: Operations = (
        AuthApi,
        ApiKeysApi,
        ChatApi,
        JobsApi,
        EventsApi,
        SocketApi,
        SessionsApi,
        FilesApi,
        ToolsApi,
        UsageApi,
        QuotaApi,
        admin::OPERATIONS,
        HealthApi,
    );
    OpenApiService::new(operations, "Claude API", env!("CARGO_PKG_VERSION")).description(
        "The Claude CLI behind an HTTP API: send a message, get a job, follow its events. \
         Every failure is an `application/problem+json` with a stable `code`.",
    )
}

/// The contract as it stands in `openapi.yaml`.
pub fn yaml() -> String {
    // poem-openapi cannot say of an object that it takes no other fields, and our bodies take none.
    let closed = BODIES.iter().fold(service().spec_yaml(), |yaml, body| {
        let open = format!("    {body}:\n      type: object\n");
        yaml.replacen(&open, &format!("{open}      additionalProperties: false\n"), 1)
    });
    // Within `ImageBlock`, and only there.
    let open = "        source:\n          type: object\n";
    let strict = closed.replacen(open, &format!("{open}          additionalProperties: false\n"), 1);
    with_failures_that_happen(&with_null_among_words(&strict))
}

/// `yaml` without the failures that an operation cannot answer with: all of them share one type of error.
fn with_failures_that_happen(yaml: &str) -> String {
    // An operation is a key below a path: `    get:`, with the rest of it further in.
    let begins = |line: &str| line.strip_prefix("    ").is_some_and(|key| !key.starts_with([' ', '-']) && key.ends_with(':'));
    let mut whole = String::with_capacity(yaml.len());
    let lines: Vec<&str> = yaml.lines().collect();
    for part in lines.chunk_by(|_, next| next.starts_with("     ") || !(begins(next) || next.starts_with("  /"))) {
        let operation = part.iter().find_map(|line| line.strip_prefix("      operationId: "));
        let has_body = part.contains(&"      requestBody:");
        let mut is_left_out = false;
        for line in part {
            if let Some(key) = line.strip_prefix("        ").filter(|key| !key.starts_with([' ', '-'])) {
                let status = key.trim_matches(['\'', ':']);
                is_left_out = operation.is_some_and(|operation| !may_fail_with(status, operation, has_body));
            } else if !line.starts_with("         ") {
                is_left_out = false;
            }
            if !is_left_out {
                whole.push_str(line);
                whole.push('\n');
            }
        }
    }
    whole
}

fn may_fail_with(status: &str, operation: &str, has_body: bool) -> bool {
    match status {
        "402" => matches!(operation, "create_chat" | "retry_dead_letter"),
        "408" | "413" | "415" => has_body,
        "410" => matches!(operation, "get_job_events" | "get_any_job_events"),
        "426" => operation == "open_socket",
        _ => true,
    }
}

/// `yaml` with null in every enum that is nullable: beside an enum, `nullable` allows nothing, and poem-openapi
/// writes nothing but that.
fn with_null_among_words(yaml: &str) -> String {
    let mut last = "";
    yaml.lines().fold(String::with_capacity(yaml.len()), |mut all, line| {
        let is_of_enum = line.strip_suffix("nullable: true").is_some_and(|indent| {
            indent.trim().is_empty() && last.strip_prefix(indent).is_some_and(|word| word.starts_with("- ") && word != "- null")
        });
        if is_of_enum {
            all.push_str(&line.replace("nullable: true", "- null\n"));
        }
        all.push_str(line);
        all.push('\n');
        last = line;
        all
    })
}

/// Every path this server answers, its parameters in braces.
pub fn patterns() -> Vec<String> {
    let spec: Value = serde_json::from_str(&service().spec()).expect("poem-openapi writes JSON");
    let paths = spec["paths"].as_object().into_iter().flatten().map(|(path, _)| path.clone());
    paths.chain(["/", "/docs", "/openapi.yaml", "/admin", "/admin/{page}", "/admin/{page}/{of}"].map(str::to_owned)).collect()
}

/// The operations, the contract, its page, and the dashboard.
pub fn routes() -> Route {
    let page = docs();
    let contract = yaml();
    let service = Arc::new(service().into_endpoint());
    Route::new()
        .at("/", get(poem::endpoint::make_sync(|_| Redirect::see_other("/docs"))))
        .at("/docs", get(poem::endpoint::make_sync(move |_| page.response())))
        .at(
            "/openapi.yaml",
            get(poem::endpoint::make_sync(move |_| contract.clone().with_content_type("application/yaml").into_response())),
        )
        .nest_no_strip(dashboard::PATH, get(Dashboard::built()))
        .nest_no_strip("/api", service.clone())
        .nest_no_strip("/health", service)
}

/// Which methods each path answers, for the `Allow` of a 405.
pub struct AllowedMethods(Vec<(Vec<String>, String)>);

impl AllowedMethods {
    /// Those of the contract.
    pub fn of_contract() -> Self {
        let spec: Value = serde_json::from_str(&service().spec()).expect("poem-openapi writes JSON");
        let paths = spec["paths"].as_object().into_iter().flatten();
        Self(paths.map(|(path, operations)| (segments(path), allow(operations))).collect())
    }

    /// The value of `Allow` for a path that exists.
    pub fn at(&self, path: &str) -> &str {
        let asked = segments(path);
        let fits = |pattern: &[String]| {
            pattern.len() == asked.len() && pattern.iter().zip(&asked).all(|(part, asked)| part.starts_with('{') || part == asked)
        };
        // What the contract does not know are our few pages.
        self.0.iter().find(|(pattern, _)| fits(pattern)).map_or("GET, HEAD", |(_, allow)| allow.as_str())
    }
}

fn segments(path: &str) -> Vec<String> {
    path.split('/').map(str::to_owned).collect()
}

fn allow(operations: &Value) -> String {
    let methods = [("get", "GET, HEAD"), ("post", "POST"), ("put", "PUT"), ("patch", "PATCH"), ("delete", "DELETE")];
    let answered = methods.into_iter().filter(|(key, _)| operations.get(key).is_some());
    answered.map(|(_, methods)| methods).collect::<Vec<_>>().join(", ")
}

/// Swagger UI with everything it needs inside, and the policy that lets exactly that run.
struct Docs {
    html: String,
    policy: String,
}

fn docs() -> Docs {
    let html = service().swagger_ui_html();
    let mut policy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      connect-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'; script-src"
        .to_owned();
    for script in inline_scripts(&html) {
        let hash = BASE64_STANDARD.encode(Sha256::digest(script));
        write!(policy, " 'sha256-{hash}'").expect("writing to a string cannot fail");
    }
    Docs { html, policy }
}

impl Docs {
    fn response(&self) -> Response {
        let html = self.html.clone().with_content_type("text/html; charset=utf-8");
        html.with_header(header::CONTENT_SECURITY_POLICY, self.policy.as_str()).into_response()
    }
}

/// The scripts of a page, found as a browser finds them: what looks like a tag inside of one is none.
fn inline_scripts(html: &str) -> impl Iterator<Item = &str> {
    let mut unread = html;
    std::iter::from_fn(move || {
        let (_, tag) = unread.split_once("<script")?;
        let (script, rest) = tag.split_once('>')?.1.split_once("</script>")?;
        unread = rest;
        Some(script)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    // poem-openapi writes what it is given, one entry after the other: what stands twice makes a document
    // that some readers refuse and others cut.
    #[test]
    fn no_path_and_no_status_stands_twice() {
        let mut paths = HashSet::new();
        for path in Operations::meta().into_iter().flat_map(|api| api.paths) {
            for operation in &path.operations {
                let mut statuses = HashSet::new();
                for response in &operation.responses.responses {
                    assert!(statuses.insert(response.status), "{:?} of {} twice", response.status, path.path);
                }
            }
            assert!(paths.insert(path.path.clone()), "{} twice", path.path);
        }
    }

    #[test]
    fn the_contract_says_that_a_body_takes_no_other_fields() {
        // And the source of a picture, which is within one.
        assert_eq!(yaml().matches("additionalProperties: false").count(), BODIES.len() + 1);
    }

    #[test]
    fn null_is_among_the_words_of_what_may_be_null() {
        let word = "role:\n  enum:\n  - user\n  - admin\n";
        let known = format!("{word}  - null\n  nullable: true\n");

        assert_eq!(with_null_among_words(&format!("{word}  nullable: true\n")), known);
        assert_eq!(with_null_among_words(&known), known);
        let others = "a:\n  required:\n  - b\n  properties:\n    b:\n      type: string\n      nullable: true\n";
        assert_eq!(with_null_among_words(&format!("{word}{others}")), format!("{word}{others}"));
    }

    #[test]
    fn a_script_is_found_whole() {
        let page = "<a><script x>if (a) b('<script>c<\\/script>')</script><p></p><script>d</script>";

        let scripts: Vec<_> = inline_scripts(page).collect();

        assert_eq!(scripts, ["if (a) b('<script>c<\\/script>')", "d"]);
    }

    #[test]
    fn a_method_of_a_path_with_an_id_is_known() {
        let allowed = AllowedMethods::of_contract();

        assert_eq!(allowed.at("/api/jobs/job_1"), "GET, HEAD");
        assert_eq!(allowed.at("/api/jobs/job_1/cancel"), "POST");
        assert_eq!(allowed.at("/api/auth/profile"), "GET, HEAD, PUT");
        assert_eq!(allowed.at("/api/auth/api-keys/key_1"), "DELETE");
    }
}
