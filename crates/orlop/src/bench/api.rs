//! `orlop bench api`. Requests are raw HTTP, so that the client's own work stays small and equal for every server.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::try_join_all;
use futures::{AsyncBufReadExt, StreamExt};
use http::{Method, Request};
use kube::client::Body;
use serde_json::{Value, json};

use super::process::Processes;
use super::sample::Sample;
use super::{ApiArguments, run_name};

/// One connection to the server.
#[derive(Clone)]
struct Connection {
    client: kube::Client,
    namespace: Arc<str>,
}

impl Connection {
    async fn send(&self, method: Method, path: &str, body: Option<String>) -> anyhow::Result<bytes::Bytes> {
        let body = body.map_or_else(Body::empty, |text| Body::from(text.into_bytes()));
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(body)?;
        let response = self.client.send(request).await.with_context(|| format!("{method} {path}"))?;
        let status = response.status();
        let bytes = http_body_util::BodyExt::collect(response.into_body()).await?.to_bytes();
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(bytes)
    }

    fn collection(&self) -> String {
        format!("/api/v1/namespaces/{}/configmaps", self.namespace)
    }

    fn object(&self, number: usize) -> String {
        format!("{}/c-{number}", self.collection())
    }
}

fn config_map(name: &str, filler: &str) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": filler}})
        .to_string()
}

fn kibibyte(seed: usize) -> String {
    format!("{seed:016x}").repeat(64)
}

/// Measures everything and prints a table.
pub async fn run(arguments: ApiArguments) -> anyhow::Result<()> {
    let processes = Processes::new(arguments.pid.clone())?;
    let namespace: Arc<str> = run_name().into();
    let connect = || async {
        let client = orlop_client::from_kubeconfig(&arguments.kubeconfig, "orlop-bench").await?;
        anyhow::Ok(Connection { client, namespace: namespace.clone() })
    };
    let first = connect().await?;
    let body =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": &*namespace}}).to_string();
    first.send(Method::POST, "/api/v1/namespaces", Some(body)).await?;
    let result = measure(&arguments, &processes, &first, connect).await;
    let cleaned = first.send(Method::DELETE, &format!("/api/v1/namespaces/{namespace}"), None).await;
    result?;
    cleaned.map(|_| ())
}

async fn measure<F: Future<Output = anyhow::Result<Connection>>>(
    arguments: &ApiArguments,
    processes: &Processes,
    first: &Connection,
    connect: impl Fn() -> F,
) -> anyhow::Result<()> {
    println!(
        "{:<8} {:>7} {:>9} {:>9} {:>9} {:>12} {:>9}",
        "request", "clients", "ops/s", "p50 ms", "p99 ms", "CPU ms/op", "RSS MiB"
    );
    for &clients in &arguments.clients {
        let connections = try_join_all((0..clients.max(1)).map(|_| connect())).await?;
        // Connections are made by the first request; that is not what is measured.
        try_join_all(connections.iter().map(|one| one.send(Method::GET, "/version", None))).await?;
        let round = Round { processes, connections: &connections, operations: arguments.operations };
        round
            .run("create", |one, number| async move {
                let body = config_map(&format!("c-{number}"), &kibibyte(number));
                one.send(Method::POST, &one.collection(), Some(body)).await
            })
            .await?;
        round
            .run("get", |one, number| async move { one.send(Method::GET, &one.object(number), None).await })
            .await?;
        round
            .run("update", |one, number| async move {
                let body = config_map(&format!("c-{number}"), &kibibyte(number + 1));
                one.send(Method::PUT, &one.object(number), Some(body)).await
            })
            .await?;
        round
            .run(
                "delete",
                |one, number| async move { one.send(Method::DELETE, &one.object(number), None).await },
            )
            .await?;
    }
    lists(arguments, processes, first, &connect).await?;
    fan_out(arguments, processes, first, &connect).await
}

/// A number of clients that share a number of operations of each kind.
struct Round<'a> {
    processes: &'a Processes,
    connections: &'a [Connection],
    operations: usize,
}

impl Round<'_> {
    async fn run<F>(&self, name: &str, operation: impl Fn(Connection, usize) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<bytes::Bytes>> + Send + 'static,
    {
        let next = AtomicUsize::new(0);
        let before = self.processes.usage()?;
        let start = Instant::now();
        let work = self.connections.iter().map(|connection| async {
            let mut times = Vec::with_capacity(self.operations / self.connections.len() + 1);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.operations {
                    return anyhow::Ok(times);
                }
                let begun = Instant::now();
                // A task of its own lets the clients use every core.
                tokio::spawn(operation(connection.clone(), number)).await??;
                times.push(begun.elapsed());
            }
        });
        let times = try_join_all(work).await?.concat();
        let took = start.elapsed();
        report(name, self.connections.len(), &Sample::new(times), took, before, self.processes)
    }
}

async fn lists<F: Future<Output = anyhow::Result<Connection>>>(
    arguments: &ApiArguments,
    processes: &Processes,
    first: &Connection,
    connect: impl Fn() -> F,
) -> anyhow::Result<()> {
    let fillers = try_join_all((0..8).map(|_| connect())).await?;
    try_join_all(fillers.iter().enumerate().map(|(index, one)| async move {
        for number in (index..arguments.list_size).step_by(8) {
            let body = config_map(&format!("l-{number}"), &kibibyte(number));
            one.send(Method::POST, &one.collection(), Some(body)).await?;
        }
        anyhow::Ok(())
    }))
    .await?;
    let before = processes.usage()?;
    let start = Instant::now();
    let mut times = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        first.send(Method::GET, &first.collection(), None).await?;
        times.push(begun.elapsed());
    }
    report("list", 1, &Sample::new(times), start.elapsed(), before, processes)
}

/// Time from a create's answer to the moment the last watcher has the event.
async fn fan_out<F: Future<Output = anyhow::Result<Connection>>>(
    arguments: &ApiArguments,
    processes: &Processes,
    first: &Connection,
    connect: impl Fn() -> F,
) -> anyhow::Result<()> {
    const EVENTS: usize = 200;
    let list: Value = serde_json::from_slice(
        &first.send(Method::GET, &format!("{}?limit=1", first.collection()), None).await?,
    )?;
    let version =
        list["metadata"]["resourceVersion"].as_str().context("the list has no resourceVersion")?.to_owned();
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let mut watchers = Vec::new();
    for _ in 0..arguments.watchers {
        let connection = connect().await?;
        let path = format!("{}?watch=true&resourceVersion={version}", connection.collection());
        let mut lines = connection.client.request_stream(Request::get(path).body(Vec::new())?).await?.lines();
        let seen = seen.clone();
        watchers.push(tokio::spawn(async move {
            while let Some(Ok(line)) = lines.next().await {
                if line.contains("\"w-") && seen.send(Instant::now()).is_err() {
                    break;
                }
            }
        }));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = processes.usage()?;
    let start = Instant::now();
    let mut times = Vec::new();
    for number in 0..EVENTS {
        let body = config_map(&format!("w-{number}"), &kibibyte(number));
        first.send(Method::POST, &first.collection(), Some(body)).await?;
        let created = Instant::now();
        let mut last = created;
        for _ in 0..arguments.watchers {
            let arrival = tokio::time::timeout(Duration::from_secs(10), arrivals.recv()).await;
            last = last.max(
                arrival
                    .context("a watcher did not get its event within 10 s")?
                    .context("all watches ended")?,
            );
        }
        times.push(last.duration_since(created));
    }
    report("watch", arguments.watchers, &Sample::new(times), start.elapsed(), before, processes)?;
    watchers.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

fn report(
    name: &str,
    clients: usize,
    sample: &Sample,
    took: Duration,
    before: Option<super::process::Usage>,
    processes: &Processes,
) -> anyhow::Result<()> {
    let operations = sample.len() as f64;
    let rate = operations / took.as_secs_f64();
    print!(
        "{name:<8} {clients:>7} {rate:>9.0} {:>9.2} {:>9.2}",
        sample.percentile(50),
        sample.percentile(99)
    );
    match (before, processes.usage()?) {
        (Some(before), Some(after)) => {
            let cpu = (after.cpu.saturating_sub(before.cpu)).as_secs_f64() * 1e3 / operations;
            println!(" {cpu:>12.3} {:>9.1}", after.rss as f64 / f64::from(1 << 20));
        }
        _ => println!(" {:>12} {:>9}", "-", "-"),
    }
    Ok(())
}
