//! The row `kubectl get pods` prints: what a pod's status amounts to in one word.

use jiff::Timestamp;
use orlop_json::{Value, json};

use crate::cursor::Cursor;
use crate::{duration, printer};

fn is_sidecar(init_containers: &Value, name: &str) -> bool {
    init_containers.items().iter().any(|c| c["name"].text() == name && c["restartPolicy"].text() == "Always")
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].items().iter().find(|c| c["type"].text() == kind)
}

fn condition_is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| c["status"].text() == "True")
}

/// Restarts and when the last of them was.
#[derive(Clone, Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += status["restartCount"].int();
        let finished = status["lastState"]["terminated"]["finishedAt"].text();
        if let Ok(at) = finished.parse::<Timestamp>() {
            self.last = self.last.max(Some(at));
        }
    }

    fn text(&self, now: Timestamp) -> String {
        match self.last {
            Some(at) if self.count != 0 => {
                let seconds = (now.as_millisecond() - at.as_millisecond()) / 1000;
                format!("{} ({} ago)", self.count, duration::human_duration(seconds))
            }
            _ => self.count.to_string(),
        }
    }
}

/// Why a container ended: its reason, or its signal, or its exit code.
fn ended(terminated: &Value) -> String {
    let reason = terminated["reason"].text();
    if !reason.is_empty() {
        reason.to_owned()
    } else if terminated["signal"].int() != 0 {
        format!("Signal:{}", terminated["signal"].int())
    } else {
        format!("ExitCode:{}", terminated["exitCode"].int())
    }
}

/// Name, Ready, Status, Restarts, Age, IP, Node, Nominated Node, Readiness Gates.
pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let phase = status["phase"].text();
    let mut reason = match status["reason"].text() {
        "" => phase.to_owned(),
        given => given.to_owned(),
    };
    if condition(pod, "PodScheduled").is_some_and(|c| c["reason"].text() == "SchedulingGated") {
        reason = "SchedulingGated".to_owned();
    }

    let init_containers = &spec["initContainers"];
    let sidecars = init_containers.items().iter().filter(|c| c["restartPolicy"].text() == "Always").count();
    let total = spec["containers"].items().len() + sidecars;
    let mut ready = 0;
    let mut restarts = Restarts::default();
    let mut sidecar_restarts = Restarts::default();
    let mut initializing = false;
    for (i, container) in status["initContainerStatuses"].items().iter().enumerate() {
        restarts.add(container);
        let sidecar = is_sidecar(init_containers, container["name"].text());
        if sidecar {
            sidecar_restarts.add(container);
        }
        let state = &container["state"];
        let terminated = &state["terminated"];
        if terminated.is_set() && terminated["exitCode"].int() == 0 {
            continue;
        }
        if sidecar && container["started"].flag() {
            if container["ready"].flag() {
                ready += 1;
            }
            continue;
        }
        let waiting = state["waiting"]["reason"].text();
        reason = if terminated.is_set() {
            format!("Init:{}", ended(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", init_containers.items().len())
        };
        initializing = true;
        break;
    }

    if !initializing || condition_is_true(pod, "Initialized") {
        restarts = sidecar_restarts;
        let mut running = false;
        for container in status["containerStatuses"].items().iter().rev() {
            restarts.add(container);
            let state = &container["state"];
            let waiting = state["waiting"]["reason"].text();
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if state["terminated"].is_set() {
                reason = ended(&state["terminated"]);
            } else if container["ready"].flag() && state["running"].is_set() {
                running = true;
                ready += 1;
            }
        }
        // A container that still runs outweighs one that has completed.
        if reason == "Completed" && running {
            let word = if condition_is_true(pod, "Ready") { "Running" } else { "NotReady" };
            reason = word.to_owned();
        }
    }

    if pod["metadata"].has("deletionTimestamp") {
        if status["reason"].text() == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            reason = "Terminating".to_owned();
        }
    }

    let or_none = |text: &str| if text.is_empty() { "<none>".to_owned() } else { text.to_owned() };
    let gates = spec["readinessGates"].items();
    let gates = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let open = gates.iter().filter(|g| condition_is_true(pod, g["conditionType"].text())).count();
        format!("{open}/{}", gates.len())
    };
    vec![
        printer::name(pod),
        json!(format!("{ready}/{total}")),
        json!(reason),
        json!(restarts.text(now)),
        printer::age(pod, now),
        json!(or_none(status["podIPs"][0]["ip"].text())),
        json!(or_none(spec["nodeName"].text())),
        json!(or_none(status["nominatedNodeName"].text())),
        json!(gates),
    ]
}

#[cfg(test)]
mod tests {
    use crate::testing::check_cells;
    use orlop_json::{Value, json};

    fn pod(spec: Value, status: Value, deleted: bool) -> Value {
        let mut pod = json!({"metadata": {"name": "p", "creationTimestamp": "2024-01-01T00:00:00Z"}, "spec": spec, "status": status});
        if deleted {
            pod["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z".into();
        }
        pod
    }

    /// Ready, Status, Restarts.
    fn check(spec: Value, status: Value, deleted: bool, expected: [&str; 3]) {
        let none = "<none>";
        let [ready, word, restarts] = expected;
        check_cells(
            "",
            "Pod",
            pod(spec, status, deleted),
            json!(["p", ready, word, restarts, "24h", none, none, none, none]),
        );
    }

    #[test]
    fn one_word() {
        let one = || json!({"containers": [{"name": "c"}]});
        let with = |state: Value| json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "state": state}]});
        check(one(), json!({"phase": "Pending"}), false, ["0/1", "Pending", "0"]);
        check(one(), with(json!({"running": {}})), false, ["1/1", "Running", "0"]);
        check(one(), with(json!({"running": {}})), true, ["1/1", "Terminating", "0"]);
        check(
            one(),
            with(json!({"waiting": {"reason": "CrashLoopBackOff"}})),
            false,
            ["0/1", "CrashLoopBackOff", "0"],
        );
        check(
            one(),
            with(json!({"terminated": {"exitCode": 0, "reason": "Completed"}})),
            false,
            ["0/1", "Completed", "0"],
        );
        check(one(), with(json!({"terminated": {"exitCode": 3}})), false, ["0/1", "ExitCode:3", "0"]);
        check(
            one(),
            with(json!({"terminated": {"exitCode": 137, "signal": 9}})),
            false,
            ["0/1", "Signal:9", "0"],
        );
        check(one(), json!({"phase": "Failed", "reason": "Evicted"}), false, ["0/1", "Evicted", "0"]);
        check(
            one(),
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            false,
            ["0/1", "SchedulingGated", "0"],
        );
        check(
            one(),
            json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 3, "state": {"running": {}},
                "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2024-01-01T23:58:00Z"}}}]}),
            false,
            ["1/1", "Running", "3 (2m ago)"],
        );
    }

    #[test]
    fn init_containers() {
        let spec = || json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
        let with = |inits: Value| json!({"phase": "Pending", "initContainerStatuses": inits});
        check(
            spec(),
            with(json!([{"name": "i", "state": {"running": {}}}])),
            false,
            ["0/2", "Init:0/2", "0"],
        );
        check(
            spec(),
            with(json!([{"name": "i", "state": {"waiting": {"reason": "ErrImagePull"}}}])),
            false,
            ["0/2", "Init:ErrImagePull", "0"],
        );
        check(
            spec(),
            with(json!([{"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 1}}}])),
            false,
            ["0/2", "Init:ExitCode:1", "2"],
        );
        check(
            spec(),
            json!({"phase": "Running",
                "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
                "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}}]}),
            false,
            ["2/2", "Running", "0"],
        );
    }
}
