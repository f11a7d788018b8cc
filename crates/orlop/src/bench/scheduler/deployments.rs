//! Many Deployments at once, from the first request to the last pod that is bound and the last that is ready.

use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::json;

use super::LIMIT;
use super::cluster::Cluster;
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
    let nodes = HollowNodes::register(cluster.client("hollow-kubelet"), arguments.nodes).await?;
    cluster.run_beside(|shutdown, tasks| nodes.run(shutdown, tasks));
    cluster.wait_for_account("default").await?;
    let pods = arguments.deployments * arguments.replicas;
    let (bound, running) = (cluster.watch_bound("web-").await?, cluster.watch_running("web-").await?);
    let processes = Processes::new(Vec::new())?;
    let before = processes.read()?.client;
    let begun = Instant::now();
    let deployment = |number: usize| {
        let name = format!("web-{number}");
        let labels = json!({"app": name});
        let container = json!({"name": "web", "image": "web:1", "resources": {"requests": {"cpu": "10m"}}});
        let object = json!({"metadata": {"name": name}, "spec": {"replicas": arguments.replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}});
        Ok(("/apis/apps/v1/namespaces/default/deployments".to_owned(), object))
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
        arguments.deployments, arguments.replicas, arguments.nodes, times[0], times[1]
    );
    cluster.stop().await;
    Ok(())
}
