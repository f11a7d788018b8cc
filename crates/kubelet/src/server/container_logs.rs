//! `GET /containerLogs/{namespace}/{pod}/{container}`: what `kubectl logs` shows.

use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use orlop_cri::{ContainerState, ContainerStatus};

use super::{Body, error, flag, query};
use crate::context::Context;
use crate::logs::{self, LogOptions};
use crate::pod::PodExt;
use crate::runtime_status::PodRuntimeStatus;

/// Reads `PodLogOptions` from a query. The error is a message for a 400.
fn options(text: &str) -> Result<(LogOptions, bool), String> {
    let query = query(text);
    let get = |name: &str| {
        query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|v| !v.is_empty())
    };
    let number = |name: &str| -> Result<Option<u64>, String> {
        let parsed = get(name).map(|value| value.parse::<i64>()).transpose();
        match parsed {
            Ok(None) => Ok(None),
            Ok(Some(n)) => u64::try_from(n)
                .map(Some)
                .map_err(|_| format!("invalid {name}: must be greater than or equal to 0")),
            Err(_) => Err(format!("invalid {name}: {:?} is no number", get(name).unwrap_or_default())),
        }
    };
    let mut since = None;
    if let Some(seconds) = number("sinceSeconds")? {
        let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
        since = Timestamp::now().saturating_sub(ago).ok();
    }
    if let Some(time) = get("sinceTime") {
        since = Some(time.parse().map_err(|_| format!("invalid sinceTime: {time:?} is no RFC 3339 time"))?);
    }
    let stream = match get("stream") {
        None | Some("All") => None,
        Some("Stdout") => Some("stdout"),
        Some("Stderr") => Some("stderr"),
        Some(other) => return Err(format!("invalid stream {other:?}: must be All, Stdout or Stderr")),
    };
    let tail_lines = number("tailLines")?;
    if tail_lines.is_some() && stream.is_some() {
        return Err("`tailLines` and specific `stream` are mutually exclusive for now".to_owned());
    }
    let options = LogOptions {
        follow: flag(&query, &["follow"]),
        tail_lines,
        since,
        timestamps: flag(&query, &["timestamps"]),
        limit_bytes: number("limitBytes")?,
        stream,
    };
    Ok((options, flag(&query, &["previous"])))
}

pub(super) async fn serve(
    context: &Context,
    namespace: &str,
    name: &str,
    container: &str,
    text: &str,
) -> Response<Body> {
    let (options, previous) = match options(text) {
        Ok(options) => options,
        Err(message) => return error(StatusCode::BAD_REQUEST, message),
    };
    let Some(pod) = context.pods.get(namespace, name) else {
        return error(StatusCode::NOT_FOUND, format!("pod \"{name}\" not found"));
    };
    if pod.find_container(container).is_none() {
        return error(
            StatusCode::NOT_FOUND,
            format!("container \"{container}\" not found in pod \"{name}\""),
        );
    }
    let status = match PodRuntimeStatus::read(&*context.runtime, pod.uid()).await {
        Ok(status) => status,
        Err(failure) => return error(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()),
    };
    let chosen = match choose(context, &pod, &status, container, previous) {
        Ok(chosen) => chosen,
        Err(message) => return error(StatusCode::BAD_REQUEST, message),
    };
    let (id, log) = (chosen.container.id.clone(), chosen.log_path.clone());
    let receiver = logs::stream(context.runtime.clone(), id, log, options);
    let frames = futures::stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((chunk.map(Frame::data), receiver))
    });
    let mut answer = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    let plain = http::header::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    answer
}

/// The instance whose log is meant. The error is upstream's message.
fn choose<'a>(
    context: &Context,
    pod: &Pod,
    status: &'a PodRuntimeStatus,
    container: &'a str,
    previous: bool,
) -> Result<&'a ContainerStatus, String> {
    let name = pod.name();
    if previous {
        let mut instances = status.all(container);
        let latest = instances.next();
        // While a container waits for its next start, its last run is the previous one.
        let waits = latest.is_some_and(|s| s.container.state == ContainerState::Exited)
            && api_state_waits(context, pod, container);
        let found =
            if waits { latest } else { instances.find(|s| s.container.state == ContainerState::Exited) };
        return found.ok_or_else(|| {
            format!("previous terminated container \"{container}\" in pod \"{name}\" not found")
        });
    }
    match status.latest(container) {
        Some(found) if found.container.state != ContainerState::Created => Ok(found),
        _ => {
            let why = waiting_reason(context, pod, container);
            Err(format!("container \"{container}\" in pod \"{name}\" is waiting to start: {why}"))
        }
    }
}

fn api_status(
    context: &Context,
    pod: &Pod,
    container: &str,
) -> Option<k8s_openapi::api::core::v1::ContainerStatus> {
    let status = context.status.get(pod.uid()).unwrap_or_else(|| pod.pod_status().clone());
    let lists =
        [status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|s| s.name == container)
}

fn api_state_waits(context: &Context, pod: &Pod, container: &str) -> bool {
    api_status(context, pod, container).and_then(|s| s.state).is_some_and(|state| state.waiting.is_some())
}

fn waiting_reason(context: &Context, pod: &Pod, container: &str) -> String {
    let state = api_status(context, pod, container).and_then(|s| s.state);
    let waiting = state.and_then(|state| state.waiting);
    let reason =
        waiting.as_ref().and_then(|w| w.reason.clone()).unwrap_or_else(|| "ContainerCreating".to_owned());
    match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
            "trying and failing to pull image".to_owned()
        }
        _ => reason,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn queries() {
        let (got, previous) = options("follow=true&tailLines=5&timestamps=true&limitBytes=9").unwrap();
        assert!(got.follow && got.timestamps && !previous);
        assert_eq!((got.tail_lines, got.limit_bytes, got.since), (Some(5), Some(9), None));
        let (got, previous) = options("sinceTime=2026-01-01T00:00:00Z&stream=Stderr&previous=true").unwrap();
        assert!(previous && got.since.is_some());
        assert_eq!(got.stream, Some("stderr"));
        for wrong in ["tailLines=x", "tailLines=-1", "sinceTime=now", "stream=x", "tailLines=1&stream=Stdout"]
        {
            assert!(options(wrong).is_err(), "{wrong}");
        }
    }
}
