//! `orlop bench pods`: from the request to create a pod to the moment its Ready condition is seen.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

use super::process::Processes;
use super::sample::Sample;
use super::{PodsArguments, run_name};

/// How long a pod may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two single pods, so that the end of one is not measured with the start of the next.
const REST: Duration = Duration::from_millis(500);
/// Creates that are under way at once in a burst.
const CREATORS: usize = 8;

/// Measures pods one by one and all at once, and prints a table.
pub async fn run(arguments: PodsArguments) -> anyhow::Result<()> {
    let processes = Processes::new(arguments.pid.clone())?;
    let client = orlop_client::from_kubeconfig(&arguments.kubeconfig, "orlop-bench").await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let name = run_name();
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    let result = measure(&arguments, &processes, &client, &name).await;
    let cleaned = namespaces.delete(&name, &DeleteParams::default()).await;
    result?;
    cleaned?;
    Ok(())
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
    let before = processes.read()?;
    let mut times = Vec::new();
    for round in 0..arguments.single {
        let name = format!("single-{round}");
        times.extend(create_and_wait(&pods, &arguments.image, std::slice::from_ref(&name)).await?);
        pods.delete(&name, &DeleteParams::default()).await?;
        tokio::time::sleep(REST).await;
    }
    report("single", times, None, cpu(before.server, processes)?);

    let names: Vec<_> = (0..arguments.burst).map(|index| format!("burst-{index}")).collect();
    let before = processes.read()?;
    let begun = Instant::now();
    let times = create_and_wait(&pods, &arguments.image, &names).await?;
    report("burst", times, Some(begun.elapsed()), cpu(before.server, processes)?);
    Ok(())
}

/// CPU time of the servers since `before`.
fn cpu(before: Option<super::process::Usage>, processes: &Processes) -> anyhow::Result<Option<Duration>> {
    let after = processes.read()?.server;
    Ok(before.zip(after).map(|(before, after)| after.cpu.saturating_sub(before.cpu)))
}

fn report(name: &str, times: Vec<Duration>, all: Option<Duration>, cpu: Option<Duration>) {
    let sample = Sample::new(times);
    let seconds =
        |time: Option<Duration>| time.map_or("-".into(), |time| format!("{:.2}", time.as_secs_f64()));
    println!(
        "{name:<8} {:>6} {:>10.0} {:>10.0} {:>12} {:>10}",
        sample.len(),
        sample.percentile(50),
        sample.percentile(99),
        seconds(all),
        seconds(cpu),
    );
}

/// Creates all these pods and waits for them; the time of each from the moment its create is sent.
async fn create_and_wait(pods: &Api<Pod>, image: &str, names: &[String]) -> anyhow::Result<Vec<Duration>> {
    let limit_one = ListParams::default().limit(1);
    let version = pods.list(&limit_one).await?.metadata.resource_version.unwrap_or_default();
    let mut events = pods.watch(&WatchParams::default(), &version).await?.boxed();
    let create = async {
        let creates = futures::stream::iter(names).map(|name| async move {
            let pod = serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [
                        {"name": "main", "image": image, "imagePullPolicy": "Never", "command": ["sleep", "100000"]},
                    ],
                },
            }))?;
            let begun = Instant::now();
            pods.create(&PostParams::default(), &pod).await?;
            anyhow::Ok((name.clone(), begun))
        });
        creates.buffer_unordered(CREATORS).try_collect::<HashMap<_, _>>().await
    };
    let wait = async {
        let mut ready = HashMap::with_capacity(names.len());
        while ready.len() < names.len() {
            let next = tokio::time::timeout(LIMIT, events.try_next()).await;
            match next.with_context(|| format!("{} pods are not Ready", names.len() - ready.len()))?? {
                Some(WatchEvent::Modified(pod)) if is_ready(&pod) => {
                    let name = pod.metadata.name.unwrap_or_default();
                    ready.entry(name).or_insert_with(Instant::now);
                }
                Some(WatchEvent::Error(status)) => bail!("the watch of the pods failed: {}", status.message),
                Some(_) => {}
                None => bail!("the watch of the pods ended early"),
            }
        }
        Ok(ready)
    };
    let (created, ready) = tokio::try_join!(create, wait)?;
    Ok(created.iter().filter_map(|(name, begun)| Some(ready.get(name)?.duration_since(*begun))).collect())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
