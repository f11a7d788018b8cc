//! Watch events without `metadata.managedFields`: an informer keeps none of it, it is the larger half of many objects,
//! and decoding it costs as much as all else.

use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt, TryFutureExt};
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::combinators::MapFrame;
use tower::Service;

/// A transport whose watch events are trimmed. All other answers pass as they are.
pub(crate) struct Trimmed<S>(pub(crate) S);

type Trim = Box<dyn FnMut(Frame<Bytes>) -> Frame<Bytes> + Send>;

impl<S, A, B> Service<http::Request<A>> for Trimmed<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes>,
{
    type Response = http::Response<MapFrame<B, Trim>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<A>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        let watches = query.split('&').any(|parameter| matches!(parameter, "watch=true" | "watch=1"));
        let trim = move |response: http::Response<B>| {
            response.map(|body| {
                let trim: Trim =
                    if watches { Box::new(|frame| frame.map_data(trimmed)) } else { Box::new(|frame| frame) };
                body.map_frame(trim)
            })
        };
        self.0.call(request).map_ok(trim).boxed()
    }
}

/// A watch event as the API server sends it, without managed fields. What is not one whole event stays as it is.
fn trimmed(event: Bytes) -> Bytes {
    let Some((from, to)) = managed_fields(&event) else { return event };
    let mut shorter = BytesMut::with_capacity(event.len() - (to - from));
    shorter.put_slice(&event[..from]);
    shorter.put_slice(&event[to..]);
    shorter.freeze()
}

/// Where the managed fields of an event's object stand, with the comma before or after them.
fn managed_fields(event: &[u8]) -> Option<(usize, usize)> {
    const METADATA: &[u8] = b"\"metadata\":{";
    const FIELD: &[u8] = b"\"managedFields\":[";
    // Of the object only kind and apiVersion precede its metadata.
    let head = &event[..event.len().min(512)];
    let object = head.starts_with(b"{\"type\":\"") && event.ends_with(b"}\n");
    let start = object.then(|| memchr::memmem::find(head, METADATA))?? + METADATA.len();
    let from = start + find_at_depth_0(&event[start..], |rest| rest.starts_with(FIELD))?;
    let list = from + FIELD.len();
    let to = list + find_at_depth_0(&event[list..], |rest| rest.starts_with(b"]"))? + 1;
    match (event.get(from.checked_sub(1)?)?, event.get(to)?) {
        (b',', _) => Some((from - 1, to)),
        (_, b',') => Some((from, to + 1)),
        _ => Some((from, to)),
    }
}

/// The first place of valid JSON, outside of strings and of inner objects and lists, where `found` says yes; `None` when
/// the text's own object or list ends before.
fn find_at_depth_0(text: &[u8], found: impl Fn(&[u8]) -> bool) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = text.get(at) {
        if depth == 0 && found(&text[at..]) {
            return Some(at);
        }
        match byte {
            b'"' => at += end_of_string(&text[at + 1..])? + 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        at += 1;
    }
    None
}

/// The place of the quote that ends a string.
fn end_of_string(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        match text[at] {
            b'"' => return Some(at),
            // What it escapes is passed over.
            _ => at += 2,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_objects_own_managed_fields_go() {
        let check = |object: &str, expected: &str| {
            let event = |object: &str| Bytes::from(format!("{{\"type\":\"ADDED\",\"object\":{object}}}\n"));
            assert_eq!(trimmed(event(object)), event(expected));
        };
        let list =
            r#"[{"manager":"a]}","fieldsV1":{"f:a":{},"k:{\"type\":\"x\"}":{".":{}}}},{"manager":"b"}]"#;
        check(
            &format!(
                r#"{{"kind":"K","apiVersion":"v1","metadata":{{"name":"x","managedFields":{list}}},"spec":{{}}}}"#
            ),
            r#"{"kind":"K","apiVersion":"v1","metadata":{"name":"x"},"spec":{}}"#,
        );
        check(
            &format!(r#"{{"metadata":{{"managedFields":{list},"name":"x"}}}}"#),
            r#"{"metadata":{"name":"x"}}"#,
        );
        check(&format!(r#"{{"metadata":{{"managedFields":{list}}}}}"#), r#"{"metadata":{}}"#);
        check(r#"{"metadata":{"name":"x","managedFields":[]}}"#, r#"{"metadata":{"name":"x"}}"#);
        for same in [
            r#"{"metadata":{"name":"x"},"spec":{"managedFields":[1]}}"#,
            r#"{"metadata":{"annotations":{"managedFields":"[]","a":"\"managedFields\":[1]"}}}"#,
            r#"{"metadata":{"labels":{"x":{"managedFields":[1]}}}}"#,
            r#"{"kind":"Status","code":410}"#,
            r#"{"metadata":{"managedFields":[{"manager":"cut"#,
        ] {
            check(same, same);
        }
        let part = Bytes::from_static(br#"{"kind":"Pod","metadata":{"managedFields":[]}}"#);
        assert_eq!(trimmed(part.clone()), part);
    }
}
