//! `orlop bench api`: ConfigMaps of 1 KiB are created, read, updated, deleted, listed and watched.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use futures::future::try_join_all;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::connection::{Call, Connection, Target};
use super::process::{Processes, Reading};
use super::sample::Sample;
use super::{ApiArguments, run_name};

/// Clients that fill the list.
const FILLERS: usize = 8;
/// Lists that are fetched.
const LISTS: usize = 20;
/// Objects created under the eyes of all watchers.
const EVENTS: usize = 200;

/// The namespace of this run, and the requests made in it.
#[derive(Clone)]
struct Place {
    collection: Arc<str>,
}

impl Place {
    fn create(&self, name: &str, filler: &str) -> Call {
        Call::new(Method::POST, &*self.collection).with(config_map(name, filler))
    }

    fn get(&self, name: &str) -> Call {
        Call::new(Method::GET, format!("{}/{name}", self.collection))
    }

    fn update(&self, name: &str, filler: &str) -> Call {
        Call::new(Method::PUT, format!("{}/{name}", self.collection)).with(config_map(name, filler))
    }

    fn delete(&self, name: &str) -> Call {
        Call::new(Method::DELETE, format!("{}/{name}", self.collection))
    }

    fn list(&self, query: &str) -> Call {
        Call::new(Method::GET, format!("{}{query}", self.collection))
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
    let target = Target::open(&arguments.kubeconfig).await?;
    let namespace = run_name();
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}).to_string();
    target.connect().await?.send(Call::new(Method::POST, "/api/v1/namespaces").with(body)).await?;
    let place = Place { collection: format!("/api/v1/namespaces/{namespace}/configmaps").into() };
    let bench = Bench { arguments: &arguments, processes, target, place };
    let result = bench.measure().await;
    // A connection of its own: that of a failed measurement may be gone.
    let namespace = format!("/api/v1/namespaces/{namespace}");
    let cleaned = async { bench.target.connect().await?.send(Call::new(Method::DELETE, namespace)).await };
    let cleaned = cleaned.await;
    result?;
    cleaned.map(|_| ())
}

struct Bench<'a> {
    arguments: &'a ApiArguments,
    processes: Processes,
    target: Target,
    place: Place,
}

impl Bench<'_> {
    async fn measure(&self) -> anyhow::Result<()> {
        println!(
            "{:<8} {:>7} {:>9} {:>9} {:>9} {:>12} {:>12} {:>9}",
            "request", "clients", "ops/s", "p50 ms", "p99 ms", "CPU ms/op", "client ms/op", "RSS MiB"
        );
        for &clients in &self.arguments.clients {
            let mut connections = self.connect(clients.max(1)).await?;
            let create = |place: &Place, number| place.create(&format!("c-{number}"), &kibibyte(number));
            let get = |place: &Place, number| place.get(&format!("c-{number}"));
            let update = |place: &Place, number| place.update(&format!("c-{number}"), &kibibyte(number + 1));
            let delete = |place: &Place, number| place.delete(&format!("c-{number}"));
            connections = self.round("create", connections, create).await?;
            connections = self.round("get", connections, get).await?;
            connections = self.round("update", connections, update).await?;
            self.round("delete", connections, delete).await?;
        }
        self.lists().await?;
        self.fan_out().await
    }

    /// New connections, each of which has had an answer already.
    async fn connect(&self, count: usize) -> anyhow::Result<Vec<Connection>> {
        try_join_all((0..count).map(|_| async {
            let mut connection = self.target.connect().await?;
            connection.send(Call::new(Method::GET, "/version")).await?;
            anyhow::Ok(connection)
        }))
        .await
    }

    /// The clients share the operations; each begins its next one when it has the answer to the last. Gives the
    /// connections back.
    async fn round(
        &self,
        name: &str,
        connections: Vec<Connection>,
        call: fn(&Place, usize) -> Call,
    ) -> anyhow::Result<Vec<Connection>> {
        let (next, operations) = (Arc::new(AtomicUsize::new(0)), self.arguments.operations);
        let clients = connections.len();
        let before = self.processes.read()?;
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for mut connection in connections {
            let (next, place) = (next.clone(), self.place.clone());
            tasks.spawn(async move {
                let mut times = Vec::with_capacity(operations / clients + 1);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= operations {
                        return anyhow::Ok((connection, times));
                    }
                    let call = call(&place, number);
                    let begun = Instant::now();
                    connection.send(call).await?;
                    times.push(begun.elapsed());
                }
            });
        }
        let (mut connections, mut times) = (Vec::new(), Vec::new());
        while let Some(ended) = tasks.join_next().await {
            let (connection, more) = ended??;
            connections.push(connection);
            times.extend(more);
        }
        let took = start.elapsed();
        self.report(name, clients, times, took, &before)?;
        Ok(connections)
    }

    async fn lists(&self) -> anyhow::Result<()> {
        let (place, size) = (&self.place, self.arguments.list_size);
        let fillers = self.connect(FILLERS).await?;
        try_join_all(fillers.into_iter().enumerate().map(|(index, mut one)| async move {
            for number in (index..size).step_by(FILLERS) {
                one.send(place.create(&format!("l-{number}"), &kibibyte(number))).await?;
            }
            anyhow::Ok(())
        }))
        .await?;
        let mut connection = self.target.connect().await?;
        connection.send(place.list("")).await?;
        let before = self.processes.read()?;
        let start = Instant::now();
        let mut times = Vec::new();
        for _ in 0..LISTS {
            let begun = Instant::now();
            connection.send(place.list("")).await?;
            times.push(begun.elapsed());
        }
        self.report("list", 1, times, start.elapsed(), &before)
    }

    /// Time from a create's answer to the moment the last watcher has the event; 0 when all have it before that.
    async fn fan_out(&self) -> anyhow::Result<()> {
        let mut connection = self.target.connect().await?;
        let list: Value = serde_json::from_slice(&connection.send(self.place.list("?limit=1")).await?)?;
        let version =
            list["metadata"]["resourceVersion"].as_str().context("the list has no resourceVersion")?;
        let path = format!("{}?watch=true&resourceVersion={version}", self.place.collection);
        let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        let mut watchers = JoinSet::new();
        for _ in 0..self.arguments.watchers {
            let mut lines = self.target.connect().await?.watch(path.clone()).await?;
            let seen = seen.clone();
            watchers.spawn(async move {
                while let Some(Ok(line)) = lines.next().await {
                    if line.contains("\"w-") && seen.send(Instant::now()).is_err() {
                        break;
                    }
                }
            });
        }
        drop(seen);
        let before = self.processes.read()?;
        let start = Instant::now();
        let mut times = Vec::new();
        for number in 0..EVENTS {
            connection.send(self.place.create(&format!("w-{number}"), &kibibyte(number))).await?;
            let created = Instant::now();
            let mut last = created;
            for _ in 0..self.arguments.watchers {
                let arrival = tokio::time::timeout(Duration::from_secs(10), arrivals.recv()).await;
                let arrival = arrival.context("a watcher did not get its event within 10 s")?;
                last = last.max(arrival.context("all watches ended")?);
            }
            times.push(last.duration_since(created));
        }
        self.report("watch", self.arguments.watchers, times, start.elapsed(), &before)
    }

    fn report(
        &self,
        name: &str,
        clients: usize,
        times: Vec<Duration>,
        took: Duration,
        before: &Reading,
    ) -> anyhow::Result<()> {
        let after = self.processes.read()?;
        let sample = Sample::new(times);
        let operations = sample.len() as f64;
        let per_operation =
            |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64() * 1e3 / operations;
        let server = before.server.zip(after.server);
        println!(
            "{name:<8} {clients:>7} {:>9.0} {:>9.2} {:>9.2} {:>12} {:>12.3} {:>9}",
            operations / took.as_secs_f64(),
            sample.percentile(50),
            sample.percentile(99),
            server.map_or("-".to_owned(), |(from, to)| format!("{:.3}", per_operation(from.cpu, to.cpu))),
            per_operation(before.client, after.client),
            after
                .server
                .map_or("-".to_owned(), |usage| format!("{:.1}", usage.rss as f64 / (1 << 20) as f64)),
        );
        Ok(())
    }
}
