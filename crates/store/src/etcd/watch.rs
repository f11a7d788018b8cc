//! A watch in etcd as a stream of the contract.

use std::sync::Arc;

use bytes::Bytes;
use etcd_client::{WatchClient, WatchOptions, WatchResponse};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Shared, convert};
use crate::{Event, Revision, StoreError, WatchStream, prefix_end};

/// Batches that wait for a slow reader; then etcd itself waits.
const QUEUE: usize = 16;

/// How often a reader that waits for a revision lets etcd be asked for progress.
const PROGRESS_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);

type Batch = Result<Vec<Event>, StoreError>;

/// Starts the watch; etcd has registered it when this returns.
pub(super) async fn start(
    mut client: WatchClient,
    shared: Arc<Shared>,
    closed: CancellationToken,
    prefix: Bytes,
    from: Revision,
) -> Result<WatchStream, StoreError> {
    let key = if prefix.is_empty() { vec![0] } else { shared.keys.translate(&prefix) };
    let end = match prefix_end(&key) {
        _ if prefix.is_empty() => vec![0],
        end if end.is_empty() => vec![0],
        end => end.to_vec(),
    };
    // 0 would mean "from now on".
    let options = WatchOptions::new().with_range(end).with_start_revision(convert::signed(from).max(1));
    let mut stream = shared.in_time("watch", client.watch(key, Some(options))).await?;
    let first = shared.in_time("watch", stream.message()).await?;
    if let Some(answer) = &first
        && let Some(error) = refusal(&shared, answer, from)
    {
        return Err(error);
    }
    let (sender, receiver) = mpsc::channel::<Batch>(QUEUE);
    tokio::spawn(async move {
        let mut seen = from.0.saturating_sub(1);
        let mut wanted = shared.wanted.subscribe();
        loop {
            let behind = *wanted.borrow_and_update() > seen;
            let answer = tokio::select! {
                () = closed.cancelled() => return,
                () = sender.closed() => return,
                changed = wanted.changed() => {
                    if changed.is_err() || stream.request_progress().await.is_err() {
                        return;
                    }
                    continue;
                }
                // etcd says nothing while a watch is catching up.
                () = tokio::time::sleep(PROGRESS_INTERVAL), if behind => {
                    if stream.request_progress().await.is_err() {
                        return;
                    }
                    continue;
                }
                answer = stream.message() => answer,
            };
            let batch = match answer {
                Ok(Some(answer)) => match refusal(&shared, &answer, Revision(seen + 1)) {
                    Some(error) => Err(error),
                    None => Ok(events(&shared, &answer)),
                },
                Ok(None) => Err(StoreError::Remote {
                    action: "watch",
                    endpoints: shared.endpoints.clone(),
                    cause: "etcd ended the stream".to_owned(),
                }),
                Err(error) => Err(shared.error("watch", error)),
            };
            if let Ok(events) = &batch {
                let Some(last) = events.last() else { continue };
                seen = seen.max(last.revision.0);
            }
            let last = batch.is_err();
            if sender.send(batch).await.is_err() || last {
                return;
            }
        }
    });
    Ok(tokio_stream(receiver).boxed())
}

fn tokio_stream(mut receiver: mpsc::Receiver<Batch>) -> impl futures::Stream<Item = Batch> {
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}

/// Why etcd ended the watch, if it did.
fn refusal(shared: &Shared, answer: &WatchResponse, from: Revision) -> Option<StoreError> {
    if answer.compact_revision() > 0 {
        shared.saw_compaction(answer.compact_revision());
        let compact_revision = Revision(convert::unsigned(answer.compact_revision()));
        return Some(StoreError::Compacted { requested: from, compact_revision });
    }
    answer.canceled().then(|| StoreError::Remote {
        action: "watch",
        endpoints: shared.endpoints.clone(),
        cause: answer.cancel_reason().to_owned(),
    })
}

/// The changes of an answer; an answer without changes tells how far the watch is.
fn events(shared: &Shared, answer: &WatchResponse) -> Vec<Event> {
    if answer.created() {
        return Vec::new();
    }
    let revision = answer.header().map_or(0, |h| h.revision());
    if answer.events().is_empty() {
        return vec![convert::progress(revision)];
    }
    let events: Vec<Event> =
        answer.events().iter().filter_map(|event| convert::event(&shared.keys, event)).collect();
    if let Some(last) = events.last() {
        shared.saw(convert::signed(last.revision));
    }
    events
}
