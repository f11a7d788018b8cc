//! What pods that ask for the same share: the verdicts and scores of plugins that look at one node at a time stay valid
//! until that node changes. A Deployment's pods then cost little more than one. (Upstream: KEP-5598, opportunistic
//! batching.)

use std::sync::Arc;

use crate::cache::{Cache, NodeIndex};
use crate::framework::{Framework, Status};
use crate::pod_info::PodInfo;

/// What was found out about each node for the latest pods that are alike.
#[derive(Default)]
pub struct Shared {
    /// The profile and a pod of the class.
    of: Option<(Arc<Framework>, Arc<PodInfo>)>,
    /// Grows with each change of class; what was found out under another number is void.
    class: u64,
    verdicts: Vec<Kept<Result<(), Status>>>,
    /// By the place of the plugin in its profile.
    scores: Vec<Vec<Kept<i64>>>,
}

/// Something about one node, as of a moment.
struct Kept<T> {
    class: u64,
    touched: u64,
    value: T,
}

impl Shared {
    /// Begins the cycle of a pod. What the pod before left is of use when both are alike.
    pub fn begin(&mut self, framework: &Arc<Framework>, pod: &Arc<PodInfo>) {
        let alike = self.of.as_ref().is_some_and(|(profile, other)| {
            Arc::ptr_eq(profile, framework) && pod.asks_the_same_of_a_node(other)
        });
        if !alike {
            self.of = Some((framework.clone(), pod.clone()));
            self.class += 1;
        }
    }

    /// Whether the pod can run on a node; `judge` is asked when that is not known.
    pub fn verdict(
        &mut self,
        cache: &Cache,
        node: NodeIndex,
        judge: impl FnOnce() -> Result<(), Status>,
    ) -> &Result<(), Status> {
        kept(&mut self.verdicts, self.class, cache, node, Ok(()), judge)
    }

    /// A plugin's raw scores of nodes; `score` is asked for those that are not known, by their number in the list.
    pub fn scores(
        &mut self,
        plugin: usize,
        cache: &Cache,
        nodes: &[NodeIndex],
        scores: &mut [i64],
        score: impl Fn(usize) -> i64,
    ) {
        if self.scores.len() <= plugin {
            self.scores.resize_with(plugin + 1, Vec::new);
        }
        let (list, class) = (&mut self.scores[plugin], self.class);
        for (number, (index, out)) in nodes.iter().zip(scores).enumerate() {
            *out = *kept(list, class, cache, *index, 0, || score(number));
        }
    }
}

fn kept<'a, T: Clone>(
    list: &'a mut Vec<Kept<T>>,
    class: u64,
    cache: &Cache,
    node: NodeIndex,
    initial: T,
    make: impl FnOnce() -> T,
) -> &'a T {
    let (place, touched) = (node.place(), cache.touched(node));
    if list.len() <= place {
        // Class 0 is none: what is filled in is never taken for an answer.
        list.resize_with(place + 1, || Kept { class: 0, touched: 0, value: initial.clone() });
    }
    let slot = &mut list[place];
    if (slot.class, slot.touched) != (class, touched) {
        *slot = Kept { class, touched, value: make() };
    }
    &slot.value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;

    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;
    use crate::config::KubeSchedulerConfiguration;
    use crate::plugins;
    use crate::testing::{node, parse, pod};

    fn framework() -> Arc<Framework> {
        let configuration = KubeSchedulerConfiguration::defaulted();
        Arc::new(Framework::new(&configuration.profiles[0], &plugins::registry()).unwrap())
    }

    #[test]
    fn a_node_is_judged_again_when_it_has_changed_or_another_kind_of_pod_comes() {
        let info = |pod: Arc<Pod>| Arc::new(PodInfo::new(pod));
        let (mut cache, mut shared, framework) = (Cache::default(), Shared::default(), framework());
        cache.set_node(node("a", "4", "4Gi"));
        cache.set_node(node("b", "4", "4Gi"));
        let judged = Cell::new(0);
        let check =
            |shared: &mut Shared, cache: &Cache, profile: &Arc<Framework>, pod: Arc<Pod>, times: i32| {
                judged.set(0);
                shared.begin(profile, &info(pod));
                for name in ["a", "b"] {
                    let node = cache.node_by_name(name).unwrap().index;
                    let judge = || {
                        judged.set(judged.get() + 1);
                        if name == "a" { Ok(()) } else { Err(Status::unschedulable("full")) }
                    };
                    assert_eq!(shared.verdict(cache, node, judge).is_ok(), name == "a");
                    let mut scores = [0];
                    shared.scores(3, cache, &[node], &mut scores, |_| node.place() as i64);
                    assert_eq!(scores, [node.place() as i64]);
                }
                assert_eq!(judged.get(), times);
            };
        check(&mut shared, &cache, &framework, pod("x", "1", "1Gi"), 2);
        check(&mut shared, &cache, &framework, pod("y", "1", "1Gi"), 0);
        // A pod comes to one of the nodes.
        cache.place(info(pod("x", "1", "1Gi")), "a");
        check(&mut shared, &cache, &framework, pod("z", "1", "1Gi"), 1);
        cache.displace(&info(pod("x", "1", "1Gi")).key);
        check(&mut shared, &cache, &framework, pod("z", "1", "1Gi"), 1);
        // A node object changes.
        cache.set_node(node("b", "8", "4Gi"));
        check(&mut shared, &cache, &framework, pod("z", "1", "1Gi"), 1);
        // A node goes, and another takes its place in the arrays.
        cache.remove_node("b");
        cache.set_node(node("b", "8", "4Gi"));
        check(&mut shared, &cache, &framework, pod("z", "1", "1Gi"), 1);
        // Another kind of pod, and the first one again.
        check(&mut shared, &cache, &framework, pod("z", "2", "1Gi"), 2);
        check(&mut shared, &cache, &framework, pod("z", "1", "1Gi"), 2);
        check(&mut shared, &cache, &self::framework(), pod("z", "1", "1Gi"), 2);
    }

    #[test]
    fn which_pods_are_alike() {
        let check = |change: Value, alike: bool| {
            let one = pod("a", "1", "1Gi");
            let mut changed = serde_json::to_value(&*one).unwrap();
            for (part, fields) in change.as_object().unwrap() {
                for (field, value) in fields.as_object().unwrap() {
                    changed[part][field] = value.clone();
                }
            }
            let (one, other) = (PodInfo::new(one), PodInfo::new(parse(changed)));
            assert_eq!(one.asks_the_same_of_a_node(&other), alike, "{change}");
        };
        check(json!({"metadata": {"name": "b", "uid": "other", "labels": {"app": "x"}}}), true);
        check(json!({"spec": {"volumes": [{"name": "kube-api-access-x7x2z", "emptyDir": {}}]}}), true);
        check(json!({"spec": {"tolerations": [{"operator": "Exists"}]}}), false);
        check(json!({"spec": {"nodeSelector": {"disk": "ssd"}}}), false);
        check(json!({"spec": {"nodeName": "a"}}), false);
        check(json!({"spec": {"overhead": {"cpu": "1"}}}), false);
        check(
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 1}]}]}}),
            false,
        );
        let term =
            json!({"weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}});
        let preferred = json!({"preferredDuringSchedulingIgnoredDuringExecution": [term]});
        check(json!({"spec": {"affinity": {"nodeAffinity": preferred}}}), false);
    }
}
