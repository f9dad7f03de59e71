//! The form an answer is to have: a JSON Schema, known to be one. What it refers to elsewhere is never
//! fetched, and its patterns are matched in linear time.

use jsonschema::{PatternOptions, Validator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest schema, in bytes of JSON.
pub const MAX_BYTES: usize = 64 * 1024;

/// A JSON Schema of an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OutputSchema(Value);

/// Why something is no output schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchema {
    /// It is too long.
    #[error("must be at most {MAX_BYTES} bytes of JSON")]
    TooLong,
    /// The model hands in an object, or nothing.
    #[error("must be a JSON Schema with `\"type\": \"object\"`")]
    NotOfAnObject,
    /// It is not a schema.
    #[error("is not a JSON Schema: {0}")]
    NotASchema(String),
}

impl OutputSchema {
    /// `schema`, if it is one. What was read back from the record needs no second look.
    pub fn parse(schema: Value) -> Result<Self, InvalidSchema> {
        if schema.to_string().len() > MAX_BYTES {
            return Err(InvalidSchema::TooLong);
        }
        if schema.get("type").and_then(Value::as_str) != Some("object") {
            return Err(InvalidSchema::NotOfAnObject);
        }
        let schema = Self(schema);
        schema.validator()?;
        Ok(schema)
    }

    /// The schema itself.
    pub fn as_json(&self) -> &Value {
        &self.0
    }

    /// Whether `answer` has this form; otherwise where it first has not, in a sentence without its words.
    pub fn admits(&self, answer: &Value) -> Result<(), String> {
        let validator = self.validator().map_err(|error| error.to_string())?;
        validator.validate(answer).map_err(|error| format!("`{}` does not fit `{}`", error.instance_path(), error.schema_path()))
    }

    fn validator(&self) -> Result<Validator, InvalidSchema> {
        let patterns = PatternOptions::regex().size_limit(1024 * 1024);
        let validator = jsonschema::options().offline().with_pattern_options(patterns).build(&self.0);
        validator.map_err(|error| InvalidSchema::NotASchema(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_held_to_its_form() {
        let schema =
            json!({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": false});
        let schema = OutputSchema::parse(schema).expect("a schema");

        assert_eq!(schema.admits(&json!({"age": 36})), Ok(()));
        let wrong = schema.admits(&json!({"age": "hunter2"})).expect_err("not an integer");
        assert!(wrong.contains("/age") && !wrong.contains("hunter2"), "{wrong}");
        assert!(schema.admits(&json!({})).is_err());
    }

    #[test]
    fn what_is_no_schema_of_an_object_is_refused() {
        let long = json!({"type": "object", "description": "x".repeat(MAX_BYTES)});
        assert_eq!(OutputSchema::parse(long), Err(InvalidSchema::TooLong));
        for wrong in [json!([]), json!({}), json!({"type": "array"}), json!(true)] {
            assert_eq!(OutputSchema::parse(wrong.clone()), Err(InvalidSchema::NotOfAnObject), "{wrong}");
        }
        for wrong in [
            json!({"type": "object", "properties": {"a": {"type": "strnig"}}}),
            json!({"type": "object", "required": "name"}),
            json!({"type": "object", "properties": {"a": {"pattern": "("}}}),
            json!({"type": "object", "properties": {"a": {"$ref": "https://example.com/schema.json"}}}),
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}}),
        ] {
            assert!(matches!(OutputSchema::parse(wrong.clone()), Err(InvalidSchema::NotASchema(_))), "{wrong}");
        }
    }
}
