//! What `orlop scheduler` and `orlop controller-manager` have in common: a client, leader election, and a port for
//! health and metrics, under upstream's flag names.

pub mod metrics;
mod serving;
pub mod table;

use anyhow::{Context, bail, ensure};
use orlop_apiserver::components::Running;
use orlop_client::{Connection, LeaderElection, LeaderElectionOptions};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::serving::Serving;
use crate::control_plane::Tasks;
use crate::flags::Flags;
use crate::flags::table::Table;
use crate::server::{STOP, until_told};

/// One component as its flags describe it.
pub struct Component {
    /// Name of the component and of its Lease.
    pub name: &'static str,
    /// How the API server is reached.
    pub connection: Connection,
    /// A client under the component's own identity.
    pub client: kube::Client,
    election: Option<LeaderElectionOptions>,
    serving: Option<Serving>,
}

impl Component {
    /// Reads the flags. `configz` is the name and content of the component's configuration, which running servers show;
    /// what it says of `leaderElection` and `clientConnection` holds where no flag says otherwise.
    pub async fn of<T: Table>(
        name: &'static str,
        flags: &Flags<T>,
        configz: (&'static str, Value),
    ) -> anyhow::Result<Component> {
        let configured = configz.1.get("clientConnection").and_then(|client| client.get("kubeconfig"));
        let configured = configured.and_then(Value::as_str).filter(|path| !path.is_empty());
        let kubeconfig = flags.path("kubeconfig").or_else(|| configured.map(Into::into));
        let connection =
            Connection::open(kubeconfig.as_deref(), flags.optional("master").as_deref(), name).await?;
        let client = connection.client()?;
        let election = election(name, flags, configz.1.get("leaderElection"))?;
        let gates = flags.bool_map("feature-gates")?;
        if !gates.is_empty() {
            // Whoever sets a gate must not believe that something has changed.
            info!(
                ?gates,
                "no effect: the features of this component are those that upstream has on by default"
            );
        }
        let serving = Serving::of(flags, &client, name, configz).await?;
        Ok(Component { name, connection, client, election, serving })
    }
}

fn election<T: Table>(
    name: &str,
    flags: &Flags<T>,
    configured: Option<&Value>,
) -> anyhow::Result<Option<LeaderElectionOptions>> {
    let said = |field: &str| configured.and_then(|section| section.get(field));
    let wanted = match said("leaderElect").and_then(Value::as_bool) {
        Some(wanted) if !flags.has("leader-elect") => wanted,
        _ => flags.bool("leader-elect")?,
    };
    let text = |flag: &str, field: &str| match said(field).and_then(Value::as_str) {
        Some(text) if !flags.has(flag) && !text.is_empty() => text.to_owned(),
        _ => flags.text(flag),
    };
    let duration = |flag: &str, field: &str| match said(field).and_then(Value::as_str) {
        Some(text) if !flags.has(flag) => crate::flags::parse_duration(field, text),
        _ => flags.duration(flag),
    };
    let lock = text("leader-elect-resource-lock", "resourceLock");
    ensure!(lock == "leases", "--leader-elect-resource-lock {lock:?}: resourceLock value must be \"leases\"");
    let own = text("leader-elect-resource-name", "resourceName");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let identity = format!("{}_{}", host.trim(), unique_id()?);
    let options = LeaderElectionOptions {
        namespace: text("leader-elect-resource-namespace", "resourceNamespace"),
        lease_duration: duration("leader-elect-lease-duration", "leaseDuration")?,
        renew_deadline: duration("leader-elect-renew-deadline", "renewDeadline")?,
        retry_period: duration("leader-elect-retry-period", "retryPeriod")?,
        ..LeaderElectionOptions::new(if own.is_empty() { name.to_owned() } else { own }, identity)
    };
    if !wanted {
        return Ok(None);
    }
    options.check().map_err(anyhow::Error::msg)?;
    Ok(Some(options))
}

/// Tells two processes on one host apart.
fn unique_id() -> anyhow::Result<String> {
    let id =
        std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("/proc/sys/kernel/random/uuid")?;
    Ok(id.trim().to_owned())
}

/// Serves health, waits until this process leads, and works until a signal or until it leads no longer. Then it ends:
/// whoever starts it again begins anew, as upstream's components do.
pub async fn run(
    component: Component,
    work: impl FnOnce(&Component, CancellationToken) -> anyhow::Result<Tasks> + Send + 'static,
) -> anyhow::Result<()> {
    let (shutdown, mut tasks, leading) = (CancellationToken::new(), Tasks::new(), Running::default());
    if let Some(serving) = &component.serving {
        serving.start(leading.clone(), component.election.as_ref(), &shutdown, &mut tasks).await?;
    }
    let stop = shutdown.clone();
    tasks.spawn(async move {
        let leadership = match component.election.clone() {
            None => None,
            Some(options) => {
                info!(component = component.name, lease = options.name, "waiting for the leader lease");
                let election = LeaderElection::new(component.client.clone(), options);
                match election.lead(stop.clone()).await {
                    Some(leadership) => Some(leadership),
                    None => return Ok(()),
                }
            }
        };
        let lost = leadership.as_ref().map_or(&stop, |leadership| &leadership.lost).clone();
        let guard = leading.begin();
        let mut parts = work(&component, lost)?;
        let ended = async {
            while let Some(ended) = parts.join_next().await {
                ended??;
            }
            anyhow::Ok(())
        };
        // Whoever has lost the lease ends at once, whatever its parts still wait for: another one works now.
        let replaced = async {
            match &leadership {
                Some(leadership) => leadership.lost.cancelled().await,
                None => std::future::pending().await,
            }
            if stop.is_cancelled() {
                std::future::pending().await
            }
        };
        tokio::select! {
            ended = ended => ended?,
            () = replaced => {}
        }
        drop(guard);
        if let Some(leadership) = leadership {
            leadership.ended().await;
        }
        match stop.is_cancelled() {
            true => Ok(()),
            false => bail!(
                "leaderelection lost: another {} works now, or the API server could not be reached",
                component.name
            ),
        }
    });
    until_told(tasks, shutdown, STOP).await
}
