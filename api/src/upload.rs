//! The body of an upload: any bytes, of any type, read piece by piece into the place where they stay.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use poem::{Body, Request, RequestBody, Result};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef, Registry},
};
use shared::{
    contents::{Contents, Incoming, Received},
    workspaces::blocking,
};

use crate::{
    body::declared_length,
    error::{ApiError, Code},
};

/// The longest wait for the next piece of a file. How long all of it may take, `deadline` says.
const SILENCE: Duration = Duration::from_secs(30);

/// A body that is a file.
pub struct Upload {
    body: Body,
    declared: Option<usize>,
}

impl Upload {
    /// Read it into `contents`; at most `limit` bytes.
    pub async fn receive(self, contents: Contents, limit: u64) -> Result<Received, ApiError> {
        if self.declared.is_some_and(|length| length as u64 > limit) {
            return Err(too_large(limit));
        }
        read(self.body, contents, limit).await
    }
}

async fn read(body: Body, contents: Contents, limit: u64) -> Result<Received, ApiError> {
    let mut incoming = blocking(move || contents.receive()).await?;
    let mut chunks = body.into_bytes_stream();
    let slow = |_| ApiError::new(Code::RequestTimeout, "the body came too slowly");
    while let Some(chunk) = tokio::time::timeout(SILENCE, chunks.next()).await.map_err(slow)? {
        let chunk: Bytes = chunk.map_err(|_| ApiError::new(Code::BadRequest, "the body broke off"))?;
        if incoming.bytes() + chunk.len() as u64 > limit {
            return Err(too_large(limit));
        }
        incoming = blocking(move || write(incoming, &chunk)).await?;
    }
    Ok(blocking(move || incoming.finish_durably()).await?)
}

fn write(mut incoming: Incoming, chunk: &[u8]) -> std::io::Result<Incoming> {
    incoming.write(chunk)?;
    Ok(incoming)
}

fn too_large(limit: u64) -> ApiError {
    ApiError::new(Code::BodyTooLarge, format!("the file is larger than {limit} bytes"))
}

impl<'a> ApiExtractor<'a> for Upload {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(_registry: &mut Registry) {}

    fn request_meta() -> Option<MetaRequest> {
        let schema = MetaSchemaRef::Inline(Box::new(MetaSchema::new_with_format("string", "binary")));
        let content = vec![MetaMediaType { content_type: "application/octet-stream", schema }];
        // A file may be empty.
        Some(MetaRequest { description: None, content, required: false })
    }

    async fn from_request(request: &'a Request, body: &mut RequestBody, _options: ExtractParamOptions<()>) -> Result<Self> {
        Ok(Self { declared: declared_length(request), body: body.take()? })
    }
}
