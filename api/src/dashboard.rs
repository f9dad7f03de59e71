//! The dashboard at `/admin`: one page, what it loads, and the policy that lets exactly that run. A release holds the
//! files in itself; a debug build reads `dashboard/dist` as it runs. The page knows its paths: every one of them is
//! answered with it, so a link into it can be opened anew.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use poem::{
    Endpoint, IntoResponse as _, Request, Response, Result,
    http::{HeaderMap, HeaderName, StatusCode, header},
};
use rust_embed::{EmbeddedFile, RustEmbed};
use uuid::Uuid;

use crate::error::ApiError;

/// Where the dashboard is.
pub const PATH: &str = "/admin";

const PAGE: &str = "index.html";

/// What has its content in its name.
const ASSETS: &str = "assets/";

/// What stands in the page where each answer has a word of its own.
const NONCE: &str = "__nonce__";

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
struct Built;

/// Answers every path below [`PATH`].
pub struct Dashboard {
    find: fn(&str) -> Option<EmbeddedFile>,
}

impl Dashboard {
    /// With the files that were there when this was built, or in a debug build are there now.
    pub fn built() -> Self {
        Self { find: Built::get }
    }
}

impl Endpoint for Dashboard {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let path = request.uri().path().strip_prefix(PATH).unwrap_or_default().trim_start_matches('/');
        match (self.find)(path).filter(|_| path != PAGE) {
            Some(file) => Ok(self.asset(&file, path, request.headers())),
            None if is_asset(path) => Err(ApiError::not_found().into()),
            None => Ok((self.find)(PAGE).map_or_else(not_built, |page| page_of(&page))),
        }
    }
}

impl Dashboard {
    fn asset(&self, file: &EmbeddedFile, path: &str, asked: &HeaderMap) -> Response {
        let packed = (self.find)(&format!("{path}.gz"));
        let may_vary = packed.is_some();
        let packed = packed.filter(|_| names(asked, header::ACCEPT_ENCODING, |coding| coding.split(';').next() == Some("gzip")));
        let sent = packed.as_ref().unwrap_or(file);
        let tag = format!("\"{}\"", BASE64_STANDARD.encode(sent.metadata.sha256_hash()));
        let lasts = if path.starts_with(ASSETS) { FOREVER } else { "no-cache" };
        let is_known = names(asked, header::IF_NONE_MATCH, |known| known.trim_start_matches("W/") == tag);

        let mut answer = Response::builder().header(header::ETAG, tag).header(header::CACHE_CONTROL, lasts);
        if may_vary {
            answer = answer.header(header::VARY, "accept-encoding");
        }
        if is_known {
            return answer.status(StatusCode::NOT_MODIFIED).finish();
        }
        if packed.is_some() {
            answer = answer.header(header::CONTENT_ENCODING, "gzip");
        }
        answer.content_type(file.metadata.mimetype()).body(sent.data.to_vec())
    }
}

/// Whether one of the words of a header is the one.
fn names(asked: &HeaderMap, header: HeaderName, is_it: impl Fn(&str) -> bool) -> bool {
    asked.get_all(header).iter().filter_map(|words| words.to_str().ok()).flat_map(|words| words.split(',')).any(|word| is_it(word.trim()))
}

/// Whether a path is that of a file, and not of a place in the page.
fn is_asset(path: &str) -> bool {
    path.starts_with(ASSETS) || (path != PAGE && path.rsplit('/').next().is_some_and(|name| name.contains('.')))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_was_built_without_it_says_how_it_is_built() {
        let dashboard = Dashboard { find: |_| None };

        for path in ["/admin", "/admin/jobs/job_1"] {
            let request = Request::builder().uri_str(path).finish();
            let answer = dashboard.call(request).await.expect("a page");
            assert_eq!((answer.status(), answer.content_type()), (StatusCode::NOT_FOUND, Some("text/html; charset=utf-8")));
            let page = answer.into_body().into_string().await.expect("UTF-8");
            assert!(page.contains("<code>make dashboard</code>"), "{page}");
        }
    }

    #[test]
    fn a_place_in_the_page_is_no_file() {
        for place in ["", "jobs", "jobs/job_1", "users/user_1", "index.html"] {
            assert!(!is_asset(place), "{place}");
        }
        for file in ["assets/a.js", "assets/a", "favicon.svg", "jobs/a.js"] {
            assert!(is_asset(file), "{file}");
        }
    }
}
