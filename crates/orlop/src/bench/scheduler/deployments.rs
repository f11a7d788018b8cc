//! Many Deployments at once, from the first request to the last pod that is bound and the last that is ready.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;

use super::LIMIT;
use super::cluster::{Bound, Cluster};
use crate::bench::DeploymentsArguments;
use crate::bench::process::Processes;
use crate::simulate::hollow::HollowNodes;

/// Measures and prints.
pub async fn run(arguments: DeploymentsArguments) -> anyhow::Result<()> {
    let directory = std::env::temp_dir().join(crate::bench::run_name());
    let measured = measure(&arguments, &directory).await;
    let _ = std::fs::remove_dir_all(&directory);
    measured
}

async fn measure(arguments: &DeploymentsArguments, directory: &std::path::Path) -> anyhow::Result<()> {
    let cluster = Cluster::start_whole(directory).await?;
    let controllers = cluster.start_controllers();
    let pods = arguments.deployments * arguments.replicas;
    let nodes = arguments.nodes.unwrap_or_else(|| pods.div_ceil(PODS_PER_NODE).max(FEWEST_NODES));
    let hollow = HollowNodes::register(cluster.client("hollow-kubelet"), nodes).await?;
    cluster.run_beside(|shutdown, tasks| hollow.run(shutdown, tasks));
    cluster.wait_for_account("default").await?;
    let (bound, running) = (cluster.watch_bound("web-").await?, cluster.watch_running("web-").await?);
    if arguments.services {
        let service = |number: usize| {
            let name = format!("web-{number}");
            let object = json!({"metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": [{"port": 80}]}});
            Ok(("/api/v1/namespaces/default/services".to_owned(), serde_json::to_vec(&object)?.into()))
        };
        cluster.create_all(arguments.deployments, service).await?;
    }
    let processes = Processes::new(Vec::new())?;
    let before = processes.read()?.client;
    let begun = Instant::now();
    let replicas = arguments.replicas;
    let deployment = move |number: usize| {
        let name = format!("web-{number}");
        let labels = json!({"app": name});
        let container = json!({"name": "web", "image": "web:1", "resources": {"requests": {"cpu": "10m"}}});
        let object = json!({"metadata": {"name": name}, "spec": {"replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}});
        Ok(("/apis/apps/v1/namespaces/default/deployments".to_owned(), serde_json::to_vec(&object)?.into()))
    };
    cluster.create_all(arguments.deployments, deployment).await?;
    let mut times = Vec::new();
    for (what, seen) in [("bound", &bound), ("running", &running)] {
        match tokio::time::timeout(LIMIT, seen.reached(pods)).await {
            Ok(reached) => reached.context(what)?,
            Err(_) => bail!("{} of {pods} pods were {what} after {LIMIT:?}", seen.seen()),
        }
        times.push(begun.elapsed().as_secs_f64());
    }
    let cpu = processes.read()?.client.saturating_sub(before).as_secs_f64();
    println!(
        "{} Deployments x {} replicas at {} nodes: all bound after {:.3} s, running after {:.3} s, CPU {cpu:.2} s",
        arguments.deployments, arguments.replicas, nodes, times[0], times[1]
    );
    rest(&cluster).await?;
    drop(controllers);
    restart(&cluster, pods, arguments.lost).await?;
    cluster.stop().await;
    Ok(())
}

const PODS_PER_NODE: usize = 30;
const FEWEST_NODES: usize = 100;

/// How long the cluster is watched at rest.
const REST: Duration = Duration::from_secs(10);
/// Events of what has just happened may still be on their way.
const AFTERMATH: Duration = Duration::from_secs(5);
/// How often it is looked whether something was written.
const LOOK: Duration = Duration::from_millis(100);

/// What a cluster writes that has nothing to do.
async fn rest(cluster: &Cluster) -> anyhow::Result<()> {
    let mut before = cluster.revision().await?;
    loop {
        tokio::time::sleep(AFTERMATH).await;
        let since = cluster.revision().await?;
        let leases = cluster.watch_writes(LEASES, since).await?;
        // Events are written one after the other, and may take longer than all else.
        if since - before > 1000 {
            before = since;
            continue;
        }
        tokio::time::sleep(REST).await;
        let (writes, renewals) = (cluster.revision().await? - since, leases.seen());
        println!(
            "at rest for {REST:?}: {renewals} writes of leases, {} others",
            writes.saturating_sub(renewals as u64)
        );
        return Ok(());
    }
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";
const EVENTS: &str = "/api/v1/events";
/// What else there is.
const OBJECTS: [&str; 10] = [
    "/api/v1/namespaces",
    "/api/v1/nodes",
    "/api/v1/pods",
    "/api/v1/services",
    "/api/v1/endpoints",
    "/api/v1/serviceaccounts",
    "/api/v1/configmaps",
    "/apis/apps/v1/deployments",
    "/apis/apps/v1/replicasets",
    "/apis/discovery.k8s.io/v1/endpointslices",
];

/// What controllers do that find everything as they left it, but for a few pods.
async fn restart(cluster: &Cluster, pods: usize, lost: usize) -> anyhow::Result<()> {
    // One of each of the first Deployments; the rest of their names is the controllers' choice.
    let mut running = cluster.names("/api/v1/namespaces/default/pods").await?;
    running.truncate(lost);
    for name in &running {
        cluster.delete(&format!("/api/v1/namespaces/default/pods/{name}?gracePeriodSeconds=0")).await?;
    }
    let mut objects = cluster.count(LEASES).await?;
    for collection in OBJECTS {
        objects += cluster.count(collection).await?;
    }
    let seen = cluster.watch_running("web-").await?;
    let since = cluster.revision().await?;
    let leases = cluster.watch_writes(LEASES, since).await?;
    let mut others = Vec::new();
    for collection in OBJECTS.into_iter().chain([EVENTS]) {
        others.push(cluster.watch_writes(collection, since).await?);
    }
    let begun = Instant::now();
    let _controllers = cluster.start_controllers_anew();
    match tokio::time::timeout(LIMIT, seen.reached(pods)).await {
        Ok(reached) => reached.context("running again")?,
        Err(_) => bail!("{} of {pods} pods run after {LIMIT:?}", seen.seen()),
    }
    let took = begun.elapsed().as_secs_f64();
    let (mut written, mut last) = (0, Instant::now());
    while last.elapsed() < AFTERMATH {
        let now = others.iter().map(Bound::seen).sum();
        if written != now {
            (written, last) = (now, Instant::now());
        }
        tokio::time::sleep(LOOK).await;
    }
    let settled = last.duration_since(begun).as_secs_f64();
    let writes = cluster.revision().await? - since;
    println!(
        "controllers again at {objects} objects, {} pods gone: all running after {took:.3} s, settled after {settled:.3} s, \
         {writes} writes, {} beside leases",
        running.len(),
        writes.saturating_sub(leases.seen() as u64),
    );
    Ok(())
}
