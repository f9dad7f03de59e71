//! The files of a conversation: put, listed, read and taken away; and what nobody gets to by a path.

use std::path::Path;

use futures_util::future::join_all;
use poem::{
    Request,
    http::{Method, StatusCode},
};
use serde_json::{Value, json};
use shared::{id::SessionId, lease::Outcome};

use crate::stage::{Answer, Stage, complete, get, settle};

async fn put(stage: &Stage, path: &str, body: &[u8]) -> Answer {
    stage.ask(Request::builder().method(Method::PUT).uri_str(path).body(body.to_vec())).await
}

async fn delete(stage: &Stage, path: &str) -> Answer {
    stage.ask(Request::builder().method(Method::DELETE).uri_str(path).finish()).await
}

async fn listed(stage: &Stage, files: &str) -> Vec<String> {
    let list = stage.get(files).await.json();
    list["data"].as_array().expect("files").iter().filter_map(|file| file["path"].as_str()).map(str::to_owned).collect()
}

/// The contents that the store keeps of a conversation.
fn stored(stage: &Stage, session: &str) -> usize {
    let session: SessionId = session.parse().expect("an id");
    let folder = Path::new(&stage.app.config.store.workspace_store).join(session.uuid().simple().to_string());
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_file_is_read_as_it_was_put() {
    let stage = Stage::new().await;
    let files = format!("/api/sessions/{}/files", stage.session().await);
    let content: Vec<u8> = (0..=255).cycle().take(300_000).collect();

    let made = put(&stage, &format!("{files}/src/%C3%A4%20b.bin"), &content).await;
    assert_eq!((made.status, &made.json()["bytes"]), (StatusCode::CREATED, &json!(300_000)));
    let read = stage.get(&format!("{files}/src/%C3%A4%20b.bin")).await;
    let by_one_segment = stage.get(&format!("{files}/src%2F%C3%A4%20b.bin")).await;

    assert_eq!((read.status, read.body.as_ref()), (StatusCode::OK, content.as_slice()));
    assert_eq!(by_one_segment.body, read.body);
    for (name, value) in [
        ("content-type", "application/octet-stream"),
        ("content-disposition", "attachment; filename*=UTF-8''%C3%A4%20b.bin"),
        ("content-security-policy", "sandbox; default-src 'none'"),
        ("x-content-type-options", "nosniff"),
        ("content-length", "300000"),
    ] {
        assert_eq!(read.header(name), Some(value), "{name}");
    }
    let sha256 = made.json()["sha256"].as_str().expect("a hash").to_owned();
    assert_eq!(read.header("etag"), Some(format!("\"{sha256}\"").as_str()));
    assert_eq!(listed(&stage, &files).await, ["src/ä b.bin"]);
}

#[tokio::test]
async fn a_file_that_is_replaced_or_taken_away_leaves_nothing_in_the_store() {
    let stage = Stage::new().await;
    let session = stage.session().await;
    let files = format!("/api/sessions/{session}/files");
    let (a, b) = (format!("{files}/a"), format!("{files}/b/c"));

    assert_eq!(put(&stage, &a, b"one").await.status, StatusCode::CREATED);
    assert_eq!(put(&stage, &a, b"two").await.status, StatusCode::OK);
    assert_eq!(put(&stage, &b, b"two").await.status, StatusCode::CREATED);
    assert_eq!(stored(&stage, &session), 1, "the same content is kept once, and the former one not at all");

    assert_eq!(delete(&stage, &a).await.status, StatusCode::NO_CONTENT);
    assert_eq!(delete(&stage, &a).await.status, StatusCode::NOT_FOUND);
    assert_eq!(stage.get(&b).await.body.as_ref(), b"two");
    assert_eq!(delete(&stage, &b).await.status, StatusCode::NO_CONTENT);
    assert_eq!((listed(&stage, &files).await.len(), stored(&stage, &session)), (0, 0));
}

#[tokio::test]
async fn the_list_goes_on_where_its_page_ends() {
    let stage = Stage::new().await;
    let files = format!("/api/sessions/{}/files", stage.session().await);
    for name in ["b", "a/1", "c", "a/2"] {
        put(&stage, &format!("{files}/{name}"), name.as_bytes()).await;
    }

    let page = stage.get(&format!("{files}?limit=3")).await.json();
    let paths = |page: &Value| page["data"].as_array().expect("files").iter().map(|file| file["path"].clone()).collect::<Vec<_>>();
    assert_eq!((paths(&page), &page["next_cursor"]), (vec![json!("a/1"), json!("a/2"), json!("b")], &json!("b")));
    assert_eq!(paths(&stage.get(&format!("{files}?cursor=b")).await.json()), [json!("c")]);
    assert_eq!(stage.get(&format!("{files}?cursor=../x")).await.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn no_path_leads_out_of_a_workspace() {
    let stage = Stage::new().await;
    let session = stage.session().await;
    let files = format!("/api/sessions/{session}/files");
    put(&stage, &format!("{files}/a/b"), b"x").await;

    for path in [
        "..",
        "../x",
        "a/../../x",
        "%2e%2e",
        "%2e%2e%2fx",
        "a/%2e%2e/x",
        ".%2e/x",
        "%2Fetc%2Fpasswd",
        "/etc/passwd",
        "a//b",
        "a/",
        "./a",
        "a/.",
        "a%00b",
        "%00",
    ] {
        let path = format!("{files}/{path}");
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let answer = stage.ask(Request::builder().method(method.clone()).uri_str(&path).body("x")).await;
            assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"), "{method} {path}");
            assert_eq!(answer.json()["errors"][0]["pointer"], "path");
        }
    }
    for path in [format!("{files}/a"), format!("{files}/a/b/c")] {
        let answer = put(&stage, &path, b"x").await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::CONFLICT, "path_occupied"), "{path}");
        assert_eq!(stage.get(&path).await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(put(&stage, &format!("{files}/%FF"), b"x").await.status, StatusCode::NOT_FOUND);
    assert_eq!((listed(&stage, &files).await, stored(&stage, &session)), (vec!["a/b".to_owned()], 1), "nothing of it was kept");
}

#[tokio::test]
async fn what_is_too_much_is_refused_and_not_kept() {
    let settings = [("MAX_FILE_BYTES", "1000"), ("WORKSPACE_MAX_BYTES", "1500"), ("WORKSPACE_MAX_FILES", "3")];
    let stage = Stage::set(&settings).await;
    let session = stage.session().await;
    let files = format!("/api/sessions/{session}/files");
    let refused = async |path: &str, size: usize| {
        let answer = put(&stage, &format!("{files}/{path}"), &vec![b'x'; size]).await;
        (answer.status.as_u16(), answer.code())
    };

    assert_eq!(refused("a", 1001).await, (413, "body_too_large".to_owned()));
    assert_eq!(put(&stage, &format!("{files}/a"), &[b'x'; 1000]).await.status, StatusCode::CREATED);
    assert_eq!(refused("b", 501).await, (413, "workspace_full".to_owned()));
    for name in ["b", "c"] {
        assert_eq!(put(&stage, &format!("{files}/{name}"), b"").await.status, StatusCode::CREATED);
    }
    assert_eq!(refused("d", 0).await, (413, "workspace_full".to_owned()));

    assert_eq!((listed(&stage, &files).await.len(), stored(&stage, &session)), (3, 2));
}

#[tokio::test]
async fn all_sessions_of_a_user_together_hold_no_more_than_they_may() {
    let stage = Stage::set(&[("WORKSPACES_MAX_BYTES_PER_USER", "1500")]).await;
    let (first, second) = (stage.session().await, stage.session().await);
    let put = async |session: &str, path: &str, size: usize| {
        put(&stage, &format!("/api/sessions/{session}/files/{path}"), &vec![b'x'; size]).await.status.as_u16()
    };

    assert_eq!([put(&first, "a", 1000).await, put(&second, "a", 501).await, put(&second, "a", 500).await], [201, 413, 201]);
    // What is there may be replaced, and makes room once it is gone.
    assert_eq!([put(&first, "a", 900).await, put(&first, "b", 101).await, put(&second, "b", 100).await], [200, 413, 201]);
    let delete = Request::builder().method(Method::DELETE).uri_str(format!("/api/sessions/{first}")).finish();
    assert_eq!(stage.ask(delete).await.status, StatusCode::NO_CONTENT);
    assert_eq!(put(&second, "b", 1000).await, 200);
}

#[tokio::test]
async fn while_a_job_runs_the_files_are_the_jobs() {
    let stage = Stage::new().await;
    let session = stage.session().await;
    let files = format!("/api/sessions/{session}/files");
    put(&stage, &format!("{files}/a"), b"before").await;
    stage.submit_turn(&session, "hi").await;
    let waiting = put(&stage, &format!("{files}/b"), b"meanwhile").await;
    let lease = stage.hand().await.take().await;

    let busy = [put(&stage, &format!("{files}/a"), b"x").await, delete(&stage, &format!("{files}/a")).await];
    let (manifest, _) = lease.workspace().await.expect("an answer").expect("a conversation");
    assert_eq!(stage.get(&format!("{files}/a")).await.body.as_ref(), b"before");
    settle(lease, Outcome::HandBack).await;

    assert_eq!(waiting.status, StatusCode::CREATED);
    assert_eq!(manifest.entries().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    for answer in busy {
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::CONFLICT, "session_busy"));
    }
    assert_eq!(put(&stage, &format!("{files}/a"), b"after").await.status, StatusCode::OK);
}

#[tokio::test]
async fn of_uploads_to_one_path_at_once_one_stays_whole() {
    let stage = Stage::new().await;
    let session = stage.session().await;
    let path = format!("/api/sessions/{session}/files/a");
    let contents: Vec<Vec<u8>> = (b'a'..=b'h').map(|letter| vec![letter; 100_000]).collect();

    let answers = join_all(contents.iter().map(|content| put(&stage, &path, content))).await;

    assert!(answers.iter().all(|answer| answer.status.is_success()));
    assert_eq!(answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count(), 1);
    let kept = stage.ask(get(&path)).await.body;
    assert!(contents.iter().any(|content| content.as_slice() == kept.as_ref()));
    assert_eq!(stored(&stage, &session), 1);
}

#[tokio::test]
async fn a_turn_that_kept_nothing_leaves_the_files_as_they_were() {
    let stage = Stage::new().await;
    let session = stage.session().await;
    let files = format!("/api/sessions/{session}/files");
    put(&stage, &format!("{files}/a"), b"x").await;
    stage.submit_turn(&session, "hi").await;

    complete(stage.hand().await.take().await, "hello").await;

    assert_eq!((listed(&stage, &files).await, stored(&stage, &session)), (vec!["a".to_owned()], 1));
}
