//! How the dashboard is served. The tests need it built: `make dashboard`, which `make test` does.

use poem::{
    Request,
    http::{HeaderValue, Method, StatusCode},
};

use crate::stage::{Answer, Stage, get, with};

const HINT: &str = "the dashboard is not built (hint: `make dashboard`)";

/// The value of the first `attribute` in `page` that begins as `value` does.
fn linked<'a>(page: &'a str, attribute: &str, value: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("{attribute}=\"{value}")).expect(HINT);
    let end = rest.find('"').expect("a closed attribute");
    let start = page.len() - rest.len() - value.len();
    &page[start..start + value.len() + end]
}

fn html(page: &Answer) -> &str {
    str::from_utf8(&page.body).expect("UTF-8")
}

fn directive<'a>(page: &'a Answer, name: &str) -> &'a str {
    let policy = page.header("content-security-policy").expect("a policy");
    policy.split(';').map(str::trim).find_map(|part| part.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_default()
}

#[tokio::test]
async fn every_place_in_the_dashboard_is_answered_with_its_page() {
    let stage = Stage::new().await;

    for path in ["/admin", "/admin/", "/admin/jobs", "/admin/jobs/job_0123456789abcdef0123456789abcdef", "/admin/index.html"] {
        let page = stage.get(path).await;
        assert_eq!((page.status, page.header("content-type")), (StatusCode::OK, Some("text/html; charset=utf-8")), "{path}: {HINT}");
        assert!(html(&page).contains("<div id=\"root\">"), "{path}");
        assert_eq!(page.header("cache-control"), Some("no-store"), "{path}");
    }
    assert_eq!(stage.get("/administrators").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_policy_of_the_page_lets_in_its_own_files_and_the_styles_with_the_word_of_this_answer() {
    let stage = Stage::new().await;

    let (page, other) = (stage.get("/admin").await, stage.get("/admin").await);

    let own = [("default-src", "'none'"), ("script-src", "'self'"), ("connect-src", "'self'"), ("frame-ancestors", "'none'")];
    for (name, allowed) in own.into_iter().chain([("object-src", "'none'"), ("base-uri", "'none'"), ("form-action", "'none'")]) {
        assert_eq!(directive(&page, name), allowed, "{name}");
    }
    let nonce = linked(html(&page), "nonce", "");
    assert_eq!(directive(&page, "style-src"), format!("'self' 'nonce-{nonce}'"));
    assert!(nonce.len() == 32 && !html(&other).contains(nonce), "{nonce}");
    // Without words of its own: what is inline would not run.
    assert!(!html(&page).replace("<script src=", "").replace("<script type=\"module\" crossorigin src=", "").contains("<script"));
}

#[tokio::test]
async fn a_file_whose_name_tells_its_content_is_kept_and_one_that_is_not_there_is_no_page() {
    let stage = Stage::new().await;
    let page = stage.get("/admin").await;
    let script = linked(html(&page), "src", "/admin/assets/");

    let file = stage.get(script).await;
    assert_eq!((file.status, file.header("content-type")), (StatusCode::OK, Some("text/javascript")));
    assert_eq!(file.header("cache-control"), Some("public, max-age=31536000, immutable"));
    let tag = file.header("etag").expect("a tag").to_owned();

    let known = stage.ask(with(get(script), "if-none-match", &tag)).await;
    assert_eq!((known.status, html(&known), known.header("etag")), (StatusCode::NOT_MODIFIED, "", Some(tag.as_str())));
    let another = stage.ask(with(get(script), "if-none-match", "\"of before\"")).await;
    assert_eq!(another.status, StatusCode::OK);

    for missing in ["/admin/assets/gone.js", "/admin/gone.png", "/admin/assets/../../package.json", "/admin/assets/..%2f..%2fpackage.json"]
    {
        let answer = stage.get(missing).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::NOT_FOUND, "not_found"), "{missing}");
    }
}

#[tokio::test]
async fn a_file_without_its_content_in_its_name_is_asked_for_each_time() {
    let stage = Stage::new().await;

    let script = stage.get("/admin/color-scheme.js").await;

    assert_eq!((script.status, script.header("cache-control")), (StatusCode::OK, Some("no-cache")), "{HINT}");
}

#[tokio::test]
async fn who_takes_a_file_packed_gets_it_packed() {
    let stage = Stage::new().await;
    let page = stage.get("/admin").await;
    let script = linked(html(&page), "src", "/admin/assets/");

    let packed = stage.send(with(get(script), "accept-encoding", "br, gzip;q=0.9")).await;
    let headers = packed.headers().clone();
    let packed = packed.into_body().into_bytes().await.expect("a body");
    let plain = stage.get(script).await;

    assert_eq!(headers.get("content-encoding").map(HeaderValue::as_bytes), Some(&b"gzip"[..]));
    assert!(headers.get_all("vary").iter().any(|varies| varies == "accept-encoding"), "{headers:?}");
    assert!(packed.starts_with(&[0x1f, 0x8b]) && packed.len() * 2 < plain.body.len());
    assert_eq!(plain.header("content-encoding"), None);
    assert_ne!(headers.get("etag").and_then(|tag| tag.to_str().ok()), plain.header("etag"));
}

#[tokio::test]
async fn the_dashboard_is_only_read() {
    let stage = Stage::new().await;

    let answer = stage.ask(Request::builder().method(Method::POST).uri_str("/admin").finish()).await;

    assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, Some("GET, HEAD")));
}
