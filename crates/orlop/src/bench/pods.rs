//! `orlop bench pods`: from the request to create a pod to the moment its Ready condition is seen.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

use super::process::Processes;
use super::sample::Sample;
use super::{PodsArguments, run_name};

const LIMIT: Duration = Duration::from_secs(120);

/// Measures pods one by one and all at once, and prints a table.
pub async fn run(arguments: PodsArguments) -> anyhow::Result<()> {
    let processes = Processes::new(arguments.pid.clone())?;
    let client = orlop_client::from_kubeconfig(&arguments.kubeconfig, "orlop-bench").await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let name = run_name();
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    let result = measure(&arguments, &processes, &client, &name).await;
    namespaces.delete(&name, &DeleteParams::default()).await?;
    result
}

async fn measure(
    arguments: &PodsArguments,
    processes: &Processes,
    client: &kube::Client,
    namespace: &str,
) -> anyhow::Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let begun = Instant::now();
    while accounts.get_opt("default").await?.is_none() {
        if begun.elapsed() > LIMIT {
            bail!("the namespace {namespace} got no default service account: do the controllers run?");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    println!(
        "{:<8} {:>6} {:>10} {:>10} {:>12} {:>10}",
        "pods", "count", "p50 ms", "p99 ms", "all after s", "CPU s"
    );
    for (name, count, at_once) in
        [("single", arguments.single, 1), ("burst", arguments.burst, arguments.burst)]
    {
        let before = processes.usage()?;
        let begun = Instant::now();
        let mut times = Vec::new();
        for round in 0..count.div_ceil(at_once.max(1)) {
            let names: Vec<_> = (0..at_once).map(|index| format!("{name}-{round}-{index}")).collect();
            times.extend(create_and_wait(&pods, &arguments.image, &names).await?);
            if at_once == 1 {
                delete(&pods, &names).await?;
            }
        }
        let sample = Sample::new(times);
        let cpu = match (before, processes.usage()?) {
            (Some(before), Some(after)) => {
                format!("{:.2}", after.cpu.saturating_sub(before.cpu).as_secs_f64())
            }
            _ => "-".to_owned(),
        };
        println!(
            "{name:<8} {:>6} {:>10.0} {:>10.0} {:>12.2} {cpu:>10}",
            sample.len(),
            sample.percentile(50),
            sample.percentile(99),
            begun.elapsed().as_secs_f64(),
        );
    }
    Ok(())
}

async fn create_and_wait(pods: &Api<Pod>, image: &str, names: &[String]) -> anyhow::Result<Vec<Duration>> {
    let version = pods.list(&Default::default()).await?.metadata.resource_version.unwrap_or_default();
    let mut events = pods.watch(&WatchParams::default(), &version).await?.boxed();
    let mut created = HashMap::new();
    for name in names {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "image": image, "imagePullPolicy": "Never", "command": ["sleep", "100000"]}],
            },
        }))?;
        created.insert(name.clone(), Instant::now());
        pods.create(&PostParams::default(), &pod).await?;
    }
    let mut times = Vec::with_capacity(names.len());
    while !created.is_empty() {
        let next = tokio::time::timeout(LIMIT, events.try_next()).await;
        match next.with_context(|| format!("{} pods are not Ready", created.len()))?? {
            Some(WatchEvent::Modified(pod)) if is_ready(&pod) => {
                if let Some(begun) = pod.metadata.name.and_then(|name| created.remove(&name)) {
                    times.push(begun.elapsed());
                }
            }
            Some(_) => {}
            None => bail!("the watch ended early"),
        }
    }
    Ok(times)
}

async fn delete(pods: &Api<Pod>, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        pods.delete(name, &DeleteParams::default()).await?;
    }
    Ok(())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
