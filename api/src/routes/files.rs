//! The files of a conversation: what its jobs work on, and what they leave. A path of a client never becomes
//! one of this server: it is looked up in a list, which names a content.

use std::fmt::Write as _;

use poem::{Body, Request, http::Uri, web::Data};
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    param::{Path, Query},
    payload::{Binary, Json},
};
use shared::{
    id::SessionId,
    time::Timestamp,
    workspace::{Entry, FilePath, LONGEST_PATH, Manifest},
};

use crate::{
    app::App,
    auth::{self, Authenticated, Chat, Read},
    contract::{Bounded, Wire},
    error::{ApiError, FieldError},
    openapi::Tag,
    upload::Upload,
};

/// A page that opened a file as one of ours could do nothing with it.
const POLICY: &str = "sandbox; default-src 'none'";

/// The operations on the files of conversations.
pub struct FilesApi;

/// What is at a path of a workspace.
#[derive(Debug, Object)]
struct WorkspaceFile {
    /// Where it is.
    path: String,
    /// `file`, `link`, or `folder` for one with nothing in it.
    kind: String,
    /// How large it is.
    bytes: u64,
    /// The SHA-256 of its content, in hexadecimal digits; null of what is no file.
    #[oai(nullable)]
    sha256: Option<String>,
    /// Whether its owner may run it.
    executable: bool,
    /// When it was last written; null of what is no file.
    #[oai(nullable)]
    modified_at: Option<Wire<Timestamp>>,
    /// Where a link leads.
    #[oai(skip_serializing_if_is_none)]
    target: Option<String>,
}

/// A page of a workspace, by path.
#[derive(Debug, Object)]
struct FileList {
    /// What is in it.
    data: Vec<WorkspaceFile>,
    /// The `cursor` of the next page; null on the last.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

#[derive(ApiResponse)]
enum GetFileResponse {
    /// The file, to be saved: a browser does not show it.
    #[oai(status = 200)]
    Found(
        Binary<Body>,
        /// How it is to be saved.
        #[oai(header = "Content-Disposition")]
        String,
        /// Lets a page that opens it do nothing.
        #[oai(header = "Content-Security-Policy")]
        String,
        /// Changes with the content.
        #[oai(header = "ETag")]
        String,
        /// How large it is, in bytes.
        #[oai(header = "Content-Length")]
        u64,
    ),
}

#[derive(ApiResponse)]
enum PutFileResponse {
    /// The file took the place of another.
    #[oai(status = 200)]
    Replaced(Json<WorkspaceFile>),
    /// The file is there.
    #[oai(status = 201)]
    Created(Json<WorkspaceFile>),
}

#[derive(ApiResponse)]
enum DeleteFileResponse {
    /// The file is gone.
    #[oai(status = 204)]
    Deleted,
}

#[OpenApi(prefix_path = "/api", tag = "Tag::Sessions")]
impl FilesApi {
    /// List the files of a conversation, by path.
    ///
    /// They are as the last job that completed left them, or its owner since.
    #[oai(path = "/sessions/:id/files", method = "get", operation_id = "list_session_files")]
    async fn list_session_files(
        &self,
        auth: Authenticated<Read>,
        app: Data<&App>,
        /// The conversation.
        id: Path<Wire<SessionId>>,
        /// The most files to answer; 100 if absent.
        limit: Query<Option<Wire<Bounded<1, 1000>>>>,
        /// The `next_cursor` of the page before.
        #[oai(validator(min_length = 1, max_length = 1024))]
        cursor: Query<Option<String>>,
    ) -> Result<Json<FileList>, ApiError> {
        let limit = limit.0.map_or(100, |Wire(Bounded(limit))| limit as usize);
        let after = cursor.0.map(|cursor| cursor.parse::<FilePath>()).transpose();
        let after = after.map_err(|error| ApiError::invalid(vec![FieldError::new("cursor", error.to_string())]))?;
        let manifest = app.workspaces.list(auth.user_id(), id.0.0).await?.ok_or_else(ApiError::not_found)?;
        Ok(Json(page(&manifest, after.as_ref(), limit)))
    }

    /// Get a file of a conversation.
    #[oai(path = "/sessions/:id/files/:path", method = "get", operation_id = "get_session_file")]
    async fn get_session_file(
        &self,
        auth: Authenticated<Read>,
        app: Data<&App>,
        /// The conversation.
        id: Path<Wire<SessionId>>,
        /// Where the file is. Slashes may be written as they are.
        #[oai(validator(min_length = 1, max_length = 1024))]
        path: Path<String>,
    ) -> Result<GetFileResponse, ApiError> {
        let path = parsed(&path.0)?;
        let manifest = app.workspaces.list(auth.user_id(), id.0.0).await?.ok_or_else(ApiError::not_found)?;
        let Some(Entry::File { sha256, bytes, .. }) = manifest.get(&path) else { return Err(ApiError::not_found()) };
        let (contents, hash) = (app.workspaces.contents(id.0.0), sha256.clone());
        let opened = tokio::task::spawn_blocking(move || contents.open(&hash)).await.map_err(ApiError::internal)?;
        let file = match opened {
            Ok(file) => tokio::fs::File::from_std(file),
            Err(error) => {
                // Unless the list changed since it was read, and the content went with it, something is wrong.
                let now = app.workspaces.list(auth.user_id(), id.0.0).await?.ok_or_else(ApiError::not_found)?;
                let is_gone = now.get(&path) != manifest.get(&path);
                return Err(if is_gone { ApiError::not_found() } else { ApiError::internal(error) });
            }
        };
        let body = Binary(Body::from_async_read(file));
        Ok(GetFileResponse::Found(body, disposition(&path), POLICY.to_owned(), format!("\"{}\"", sha256.as_str()), *bytes))
    }

    /// Put a file into a conversation.
    ///
    /// The body is the file, whatever type it says to be. Its folders need not be there. While a job of the
    /// conversation runs, its files are the job's.
    #[oai(path = "/sessions/:id/files/:path", method = "put", operation_id = "put_session_file")]
    async fn put_session_file(
        &self,
        auth: Authenticated<Chat>,
        app: Data<&App>,
        /// The conversation.
        id: Path<Wire<SessionId>>,
        /// Where the file is to be. Slashes may be written as they are.
        #[oai(validator(min_length = 1, max_length = 1024))]
        path: Path<String>,
        upload: Upload,
    ) -> Result<PutFileResponse, ApiError> {
        let path = parsed(&path.0)?;
        // Before the body is read: somebody else's conversation takes none, nor does one that takes nothing.
        let session = app.sessions.find(auth.user_id(), id.0.0).await?.ok_or_else(ApiError::not_found)?;
        if session.archived {
            return Err(shared::Error::SessionArchived.into());
        }
        let received = upload.receive(app.workspaces.contents(id.0.0), app.config.max_file_bytes).await?;
        auth::confirm(&app.access, auth.principal()).await?;
        let (entry, replaced) = app.workspaces.put(auth.user_id(), id.0.0, path.clone(), received).await?;
        let shown = Json(WorkspaceFile::of(&path, &entry));
        Ok(if replaced { PutFileResponse::Replaced(shown) } else { PutFileResponse::Created(shown) })
    }

    /// Take a file out of a conversation.
    #[oai(path = "/sessions/:id/files/:path", method = "delete", operation_id = "delete_session_file")]
    async fn delete_session_file(
        &self,
        auth: Authenticated<Chat>,
        app: Data<&App>,
        /// The conversation.
        id: Path<Wire<SessionId>>,
        /// Where the file is. Slashes may be written as they are.
        #[oai(validator(min_length = 1, max_length = 1024))]
        path: Path<String>,
    ) -> Result<DeleteFileResponse, ApiError> {
        let removed = app.workspaces.remove(auth.user_id(), id.0.0, &parsed(&path.0)?).await?;
        if removed { Ok(DeleteFileResponse::Deleted) } else { Err(ApiError::not_found()) }
    }
}

fn parsed(path: &str) -> Result<FilePath, ApiError> {
    path.parse().map_err(|_| {
        let detail = format!("must be names of at most 255 bytes, joined by `/`, {LONGEST_PATH} bytes together, none of them `.` or `..`");
        ApiError::invalid(vec![FieldError::new("path", detail)])
    })
}

fn page(manifest: &Manifest, after: Option<&FilePath>, limit: usize) -> FileList {
    let entries: Vec<_> = match after {
        Some(path) => manifest.after(path).take(limit + 1).collect(),
        None => manifest.entries().take(limit + 1).collect(),
    };
    let shown = &entries[..entries.len().min(limit)];
    let next_cursor = shown.last().filter(|_| entries.len() > limit).map(|(path, _)| path.to_string());
    FileList { data: shown.iter().map(|(path, entry)| WorkspaceFile::of(path, entry)).collect(), next_cursor }
}

impl WorkspaceFile {
    fn of(path: &FilePath, entry: &Entry) -> Self {
        let bare = |kind: &str| Self {
            path: path.to_string(),
            kind: kind.to_owned(),
            bytes: 0,
            sha256: None,
            executable: false,
            modified_at: None,
            target: None,
        };
        match entry {
            Entry::File { sha256, bytes, executable, modified_at } => Self {
                bytes: *bytes,
                sha256: Some(sha256.as_str().to_owned()),
                executable: *executable,
                modified_at: Some(Wire(*modified_at)),
                ..bare("file")
            },
            Entry::Link { target } => Self { target: Some(target.clone()), ..bare("link") },
            Entry::Folder => bare("folder"),
        }
    }
}

/// To be saved under its own name (RFC 6266): as RFC 8187 writes any text in a header.
fn disposition(path: &FilePath) -> String {
    let name = path.as_str().rsplit('/').next().unwrap_or_default();
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a string takes all that is written to it");
        }
    }
    format!("attachment; filename*=UTF-8''{encoded}")
}

/// Make one segment of the path of a file in the address of `request`: the contract has one place for it, and
/// clients may write its slashes as they are.
pub fn join_path(request: &mut Request) {
    let Some((prefix, path)) = split(request.uri().path()) else { return };
    if !path.contains('/') {
        return;
    }
    let joined = format!("{prefix}{}", path.replace('/', "%2F"));
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut parts = request.uri().clone().into_parts();
    // What was a path and query before is one still.
    parts.path_and_query = format!("{joined}{query}").parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

/// Whether this is the path of a file.
pub fn is_file(path: &str) -> bool {
    split(path).is_some()
}

/// `/api/sessions/{id}/files/` and what comes after it.
fn split(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/api/sessions/")?;
    let (id, rest) = rest.split_once('/')?;
    let file = rest.strip_prefix("files/").filter(|file| !file.is_empty())?;
    let prefix = "/api/sessions/".len() + id.len() + "/files/".len();
    Some((&path[..prefix], file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(uri: &str) -> String {
        let mut request = Request::builder().uri_str(uri).finish();
        join_path(&mut request);
        request.uri().to_string()
    }

    #[test]
    fn the_path_of_a_file_becomes_one_segment_and_nothing_else_changes() {
        assert_eq!(joined("/api/sessions/s/files/a/b%20c/%2e%2e?x=/y"), "/api/sessions/s/files/a%2Fb%20c%2F%2e%2e?x=/y");
        for same in ["/api/sessions/s/files/a", "/api/sessions/s/files/", "/api/sessions/s/messages", "/api/jobs/s/files/a/b", "/"] {
            assert_eq!(joined(same), same);
        }
    }

    #[test]
    fn a_name_stays_within_its_header() {
        let of = |path: &str| disposition(&path.parse().expect("a path"));

        assert_eq!(of("a/b.txt"), "attachment; filename*=UTF-8''b.txt");
        assert_eq!(of("a/ä\"\r\n;.sh"), "attachment; filename*=UTF-8''%C3%A4%22%0D%0A%3B.sh");
    }
}
