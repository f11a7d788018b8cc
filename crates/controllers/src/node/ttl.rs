//! Tells kubelets by an annotation how long they may keep Secrets and ConfigMaps: the longer, the more nodes there are.
//! Answers to upstream's `ttl-controller`.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use orlop_client::{Informer, InformerEvent, WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;

use crate::error::{Error, unless_gone};
use crate::objects::Meta;
use crate::shell::Shell;

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// For clusters of how many nodes, and how many seconds there. The ranges overlap, so that a cluster at their border
/// does not change its mind with each node.
const STEPS: [(std::ops::RangeInclusive<usize>, i64); 5] =
    [(0..=100, 0), (90..=500, 15), (450..=1000, 30), (900..=2000, 60), (1800..=usize::MAX, 300)];

/// The step of a cluster that was at `step` and has `nodes` nodes now.
fn next_step(mut step: usize, nodes: usize) -> usize {
    while nodes > *STEPS[step].0.end() {
        step += 1;
    }
    while nodes < *STEPS[step].0.start() {
        step -= 1;
    }
    step
}

/// Whether the node must be told that it is so many seconds.
fn differs(node: &Node, seconds: i64) -> bool {
    node.annotation(ANNOTATION).and_then(|text| text.parse().ok()) != Some(seconds)
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let nodes: Informer<Node> = shell.informers.informer();
    nodes.synced().await;
    let step = std::sync::Arc::new(Mutex::new(next_step(0, nodes.len())));
    let queue = WorkQueue::named("ttlcontroller");
    let (own, known, current) = (queue.clone(), nodes.clone(), step.clone());
    nodes.subscribe(move |event| {
        let mut step = current.lock();
        *step = next_step(*step, known.len());
        // A node is told of a new step when it next says something of itself, not all of them at once.
        if !matches!(event, InformerEvent::Deleted(_)) && differs(event.object(), STEPS[*step].1) {
            own.add(event.object().name().to_owned());
        }
    });
    let (nodes, step, client) = (&nodes, &step, &shell.client);
    run_workers("ttl-controller", queue, 5, shell.shutdown, |name: String| async move {
        let seconds = STEPS[*step.lock()].1;
        let Some(node) = nodes.get("", &name) else { return Ok(None) };
        if differs(&node, seconds) {
            let body = json!({"metadata": {"annotations": {ANNOTATION: seconds.to_string()}}});
            let api = Api::<Node>::all(client.clone());
            unless_gone(api.patch(&name, &PatchParams::default(), &Patch::Strategic(body)).await)?;
        }
        Ok::<_, Error>(None::<Duration>)
    })
    .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use serde_json::Value;

    #[test]
    fn seconds_by_size() {
        let check = |sizes: &[usize], expected: &[i64]| {
            let mut step = 0;
            let found: Vec<i64> = sizes
                .iter()
                .map(|nodes| {
                    step = next_step(step, *nodes);
                    STEPS[step].1
                })
                .collect();
            assert_eq!(found, expected, "{sizes:?}");
        };
        check(&[0, 1, 100], &[0, 0, 0]);
        check(&[101, 500, 501, 1000, 1001, 2000, 2001, 15_000], &[15, 15, 30, 30, 60, 60, 300, 300]);
        // Down again, each step lasts a little longer.
        check(&[2001, 1800, 1799, 900, 899, 450, 449, 90, 89], &[300, 300, 60, 60, 30, 30, 15, 15, 0]);
        // Many at once.
        check(&[5000, 3], &[300, 0]);
        check(&[95, 101, 95, 89, 95], &[0, 15, 15, 0, 0]);
    }

    #[test]
    fn what_a_node_is_told() {
        let check = |annotations: Value, expected: bool| {
            let node: Node = object(json!({"metadata": {"annotations": annotations}}));
            assert_eq!(differs(&node, 15), expected);
        };
        check(json!(null), true);
        check(json!({ANNOTATION: "15"}), false);
        check(json!({ANNOTATION: "0"}), true);
        check(json!({ANNOTATION: "soon"}), true);
    }
}
