//! Deployments as people use them: apply, scale, roll out, roll back, with a client that never notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::support::{Cluster, WEB2, eventually, http_get, web_deployment};

fn service_address(cluster: &Cluster, name: &str) -> SocketAddr {
    let address =
        cluster.ok(&["get", "service", name, "-o", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}"]);
    address.parse().unwrap_or_else(|error| panic!("{address:?}: {error}"))
}

#[test]
fn scale_up_and_down() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 3));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let ready = |count: &str| {
        eventually(&format!("{count} pods are ready"), || {
            let shown = cluster.ok(&["get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}"]);
            (shown == count).then_some(())
        });
    };
    ready("3");
    cluster.ok(&["scale", "deployment/web", "--replicas=10"]);
    ready("10");
    cluster.ok(&["scale", "deployment/web", "--replicas=3"]);
    eventually("seven pods are gone", || {
        let pods = cluster.ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
        (pods.lines().count() == 3).then_some(())
    });
    ready("3");
    let table = cluster.ok(&["get", "deployment", "web"]);
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().take(4).collect();
    assert_eq!(row, ["web", "3/3", "3", "3"], "{table}");
}

#[test]
fn a_drained_node_is_empty_until_it_is_uncordoned() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 2));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    cluster.ok(&["drain", "node-1", "--ignore-daemonsets", "--timeout=60s"]);
    let pending = "--field-selector=status.phase=Pending";
    eventually("both replacements wait", || {
        (cluster.ok(&["get", "pods", "-o", "name", pending]).lines().count() == 2).then_some(())
    });
    assert_eq!(
        cluster.ok(&["get", "pods", "-o", "name"]).lines().count(),
        2,
        "nothing runs on a drained node"
    );
    cluster.ok(&["uncordon", "node-1"]);
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
}

#[test]
fn a_rolling_update_and_its_undo_fail_no_request() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 3));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let address = service_address(&cluster, "web");
    eventually("the service answers", || {
        cluster.on_host(move || http_get(address)).join().unwrap().ok().filter(|page| page == "page one\n")
    });

    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU32::new(0));
    let client = cluster.on_host({
        let (stop, answered) = (stop.clone(), answered.clone());
        move || {
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match http_get(address) {
                    Ok(_) => _ = answered.fetch_add(1, Ordering::Relaxed),
                    Err(failure) => failures.push(failure),
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            failures
        }
    });
    cluster.ok(&["set", "image", "deployment/web", &format!("web={WEB2}")]);
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    // A pod that is about to end may answer for the moment that the proxy needs to hear of it.
    eventually("the new page is served", || {
        cluster.on_host(move || http_get(address)).join().unwrap().ok().filter(|page| page == "page two\n")
    });
    cluster.ok(&["rollout", "undo", "deployment/web"]);
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    eventually("only the old template's pods are left", || {
        let images = cluster.ok(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[*].spec.containers[0].image}",
        ]);
        (!images.contains(WEB2)).then_some(())
    });
    stop.store(true, Ordering::Relaxed);

    assert_eq!(client.join().unwrap(), Vec::<String>::new());
    assert!(answered.load(Ordering::Relaxed) > 50, "the client was there all the while");
    let history = cluster.ok(&["rollout", "history", "deployment/web"]);
    let revisions: Vec<_> =
        history.lines().filter_map(|line| line.split_whitespace().next()?.parse::<u32>().ok()).collect();
    assert_eq!(revisions, [2, 3], "an undo moves the old revision to the top\n{history}");
}

#[test]
fn a_deleted_pod_is_replaced_and_a_watch_shows_it() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 2));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let watch = cluster
        .client("timeout")
        .args(["60", crate::support::tool("kubectl").to_str().unwrap(), "get", "pods", "-w", "-l", "app=web"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pods = cluster.ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
    let victim = pods.lines().next().unwrap().to_owned();
    cluster.ok(&["delete", &victim]);
    eventually("another pod is ready in its place", || {
        let ready = cluster.ok(&["get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}"]);
        let pods = cluster.ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
        (ready == "2" && !pods.contains(&victim) && pods.lines().count() == 2).then_some(())
    });
    cluster.ok(&["delete", "deployment", "web"]);
    eventually("the garbage collector has removed the pods", || {
        cluster.ok(&["get", "pods,replicasets", "-l", "app=web", "-o", "name"]).is_empty().then_some(())
    });
    let pid = nix::unistd::Pid::from_raw(i32::try_from(watch.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let seen = String::from_utf8(watch.wait_with_output().unwrap().stdout).unwrap();
    let name = victim.trim_start_matches("pod/");
    assert!(seen.lines().any(|line| line.starts_with(name) && line.contains("Terminating")), "{seen}");
    assert!(seen.lines().any(|line| line.contains("ContainerCreating")), "{seen}");
}

/// The revisions that `rollout history` lists.
fn revisions(cluster: &Cluster) -> Vec<u32> {
    let history = cluster.ok(&["rollout", "history", "deployment/web"]);
    history.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

#[test]
fn a_rollout_is_paused_resumed_restarted_and_taken_back() {
    let cluster = Cluster::start();
    cluster.apply(&web_deployment("web", 2));
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let field = |path: &str| cluster.ok(&["get", "deployment", "web", "-o", &format!("jsonpath={{{path}}}")]);
    let images = || {
        let all = "jsonpath={.items[*].spec.containers[0].image}";
        cluster.ok(&["get", "pods", "-l", "app=web", "-o", all])
    };
    let reason = "{.status.conditions[?(@.type==\"Progressing\")].reason}";
    let progressing = || cluster.ok(&["get", "deployment", "web", "-o", &format!("jsonpath={reason}")]);

    // Changes gather while it is paused; scaling goes on.
    assert_eq!(cluster.ok(&["rollout", "pause", "deployment/web"]), "deployment.apps/web paused\n");
    assert!(cluster.refused(&["rollout", "pause", "deployment/web"]).contains("is already paused"));
    cluster.ok(&["set", "image", "deployment/web", &format!("web={WEB2}")]);
    cluster.ok(&["set", "env", "deployment/web", "A=b"]);
    cluster.ok(&["scale", "deployment/web", "--replicas=3"]);
    eventually("it is scaled and says that it is paused", || {
        let ready = field(".status.readyReplicas") == "3";
        (ready && progressing() == "DeploymentPaused").then_some(())
    });
    let generation = field(".metadata.generation");
    eventually("the last change was seen", || {
        (field(".status.observedGeneration") == generation).then_some(())
    });
    assert!(!images().contains(WEB2), "{}", images());
    assert_eq!(revisions(&cluster), [1]);
    let refused = cluster.refused(&["rollout", "restart", "deployment/web"]);
    assert!(refused.contains("paused"), "{refused}");

    // One revision for all that was changed.
    assert_eq!(cluster.ok(&["rollout", "resume", "deployment/web"]), "deployment.apps/web resumed\n");
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    assert_eq!(revisions(&cluster), [1, 2]);
    let second = cluster.ok(&["rollout", "history", "deployment/web", "--revision=2"]);
    assert!(second.contains(WEB2) && second.contains("A:"), "{second}");
    let first = cluster.ok(&["rollout", "history", "deployment/web", "--revision=1"]);
    assert!(!first.contains(WEB2), "{first}");

    // Other pods of the same.
    let uids = || cluster.ok(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.uid}"]);
    let before = uids();
    cluster.ok(&["rollout", "restart", "deployment/web"]);
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    eventually("none of the old pods is left", || {
        let now = uids();
        before.split(' ').all(|uid| !now.contains(uid)).then_some(())
    });
    assert_eq!(revisions(&cluster), [1, 2, 3]);

    cluster.ok(&["rollout", "pause", "deployment/web"]);
    let refused = cluster.refused(&["rollout", "undo", "deployment/web"]);
    assert!(refused.contains("paused"), "{refused}");
    cluster.ok(&["rollout", "resume", "deployment/web"]);
    cluster.ok(&["rollout", "undo", "deployment/web", "--to-revision=1"]);
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    eventually("the first image is back", || (!images().contains(WEB2)).then_some(()));
    assert_eq!(revisions(&cluster), [2, 3, 4]);
}
