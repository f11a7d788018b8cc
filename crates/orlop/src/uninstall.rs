//! `orlop uninstall`: stops what runs and removes what a server left on the host.

use std::path::Path;

use anyhow::{Context, bail};
use clap::Parser;
use orlop_network::BridgeNetwork;
use orlop_runtime::EmbeddedRuntime;

use crate::cli::{Cli, Command, ServerArguments, UninstallArguments};
use crate::layout::Layout;
use crate::node;

/// Removes containers, mounts, network, cgroups and, unless told otherwise, the data. Safe to repeat.
pub async fn run(arguments: UninstallArguments) -> anyhow::Result<()> {
    if !arguments.location.data_dir.exists() {
        println!("nothing to remove: {} does not exist", arguments.location.data_dir.display());
        return Ok(());
    }
    let layout = Layout::find(&arguments.location)?;
    refuse_if_running(&layout)?;
    let server = last_arguments(&layout)?;
    let options = node::network_options(&layout, &server, "uninstall")?;

    let (_, no_cidr) = tokio::sync::watch::channel(None);
    let network = BridgeNetwork::open(options.clone(), no_cidr).await?;
    if layout.runtime().exists() {
        let runtime = EmbeddedRuntime::open(node::runtime_options(&layout, network)?).await?;
        runtime.uninstall().await.context("containers")?;
    }
    orlop_network::cleanup(&options).await.context("network")?;
    unmount_below(&layout.data)?;
    remove(&layout.run())?;
    if !arguments.keep_data {
        remove(&layout.data)?;
    }
    println!("removed the cluster of {}", layout.data.display());
    Ok(())
}

fn refuse_if_running(layout: &Layout) -> anyhow::Result<()> {
    if std::os::unix::net::UnixStream::connect(layout.socket()).is_ok() {
        bail!("the server of {} still runs: stop it first", layout.data.display());
    }
    Ok(())
}

/// The ranges the server was started with last; the defaults when it never got that far.
fn last_arguments(layout: &Layout) -> anyhow::Result<ServerArguments> {
    let kept = std::fs::read_to_string(layout.ranges_file()).unwrap_or_default();
    let flags = kept.lines().filter(|line| !line.is_empty()).map(str::to_owned);
    let line = ["orlop", "server"].map(str::to_owned).into_iter().chain(flags);
    match Cli::try_parse_from(line)?.command {
        Command::Server(server) => Ok(*server),
        _ => bail!("{} does not hold flags of `orlop server`", layout.ranges_file().display()),
    }
}

/// Volumes of pods (tmpfs, bind mounts) are mounts below the data directory; the deepest go first.
fn unmount_below(directory: &Path) -> anyhow::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut points: Vec<_> =
        points.map(Path::new).filter(|point| point.starts_with(directory) && *point != directory).collect();
    points.sort();
    for point in points.into_iter().rev() {
        nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(directory.display().to_string())
        }
        _ => Ok(()),
    }
}
