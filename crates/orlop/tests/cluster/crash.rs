//! `kill -9` of the server at any moment: nothing acknowledged is lost, no container is touched.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{Cluster, eventually, tool, web_deployment};

/// Every container of the cluster and the start time of its first process, in clock ticks since boot.
fn containers(cluster: &Cluster) -> BTreeMap<String, (String, u64)> {
    let pods = cluster.json(&["pods", "-A"]);
    let mut all = BTreeMap::new();
    for pod in pods["items"].as_array().unwrap() {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let status = &pod["status"]["containerStatuses"][0];
        assert_eq!(status["restartCount"], 0, "{name} was restarted");
        let id = status["containerID"].as_str().unwrap_or_default().to_owned();
        let container = format!("{}/{name}", pod["metadata"]["namespace"].as_str().unwrap());
        all.insert(container, (id, start_time(cluster, name)));
    }
    all
}

fn start_time(cluster: &Cluster, pod: &str) -> u64 {
    let stat = cluster.ok(&["exec", pod, "--", "cat", "/proc/1/stat"]);
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().nth(19).unwrap().parse().unwrap()
}

#[test]
fn ten_kills_lose_nothing_and_touch_no_container() {
    let mut cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 3));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let before = containers(&cluster);
    assert_eq!(before.len(), 3);

    // Two writers create ConfigMaps as fast as kubectl can and note which ones the server acknowledged.
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let stop = stop.clone();
            let kubeconfig = cluster.kubeconfig();
            cluster.on_host(move || {
                let mut acknowledged = Vec::new();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // One kubectl creates 50 objects; it prints a name only after the server's answer.
                    let list: Vec<_> = (0..50)
                        .map(|item| {
                            format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: w{writer}-{number}-{item}}}}}\n---\n")
                        })
                        .collect();
                    let mut child = std::process::Command::new(tool("kubectl"))
                        .env("KUBECONFIG", &kubeconfig)
                        .args(["create", "-o", "name", "--validate=false", "-f", "-"])
                        .stdin(Stdio::piped())
                        .stdout(Stdio::piped())
                        .stderr(Stdio::null())
                        .spawn()
                        .unwrap();
                    let mut stdin = child.stdin.take().unwrap();
                    // A client that gave up closes its input; what it printed before still counts.
                    let _ = std::io::Write::write_all(&mut stdin, list.concat().as_bytes());
                    drop(stdin);
                    acknowledged.extend(BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok));
                    child.wait().unwrap();
                }
                acknowledged
            })
        })
        .collect();

    for round in 0..10 {
        std::thread::sleep(Duration::from_millis(200 + u64::from(rand::random::<u16>() % 1500)));
        cluster.kill_server();
        cluster.start_server();
        cluster.wait_until_ready();
        eprintln!("restart {round} done");
    }
    // A deployment goes on where it was.
    cluster.ok(&["scale", "deployment/web", "--replicas=4"]);
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    stop.store(true, Ordering::Relaxed);
    let acknowledged: Vec<String> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    assert!(acknowledged.len() > 100, "the writers were at work: {}", acknowledged.len());

    let present = cluster.ok(&["get", "configmaps", "-o", "name"]);
    let present: std::collections::HashSet<_> = present.lines().collect();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !present.contains(name.as_str())).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");

    let after = containers(&cluster);
    for (container, then) in &before {
        assert_eq!(after.get(container), Some(then), "{container} is not the same process as before");
    }
}

#[test]
fn what_ends_while_the_server_is_down_is_noticed() {
    let mut cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 1));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let pod = cluster.ok(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"]);
    // The container ends two seconds from now, when nobody looks.
    cluster.exec(&pod, "(sleep 2; kill -TERM 1) >/dev/null 2>&1 &");
    cluster.kill_server();
    std::thread::sleep(Duration::from_secs(4));
    cluster.start_server();
    cluster.wait_until_ready();
    eventually("the container was started again", || {
        let jsonpath =
            "jsonpath={.status.containerStatuses[0].restartCount}/{.status.containerStatuses[0].ready}";
        (cluster.ok(&["get", "pod", &pod, "-o", jsonpath]) == "1/true").then_some(())
    });
    let code = "jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}";
    assert_eq!(cluster.ok(&["get", "pod", &pod, "-o", code]), "0");
}

/// Names of the pods that belong to `app` and are not on their way out.
fn staying(cluster: &Cluster, app: &str) -> Vec<String> {
    let pods = cluster.json(&["pods", "-l", &format!("app={app}")]);
    let items = pods["items"].as_array().unwrap().clone();
    let stays = items.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    stays.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn controllers_that_are_killed_amid_their_writes_make_nothing_twice() {
    let mut cluster = Cluster::start();
    let image = crate::support::WEB;
    let template = |app: &str, more: &str, command: &str| {
        format!(
            "{{metadata: {{labels: {{app: {app}}}}}, spec: {{{more}terminationGracePeriodSeconds: 0, \
             containers: [{{name: c, image: '{image}', command: [/bin/sh, -c, '{command}']}}]}}}}"
        )
    };
    cluster.apply(&format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: many}}, spec: {{replicas: 12, \
         selector: {{matchLabels: {{app: many}}}}, template: {}}}}}\n---\n\
         {{apiVersion: batch/v1, kind: Job, metadata: {{name: work}}, spec: {{completions: 8, parallelism: 4, template: {}}}}}\n---\n\
         {{apiVersion: apps/v1, kind: StatefulSet, metadata: {{name: row}}, spec: {{replicas: 3, serviceName: row, \
         podManagementPolicy: Parallel, selector: {{matchLabels: {{app: row}}}}, template: {}}}}}",
        template("many", "", "exec sleep 10000"),
        template("work", "restartPolicy: Never, ", "sleep 1"),
        template("row", "", "exec sleep 10000"),
    ));
    // While pods are made, while they start, while they are replaced.
    for round in 0..6_u64 {
        std::thread::sleep(Duration::from_millis(50 + 150 * round));
        cluster.kill_server();
        cluster.start_server();
        cluster.wait_until_ready();
        if round == 3 {
            cluster.ok(&["scale", "deployment/many", "--replicas=9"]);
            cluster.ok(&["set", "env", "deployment/many", "ROUND=3"]);
        }
    }
    cluster.ok(&["wait", "--for=condition=complete", "job/work", "--timeout=90s"]);
    cluster.ok(&["rollout", "status", "deployment/many", "--timeout=90s"]);
    cluster.ok(&["rollout", "status", "statefulset/row", "--timeout=90s"]);
    eventually("there are as many pods as are wanted", || {
        (staying(&cluster, "many").len() == 9).then_some(())
    });

    // A moment later still: nobody has made another one.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(staying(&cluster, "many").len(), 9);
    let mut row = staying(&cluster, "row");
    row.sort();
    assert_eq!(row, ["row-0", "row-1", "row-2"]);
    let work = cluster.json(&["pods", "-l", "app=work"]);
    assert_eq!(work["items"].as_array().unwrap().len(), 8, "a completion has one pod, and no pod is lost");
    let status = "jsonpath={.status.succeeded} {.status.failed} {.status.uncountedTerminatedPods}";
    assert_eq!(cluster.ok(&["get", "job", "work", "-o", status]), "8  {}");
    let sets = cluster.json(&["replicasets", "-l", "app=many"]);
    let sets = sets["items"].as_array().unwrap();
    assert_eq!(sets.len(), 2, "one for each template");
    let wanted: Vec<i64> = sets.iter().map(|set| set["spec"]["replicas"].as_i64().unwrap()).collect();
    assert!(wanted.contains(&9) && wanted.contains(&0), "{wanted:?}");
    let tracked = "jsonpath={.items[*].metadata.finalizers}";
    assert_eq!(cluster.ok(&["get", "pods", "-l", "app=work", "-o", tracked]), "");
}
