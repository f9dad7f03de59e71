//! The contract says what the code does, and no operation of it is public by accident.

use std::{collections::HashSet, fs, path::Path};

use api::openapi;
use poem::http::StatusCode;
use serde_json::Value;

use crate::stage::Stage;

#[test]
fn openapi_yaml_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi.yaml");
    let checked_in = fs::read_to_string(path).expect("openapi.yaml");

    assert!(checked_in == openapi::yaml(), "openapi.yaml is not what the code says: run `make openapi`");
}

/// Every operation: its path, its method, and what the contract says of it.
pub fn operations() -> Vec<(String, String, Value)> {
    let spec: Value = serde_json::from_str(&openapi::service().spec()).expect("JSON");
    let paths = spec["paths"].as_object().expect("paths").clone();
    let of_path = |(path, methods): (String, Value)| {
        let methods = methods.as_object().expect("methods").clone();
        methods.into_iter().map(move |(method, operation)| (path.clone(), method, operation)).collect::<Vec<_>>()
    };
    paths.into_iter().flat_map(of_path).collect()
}

/// What anybody may do: the body of each is the credential, or asks for one; so may the first message of a socket be.
const PUBLIC: [&str; 4] = ["register", "login", "refresh", "open_socket"];

#[test]
fn every_operation_under_api_says_who_may_do_it() {
    let under_api: Vec<_> = operations().into_iter().filter(|(path, ..)| path.starts_with("/api")).collect();

    assert!(under_api.len() >= 10);
    for (path, method, operation) in under_api {
        let schemes: Vec<&str> = operation["security"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| Some(one.as_object()?.keys().next()?.as_str()))
            .collect();
        let name = operation["operationId"].as_str().unwrap_or_default();
        let is_own_account = path.starts_with("/api/auth/") && name != "get_profile";
        match schemes.as_slice() {
            [] => assert!(PUBLIC.contains(&name), "{method} {path} is public"),
            ["Login"] => assert!(is_own_account || name == "create_user_api_key", "{method} {path}"),
            ["Bearer", "ApiKey"] => assert!(!is_own_account, "{method} {path}"),
            other => panic!("{method} {path}: {other:?}"),
        }
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
