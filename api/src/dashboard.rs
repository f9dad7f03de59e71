//! The dashboard at `/admin`: one page, what it loads, and the policy that lets exactly that run. A release holds the
//! files in itself; a debug build reads `dashboard/dist` as it runs. The page knows its paths: every one of them is
//! answered with it, so a link into it can be opened anew.

use std::marker::PhantomData;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use poem::{
    Body, Endpoint, IntoResponse as _, Request, Response, Result,
    http::{HeaderMap, StatusCode, header},
};
use rust_embed::{EmbeddedFile, RustEmbed};
use uuid::Uuid;

use crate::error::ApiError;

/// Where the dashboard is.
pub const PATH: &str = "/admin";

/// What stands in the page where each answer has a word of its own.
const NONCE: &str = "__nonce__";

/// Its name is made of its content.
const FOREVER: &str = "public, max-age=31536000, immutable";

const NOT_BUILT: &str = "\
<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<title>The dashboard is not built</title>
<h1>The dashboard is not built</h1>
<p>This server was built without it. <code>make dashboard</code> builds it, which needs Node.js 20.19 or later; \
a release has to be built again after that.</p>
<p>The API itself is complete: see <a href=\"/docs\">its pages</a>.</p>
";

/// What `make dashboard` built.
#[derive(RustEmbed)]
#[folder = "dashboard/dist"]
#[allow_missing = true]
pub struct Built;

/// Answers every path below [`PATH`] from the files of `F`.
pub struct Dashboard<F = Built>(PhantomData<F>);

impl<F> Default for Dashboard<F> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<F: RustEmbed + Send + Sync> Endpoint for Dashboard<F> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let path = request.uri().path().strip_prefix(PATH).unwrap_or_default().trim_start_matches('/');
        match F::get(path).filter(|_| path != "index.html") {
            Some(file) => Ok(asset(&file, path, request.headers())),
            None if is_asset(path) => Err(ApiError::not_found().into()),
            None => Ok(F::get("index.html").map_or_else(not_built, |page| page_of(&page))),
        }
    }
}

/// Whether a path is that of a file, and not of a place in the page.
fn is_asset(path: &str) -> bool {
    path.starts_with("assets/") || path.rsplit('/').next().is_some_and(|name| name.contains('.') && name != "index.html")
}

fn asset(file: &EmbeddedFile, path: &str, asked: &HeaderMap) -> Response {
    let tag = format!("\"{}\"", BASE64_STANDARD.encode(file.metadata.sha256_hash()));
    let lasts = if path.starts_with("assets/") { FOREVER } else { "no-cache" };
    let known = asked.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    let is_known = known.is_some_and(|tags| tags.split(',').any(|known| known.trim().trim_start_matches("W/") == tag));
    let answer = Response::builder().header(header::ETAG, tag).header(header::CACHE_CONTROL, lasts);
    if is_known {
        return answer.status(StatusCode::NOT_MODIFIED).finish();
    }
    answer.content_type(file.metadata.mimetype()).body(Body::from_vec(file.data.to_vec()))
}

/// The page, with a word that lets its own styles in and nobody else's. It is never kept: its word is used once.
fn page_of(page: &EmbeddedFile) -> Response {
    let nonce = Uuid::new_v4().simple().to_string();
    let html = String::from_utf8_lossy(&page.data).replace(NONCE, &nonce);
    // Mantine writes `<style>` elements; what React sets on an element goes by no policy.
    let policy = format!(
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; \
         script-src 'self'; style-src 'self' 'nonce-{nonce}'; connect-src 'self'; img-src 'self' data:; font-src 'self'; \
         manifest-src 'self'"
    );
    Response::builder()
        .content_type("text/html; charset=utf-8")
        .header(header::CONTENT_SECURITY_POLICY, policy)
        .header(header::CACHE_CONTROL, "no-store")
        .body(html)
}

fn not_built() -> Response {
    NOT_BUILT.with_content_type("text/html; charset=utf-8").with_status(StatusCode::NOT_FOUND).into_response()
}
