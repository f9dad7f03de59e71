//! How long an answer may take to begin. A stream has begun with its first byte and may last; a client that
//! asks us to wait, or that is slow to send its body, is given the time for it.

use std::{sync::Arc, time::Duration};

use poem::{
    Endpoint, Request, Response, Result,
    http::{Method, header::HeaderName},
};

use crate::{
    body,
    error::{ApiError, Code},
    routes::files,
};

/// How long an operation may take.
const OPERATION: Duration = Duration::from_secs(30);
/// How long one may take that was asked to wait, which it does for a minute at most.
const LONG_POLL: Duration = Duration::from_secs(75);

/// How long a file may take to come: 32 MiB at half a megabit a second.
const UPLOAD: Duration = Duration::from_mins(10);

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Answer `request` by `next`, or say in time that it takes too long.
pub async fn bound<E: Endpoint<Output = Response>>(next: Arc<E>, request: Request) -> Result<Response> {
    let patience = patience(&request);
    // Boxed: each layer would copy the whole future of an operation.
    tokio::time::timeout(patience, Box::pin(next.call(request))).await.unwrap_or_else(|_| {
        tracing::error!("Gave up on a request after {patience:?}");
        Err(ApiError::unavailable(Code::Unavailable, "this took too long: try again", 5).into())
    })
}

fn patience(request: &Request) -> Duration {
    let prefers = request.headers().get_all(PREFER).iter().any(|value| value.to_str().is_ok_and(|value| value.contains("wait")));
    let asks = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("wait=")));
    let has_body = !matches!(*request.method(), Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS);
    let for_work = if prefers || asks { LONG_POLL } else { OPERATION };
    if *request.method() == Method::PUT && files::is_file(request.uri().path()) {
        UPLOAD
    } else if has_body {
        for_work + body::READ_TIMEOUT
    } else {
        for_work
    }
}

#[cfg(test)]
mod tests {
    use poem::{Body, EndpointExt as _, endpoint::make};
    use tokio::time::{Instant, sleep};

    use super::*;

    /// How long a request is waited for whose answer never begins.
    async fn given_up_after(request: Request) -> Duration {
        let hangs = Arc::new(make(|_: Request| std::future::pending::<()>()).map_to_response());
        let begun = Instant::now();

        let error = ApiError::from(bound(hangs, request).await.expect_err("given up"));

        assert_eq!((error.code(), error.retry_after_secs()), (Code::Unavailable, Some(5)));
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_begin_is_given_up() {
        let get = |path| Request::builder().uri_str(path).finish();
        let post = || Request::builder().method(Method::POST).uri_str("/api/chat");

        assert_eq!(given_up_after(get("/api/jobs")).await, Duration::from_secs(30));
        assert_eq!(given_up_after(get("/api/jobs/job_1?wait=60")).await, Duration::from_secs(75));
        assert_eq!(given_up_after(get("/api/jobs?await=60")).await, Duration::from_secs(30));
        assert_eq!(given_up_after(post().finish()).await, Duration::from_secs(90));
        let put = Request::builder().method(Method::PUT).uri_str("/api/sessions/s/files/a");
        assert_eq!(given_up_after(put.finish()).await, Duration::from_mins(10));
        assert_eq!(given_up_after(post().header("prefer", "respond-async, wait=60").finish()).await, Duration::from_secs(135));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_has_begun_may_last() {
        let streams = make(|_: Request| async {
            let chunks = futures_util::stream::unfold(0, |n| async move {
                sleep(OPERATION).await;
                (n < 5).then_some((Ok::<_, std::io::Error>("chunk "), n + 1))
            });
            Response::builder().body(Body::from_bytes_stream(chunks))
        });

        let answer = bound(Arc::new(streams), Request::default()).await.expect("an answer");

        assert_eq!(answer.into_body().into_string().await.expect("whole").split_whitespace().count(), 5);
    }
}
