//! `orlop scheduler`: the scheduler alone, against any API server, under kube-scheduler's flag names.

mod table;

use anyhow::Context;
use orlop_scheduler::KubeSchedulerConfiguration;

use crate::component::{self, Component};
use crate::control_plane::Tasks;
use crate::flags::Flags as AnyFlags;

/// The command line.
pub type Flags = AnyFlags<table::Scheduler>;

/// Schedules until a signal.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let configuration = configuration(&flags)?;
    if let Some(path) = flags.path("write-config-to") {
        let text = serde_saphyr::to_string(&configuration)?;
        return std::fs::write(&path, text).with_context(|| format!("--write-config-to {}", path.display()));
    }
    let shown = serde_json::to_value(&configuration)?;
    let component = Component::of("kube-scheduler", &flags, ("kubescheduler.config.k8s.io", shown)).await?;
    flags.settle()?;
    component::run(component, move |component, working| {
        let mut tasks = Tasks::new();
        let informers = orlop_client::SharedInformerFactory::new(component.client.clone(), working.clone());
        let options = orlop_scheduler::Options {
            configuration: Some(configuration),
            ..orlop_scheduler::Options::default()
        };
        tasks.spawn(async move { Ok(orlop_scheduler::run(informers, options, working).await?) });
        Ok(tasks)
    })
    .await
}

fn configuration(flags: &Flags) -> anyhow::Result<KubeSchedulerConfiguration> {
    match flags.file("config")? {
        Some(text) => KubeSchedulerConfiguration::parse(&text)
            .with_context(|| format!("--config {}", flags.text("config"))),
        None => Ok(KubeSchedulerConfiguration::defaulted()),
    }
}
