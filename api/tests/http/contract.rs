//! The contract says what the code does, and no operation of it is public by accident.

use std::{collections::HashSet, fs, path::Path};

use api::openapi;
use poem::http::{Method, StatusCode};
use serde_json::Value;

use crate::stage::{Answer, Stage};

#[test]
fn openapi_yaml_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi.yaml");
    let checked_in = fs::read_to_string(path).expect("openapi.yaml");

    assert!(checked_in == openapi::yaml(), "openapi.yaml is not what the code says: run `make openapi`");
}

fn operations() -> Vec<(String, String, Value)> {
    let spec: Value = serde_json::from_str(&openapi::service().spec()).expect("JSON");
    let paths = spec["paths"].as_object().expect("paths").clone();
    let of_path = |(path, methods): (String, Value)| {
        let methods = methods.as_object().expect("methods").clone();
        methods.into_iter().map(move |(method, operation)| (path.clone(), method, operation)).collect::<Vec<_>>()
    };
    paths.into_iter().flat_map(of_path).collect()
}

#[test]
fn every_operation_under_api_needs_a_key() {
    let guarded: Vec<_> = operations().into_iter().filter(|(path, ..)| path.starts_with("/api")).collect();

    assert!(guarded.len() >= 5);
    for (path, method, operation) in guarded {
        let schemes: Vec<&String> =
            operation["security"].as_array().into_iter().flatten().filter_map(|one| one.as_object()?.keys().next()).collect();
        assert_eq!(schemes, ["Bearer", "ApiKey"], "{method} {path}");
    }
}

#[test]
fn every_operation_is_named_and_explained() {
    let mut names = HashSet::new();
    for (path, method, operation) in operations() {
        let name = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path} has no name")).to_owned();
        assert!(operation["summary"].as_str().is_some_and(|summary| !summary.contains('\n')), "{name}");
        assert!(names.insert(name), "{method} {path}");
    }
}

#[tokio::test]
async fn an_operation_without_a_key_is_refused_whatever_it_is() {
    let stage = Stage::new().await;

    for (path, method, _) in operations().into_iter().filter(|(path, ..)| path.starts_with("/api")) {
        let path = path.replace("{id}", "job_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b");
        let method: Method = method.to_uppercase().parse().expect("a method");
        let bare = poem::Request::builder().method(method.clone()).uri_str(&path);
        let answer = Answer::of(stage.send(bare.finish()).await).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
        assert_eq!(answer.code(), "missing_credentials");
        assert!(answer.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
    }
}

#[tokio::test]
async fn the_contract_and_its_page_need_nothing_from_elsewhere() {
    let stage = Stage::new().await;

    let page = stage.get("/docs").await;
    assert_eq!(page.status, StatusCode::OK);
    let policy = page.header("content-security-policy").expect("a policy").to_owned();
    assert!(policy.contains("default-src 'none'") && policy.matches("'sha256-").count() == 2, "{policy}");
    assert!(!policy.contains("'unsafe-eval'") && !policy.contains("script-src 'unsafe-inline'"), "{policy}");

    let contract = stage.get("/openapi.yaml").await;
    assert_eq!(contract.body, openapi::yaml());
    assert_eq!(contract.header("content-type"), Some("application/yaml"));

    let root = stage.get("/").await;
    assert_eq!((root.status, root.header("location")), (StatusCode::SEE_OTHER, Some("/docs")));
}
