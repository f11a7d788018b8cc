//! `orlop bench scheduler`: upstream's scheduler_perf workloads against API server, store and scheduler in this process.

mod cluster;
pub mod deployments;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use orlop_scheduler::perf::{self, Churn, Pods, WORKLOADS, Workload};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::cluster::Cluster;
use super::SchedulerArguments;
use super::process::Processes;

/// How long the pods of one step may take.
const LIMIT: Duration = Duration::from_secs(600);

/// Plays the chosen workloads, each in a cluster of its own, and prints a table.
pub async fn run(arguments: SchedulerArguments) -> anyhow::Result<()> {
    let chosen = choose(&arguments.workloads)?;
    if arguments.list {
        for workload in chosen {
            let before: usize = workload.before.iter().map(|pods| pods.count).sum();
            let (nodes, pods) = (workload.nodes, workload.measured.count);
            println!("{:<48} {nodes:>5} nodes {before:>6} pods before {pods:>6} measured", workload.name);
        }
        return Ok(());
    }
    if let (Some(directory), [workload]) = (&arguments.directory, chosen.as_slice()) {
        return play(workload, &arguments, directory).await.with_context(|| workload.name);
    }
    println!(
        "{:<48} {:>6} {:>6} {:>8} {:>7} {:>7} {:>11}",
        "workload", "nodes", "pods", "pods/s", "floor", "times", "CPU ms/pod"
    );
    for workload in chosen {
        // A process each: what one leaves to be done (events, memory) shall not burden the next.
        let directory = std::env::temp_dir().join(super::run_name());
        let mut process = tokio::process::Command::new(std::env::current_exe()?);
        process.args(["--log-level", "warn", "bench", "scheduler", workload.name]);
        process.arg(format!("--scale={}", arguments.scale)).arg("--directory").arg(&directory);
        if arguments.controllers {
            process.arg("--controllers");
        }
        let ended = process.kill_on_drop(true).status().await;
        let _ = std::fs::remove_dir_all(&directory);
        if !ended?.success() {
            bail!("workload {} failed", workload.name);
        }
    }
    Ok(())
}

fn choose(names: &[String]) -> anyhow::Result<Vec<&'static Workload>> {
    if names.is_empty() {
        return Ok(WORKLOADS.iter().collect());
    }
    let find = |name: &String| {
        let found = WORKLOADS.iter().find(|workload| workload.name == name);
        found.with_context(|| {
            format!("there is no workload {name:?}; `orlop bench scheduler --list` names them")
        })
    };
    names.iter().map(find).collect()
}

async fn play(
    workload: &'static Workload,
    arguments: &SchedulerArguments,
    directory: &std::path::Path,
) -> anyhow::Result<()> {
    let scaled = |count: usize| ((count as f64 * arguments.scale).ceil() as usize).max(1);
    let cluster = Cluster::start(directory, arguments.controllers).await?;
    let nodes = scaled(workload.nodes);
    let node = move |number| {
        let node = serde_json::to_vec(&perf::node(number, workload.zones))?;
        Ok(("/api/v1/nodes".to_owned(), node.into()))
    };
    cluster.create_all(nodes, node).await?;
    for name in namespaces(workload) {
        let label = json!({perf::NAMESPACE_LABEL.0: perf::NAMESPACE_LABEL.1});
        let namespace = json!({"metadata": {"name": name, "labels": label}});
        cluster.create("/api/v1/namespaces", &namespace).await?;
    }
    let spread = json!({"metadata": {"name": "spread"},
        "spec": {"selector": {"app": "spread"}, "ports": [{"port": 80}]}});
    cluster.create("/api/v1/namespaces/default/services", &spread).await?;
    for (index, pods) in workload.before.iter().enumerate() {
        place(&cluster, pods, scaled(pods.count), &format!("before-{index}")).await?;
    }
    let done = CancellationToken::new();
    let stop = done.clone().drop_guard();
    let beside = tokio::spawn(churn(cluster.clone(), workload.churn, done));
    let processes = Processes::new(Vec::new())?;
    let (count, before) = (scaled(workload.measured.count), processes.read()?.client);
    let begun = Instant::now();
    place(&cluster, &workload.measured, count, "measured").await?;
    let (took, cpu) = (begun.elapsed().as_secs_f64(), processes.read()?.client.saturating_sub(before));
    drop(stop);
    beside.await??;
    let rate = count as f64 / took;
    println!(
        "{:<48} {nodes:>6} {count:>6} {rate:>8.0} {:>7.0} {:>7.1} {:>11.3}",
        workload.name,
        workload.floor,
        rate / workload.floor,
        cpu.as_secs_f64() * 1000.0 / count as f64
    );
    cluster.stop().await;
    Ok(())
}

/// The namespaces that a workload needs beside `default`.
fn namespaces(workload: &Workload) -> std::collections::BTreeSet<String> {
    let pods = workload.before.iter().chain([&workload.measured]);
    pods.flat_map(Pods::namespaces).filter(|name| name != "default").collect()
}

/// Stands for the name in a pod's template.
const NAME: &str = "{name}";

/// Creates pods and waits until all of them are bound.
async fn place(cluster: &Cluster, pods: &Pods, count: usize, prefix: &str) -> anyhow::Result<()> {
    let (namespaces, mut template) = (pods.namespaces(), (pods.template)());
    // Encoded once: what the benchmark does itself shall not be a part of what is measured.
    template["metadata"]["name"] = json!(NAME);
    let template = template.to_string();
    let (head, tail) = template.split_once(NAME).context("the template has no name")?;
    let (head, tail) = (format!("{head}{prefix}"), tail.to_owned());
    let bound = cluster.watch_bound(&format!("{prefix}-")).await?;
    let pod = move |number: usize| {
        let namespace = namespaces.get(number % namespaces.len()).context("no namespace")?;
        let pod = format!("{head}-{number}{tail}");
        Ok((format!("/api/v1/namespaces/{namespace}/pods"), pod.into()))
    };
    cluster.create_all(count, pod).await?;
    match tokio::time::timeout(LIMIT, bound.reached(count)).await {
        Ok(result) => result,
        Err(_) => bail!("{} of {count} pods were bound after {LIMIT:?}", bound.seen()),
    }
}

/// What upstream's `churn` steps do.
async fn churn(cluster: Cluster, churn: Churn, done: CancellationToken) -> anyhow::Result<()> {
    match churn {
        Churn::Nothing => {}
        Churn::Pods(template) => {
            let mut ticks = tokio::time::interval(Duration::from_millis(200));
            while done.run_until_cancelled(ticks.tick()).await.is_some() {
                let mut pod: Value = template();
                pod["metadata"]["generateName"] = json!("churn-");
                cluster.create("/api/v1/namespaces/default/pods", &pod).await?;
            }
        }
        Churn::Mixed => {
            let mut pod = perf::too_large();
            pod["metadata"]["name"] = json!("churn");
            let mut node = perf::node(0, 0);
            node["metadata"]["name"] = json!("churn");
            let service = json!({"metadata": {"name": "churn"}, "spec": {"ports": [{"port": 80}]}});
            let objects = [
                ("/api/v1/nodes", node),
                ("/api/v1/namespaces/default/pods", pod),
                ("/api/v1/namespaces/default/services", service),
            ];
            let mut ticks = tokio::time::interval(Duration::from_secs(1));
            let mut there = false;
            while done.run_until_cancelled(ticks.tick()).await.is_some() {
                for (collection, object) in &objects {
                    match there {
                        false => cluster.create(collection, object).await?,
                        true => cluster.delete(&format!("{collection}/churn")).await?,
                    }
                }
                there = !there;
            }
        }
    }
    Ok(())
}
