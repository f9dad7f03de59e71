//! A refusal of the API, as its status or as an error event in a stream.

use serde_json::{Value, json};

/// A refusal in the API's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// The `type` in the error's body.
    pub kind: String,
}

impl ApiError {
    /// The error the API gives with this status.
    pub fn of_status(status: u16) -> Self {
        let kind = match status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            529 => "overloaded_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        };
        Self { status, kind: kind.into() }
    }

    /// The error of this type, with the status the API gives it.
    pub fn of_kind(kind: &str) -> Self {
        let status = match kind {
            "authentication_error" => 401,
            "permission_error" => 403,
            "not_found_error" => 404,
            "request_too_large" => 413,
            "rate_limit_error" => 429,
            "overloaded_error" => 529,
            "invalid_request_error" => 400,
            _ => 500,
        };
        Self { status, kind: kind.into() }
    }

    /// The body the API sends.
    pub fn body(&self) -> Value {
        json!({"type": "error", "error": {"type": self.kind, "message": format!("mock {}", self.kind)}})
    }
}
