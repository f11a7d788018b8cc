//! A control plane without nodes of its own, and a client in its memory that costs little.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::TryStreamExt;
use http::Method;
use http_body_util::{BodyExt, Full};
use orlop_apiserver::components::Running;
use orlop_apiserver::http::Response;
use orlop_apiserver::{ApiServer, InMemory, Options, UserInfo};
use orlop_client::SharedInformerFactory;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::AsyncBufReadExt;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

use crate::control_plane::{Tasks, client, informers, open_store, start_controllers, start_scheduler};

/// Workers that create many objects.
const CREATORS: usize = 32;

/// The cluster. Clones are the same one.
#[derive(Clone)]
pub struct Cluster {
    server: Arc<ApiServer>,
    administrator: InMemory,
    informers: SharedInformerFactory,
    shutdown: CancellationToken,
    tasks: Arc<Mutex<Tasks>>,
}

/// How many events of a kind have been seen.
pub struct Bound {
    count: Arc<AtomicUsize>,
    changed: watch::Receiver<Result<usize, String>>,
}

impl Cluster {
    /// Starts API server and scheduler on an empty directory, with the admission plugins off that upstream's benchmark
    /// turns off: pods name no account, priority is a number, and nodes are ready as they come.
    pub async fn start(directory: &Path, controllers: bool) -> anyhow::Result<Cluster> {
        let off = ["ServiceAccount", "TaintNodesByCondition", "Priority"];
        let options = Options {
            cert_dir: Some(directory.join("pki")),
            disable_admission_plugins: off.map(str::to_owned).to_vec(),
            ..Options::default()
        };
        let server = ApiServer::new(options, open_store(&directory.join("store")).await?).await?;
        let (shutdown, mut tasks) = (CancellationToken::new(), Tasks::new());
        let informers = informers(&server, &shutdown);
        if controllers {
            let options = Default::default();
            start_controllers(&server, &informers, options, Running::default(), &shutdown, &mut tasks);
        }
        start_scheduler(&server, &informers, Running::default(), &shutdown, &mut tasks);
        Ok(Cluster::of(server, informers, shutdown, tasks))
    }

    /// Starts a whole control plane as `orlop server` does, with every admission plugin, without the controllers.
    pub async fn start_whole(directory: &Path) -> anyhow::Result<Cluster> {
        let options = Options { cert_dir: Some(directory.join("pki")), ..Options::default() };
        let server = ApiServer::new(options, open_store(&directory.join("store")).await?).await?;
        let (shutdown, mut tasks) = (CancellationToken::new(), Tasks::new());
        let informers = informers(&server, &shutdown);
        start_scheduler(&server, &informers, Running::default(), &shutdown, &mut tasks);
        Ok(Cluster::of(server, informers, shutdown, tasks))
    }

    fn of(
        server: Arc<ApiServer>,
        informers: SharedInformerFactory,
        shutdown: CancellationToken,
        tasks: Tasks,
    ) -> Cluster {
        let administrator = server.in_memory(Self::administrator().authenticated());
        Cluster { server, administrator, informers, shutdown, tasks: Arc::new(Mutex::new(tasks)) }
    }

    /// Starts the controllers beside the scheduler, as a server does; they end when the answer is dropped.
    pub fn start_controllers(&self) -> DropGuard {
        self.start_controllers_with(self.informers.clone(), self.shutdown.child_token())
    }

    /// Starts the controllers as in a new process: they know nothing yet.
    pub fn start_controllers_anew(&self) -> DropGuard {
        let stop = self.shutdown.child_token();
        self.start_controllers_with(informers(&self.server, &stop), stop)
    }

    fn start_controllers_with(&self, informers: SharedInformerFactory, stop: CancellationToken) -> DropGuard {
        start_controllers(
            &self.server,
            &informers,
            Default::default(),
            Running::default(),
            &stop,
            &mut self.tasks.lock(),
        );
        stop.drop_guard()
    }

    /// The revision of the store: it grows by one with every write.
    pub async fn revision(&self) -> anyhow::Result<u64> {
        let body = self.fetch(Method::GET, "/api/v1/configmaps?limit=1", Bytes::new()).await?;
        let list: Value = serde_json::from_slice(&body)?;
        let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        revision.parse().with_context(|| format!("resourceVersion {revision:?}"))
    }

    /// How many objects a collection has.
    pub async fn count(&self, collection: &str) -> anyhow::Result<u64> {
        let body = self.fetch(Method::GET, &format!("{collection}?limit=1"), Bytes::new()).await?;
        let list: Value = serde_json::from_slice(&body)?;
        let first = list["items"].as_array().map_or(0, Vec::len) as u64;
        Ok(first + list["metadata"]["remainingItemCount"].as_u64().unwrap_or(0))
    }

    /// The names in a collection.
    pub async fn names(&self, collection: &str) -> anyhow::Result<Vec<String>> {
        let list: Value = serde_json::from_slice(&self.fetch(Method::GET, collection, Bytes::new()).await?)?;
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(items.iter().filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }

    /// Starts further tasks of the cluster.
    pub fn run_beside(&self, start: impl FnOnce(&CancellationToken, &mut Tasks)) {
        start(&self.shutdown, &mut self.tasks.lock());
    }

    /// A client with all rights.
    pub fn client(&self, component: &'static str) -> kube::Client {
        client(&self.server, Self::administrator(), component)
    }

    /// Waits until pods can be made in a namespace.
    pub async fn wait_for_account(&self, namespace: &str) -> anyhow::Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
        while let Err(error) = self.send(Method::GET, &path, Bytes::new()).await {
            if !error.to_string().contains("404") {
                return Err(error);
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends everything.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        while tasks.join_next().await.is_some() {}
    }

    fn administrator() -> UserInfo {
        UserInfo::new("orlop-bench", &["system:masters"])
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<()> {
        self.fetch(method, path, body).await.map(drop)
    }

    async fn answer(&self, request: http::Request<Full<Bytes>>, shown: &str) -> anyhow::Result<Response> {
        let answer = self.administrator.clone().oneshot(request).await;
        answer.map_err(|error| anyhow::anyhow!("{shown}: {error}"))
    }

    async fn fetch(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let shown = format!("{method} {path}");
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let response = self.answer(request, &shown).await?;
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{shown}: {error}"))?.to_bytes();
        if !status.is_success() {
            bail!("{shown}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }

    /// Creates an object in a collection.
    pub async fn create(&self, collection: &str, object: &Value) -> anyhow::Result<()> {
        self.send(Method::POST, collection, serde_json::to_vec(object)?.into()).await
    }

    /// Deletes an object.
    pub async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(Method::DELETE, path, Bytes::new()).await
    }

    /// Creates many objects with [`CREATORS`] workers, as upstream's benchmark does; `object` names the collection and
    /// the encoded object of a number.
    pub async fn create_all(
        &self,
        count: usize,
        object: impl Fn(usize) -> anyhow::Result<(String, Bytes)> + Send + Sync + 'static,
    ) -> anyhow::Result<()> {
        let (next, object) = (Arc::new(AtomicUsize::new(0)), Arc::new(object));
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..CREATORS.min(count) {
            let (cluster, next, object) = (self.clone(), next.clone(), object.clone());
            workers.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return anyhow::Ok(());
                    }
                    let (collection, object) = object(number)?;
                    cluster.send(Method::POST, &collection, object).await?;
                }
            });
        }
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Begins to count the pods that are bound to a node and whose name begins with `prefix`.
    pub async fn watch_bound(&self, prefix: &str) -> anyhow::Result<Bound> {
        self.watch("/api/v1/pods?fieldSelector=spec.nodeName%21%3D", "ADDED", prefix).await
    }

    /// The same for pods that run.
    pub async fn watch_running(&self, prefix: &str) -> anyhow::Result<Bound> {
        self.watch("/api/v1/pods?fieldSelector=status.phase%3DRunning", "ADDED", prefix).await
    }

    /// Begins to count the writes to a collection after a revision.
    pub async fn watch_writes(&self, collection: &str, since: u64) -> anyhow::Result<Bound> {
        self.follow(&format!("{collection}?watch=true&resourceVersion={since}"), "", "").await
    }

    /// Counts events of one type about objects whose name begins with `prefix`. They are looked through as text: the
    /// counting shall not be a part of what is measured.
    async fn watch(&self, collection: &str, event: &str, prefix: &str) -> anyhow::Result<Bound> {
        self.follow(&format!("{collection}&watch=true&resourceVersion=0"), event, prefix).await
    }

    async fn follow(&self, path: &str, event: &str, prefix: &str) -> anyhow::Result<Bound> {
        let request = http::Request::get(path).body(Full::new(Bytes::new()))?;
        let response = self.answer(request, "watch").await?;
        if !response.status().is_success() {
            bail!("{path}: {}", response.status());
        }
        let body = response.into_body().into_data_stream().map_err(std::io::Error::other);
        let mut lines = tokio_util::io::StreamReader::new(body);
        // An empty one counts all.
        let kind = format!("{{\"type\":\"{event}");
        let name = memchr::memmem::Finder::new(&format!("\"name\":\"{prefix}")).into_owned();
        let count = Arc::new(AtomicUsize::new(0));
        let (sender, changed) = watch::channel(Ok(0));
        let seen = count.clone();
        tokio::spawn(async move {
            let mut line = Vec::new();
            loop {
                line.clear();
                let read = tokio::select! {
                    read = lines.read_until(b'\n', &mut line) => read,
                    () = sender.closed() => return,
                };
                match read {
                    Ok(0) => return drop(sender.send(Err("a watch ended".to_owned()))),
                    Err(error) => return drop(sender.send(Err(error.to_string()))),
                    Ok(_) if line.starts_with(kind.as_bytes()) && name.find(&line).is_some() => {
                        let _ = sender.send(Ok(seen.fetch_add(1, Ordering::Relaxed) + 1));
                    }
                    Ok(_) => {}
                }
            }
        });
        Ok(Bound { count, changed })
    }
}

impl Bound {
    /// How many were seen.
    pub fn seen(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until so many were seen.
    pub async fn reached(&self, count: usize) -> anyhow::Result<()> {
        let mut changed = self.changed.clone();
        let last = changed.wait_for(|seen| seen.as_ref().map_or(true, |seen| *seen >= count)).await?;
        last.clone().map(drop).map_err(anyhow::Error::msg)
    }
}
