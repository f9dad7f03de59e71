//! The contract: every operation, and the page that shows it. It is made from the code alone, so printing
//! it needs neither database nor Redis.

use std::fmt::Write as _;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use poem::{IntoEndpoint, IntoResponse as _, Response, Route, get, http::header, web::Redirect};
use poem_openapi::{OpenApi, OpenApiService, Tags};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::routes::{chat::ChatApi, events::EventsApi, health::HealthApi, jobs::JobsApi};

/// The groups of operations.
#[derive(Tags)]
pub enum Tag {
    /// Ask the model.
    Chat,
    /// What became of it.
    Jobs,
    /// Whether this server is well.
    Health,
}

/// Every operation.
pub fn service() -> OpenApiService<impl OpenApi, ()> {
    OpenApiService::new((ChatApi, JobsApi, EventsApi, HealthApi), "Claude API", env!("CARGO_PKG_VERSION")).description(
        "The Claude CLI behind an HTTP API: send a message, get a job, follow its events. \
         Every failure is an `application/problem+json` with a stable `code`.",
    )
}

/// The contract as it stands in `openapi.yaml`.
pub fn yaml() -> String {
    // poem-openapi cannot say of an object that it takes no other fields, and our bodies take none.
    let closed = "    CreateChat:\n      type: object\n";
    service().spec_yaml().replacen(closed, &format!("{closed}      additionalProperties: false\n"), 1)
}

/// The operations, the contract, and its page.
pub fn routes() -> Route {
    let page = docs();
    let contract = yaml();
    Route::new()
        .at("/", get(poem::endpoint::make_sync(|_| Redirect::see_other("/docs"))))
        .at("/docs", get(poem::endpoint::make_sync(move |_| page.response())))
        .at(
            "/openapi.yaml",
            get(poem::endpoint::make_sync(move |_| contract.clone().with_content_type("application/yaml").into_response())),
        )
        .nest("/", service().into_endpoint())
}

/// Which methods each path answers, for the `Allow` of a 405.
pub struct AllowedMethods(Vec<(Vec<String>, &'static str)>);

impl AllowedMethods {
    /// Those of the contract.
    pub fn of_contract() -> Self {
        let spec: Value = serde_json::from_str(&service().spec()).expect("poem-openapi writes JSON");
        let paths = spec["paths"].as_object().into_iter().flatten();
        Self(paths.map(|(path, operations)| (segments(path), allow(operations))).collect())
    }

    /// The value of `Allow` for a path that exists.
    pub fn at(&self, path: &str) -> &'static str {
        let asked = segments(path);
        let fits = |pattern: &[String]| {
            pattern.len() == asked.len() && pattern.iter().zip(&asked).all(|(part, asked)| part.starts_with('{') || part == asked)
        };
        // What the contract does not know are our few pages.
        self.0.iter().find(|(pattern, _)| fits(pattern)).map_or("GET, HEAD", |(_, allow)| allow)
    }
}

fn segments(path: &str) -> Vec<String> {
    path.split('/').map(str::to_owned).collect()
}

fn allow(operations: &Value) -> &'static str {
    match (operations.get("get").is_some(), operations.get("post").is_some()) {
        (true, true) => "GET, HEAD, POST",
        (false, true) => "POST",
        (_, false) => "GET, HEAD",
    }
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

fn inline_scripts(html: &str) -> impl Iterator<Item = &str> {
    let opened = html.split("<script").skip(1);
    opened.filter_map(|rest| rest.split_once('>')?.1.split_once("</script>")).map(|(script, _)| script)
}
