//! The binary: subcommands, wiring, signals. No logic of the cluster lives here; each component has its own crate.

mod addons;
mod allocator;
mod apiserver;
mod bench;
mod check;
mod cli;
mod component;
mod config_file;
mod control_plane;
mod controller_manager;
mod flags;
mod image;
mod layout;
mod metrics;
mod node;
mod node_socket;
mod scheduler;
mod server;
mod simulate;
mod uninstall;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

/// Objects are many small allocations that another thread frees: glibc's allocator spends a quarter of a write's CPU time
/// on that (docs/decisions/0006-allocator.md).
#[global_allocator]
static ALLOCATOR: allocator::Mimalloc = allocator::Mimalloc;

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    // The shim must come before anything else: it forks, which only a process with a single thread may do.
    if arguments.get(1).is_some_and(|first| first == "shim") {
        orlop_runtime::shim_main(arguments.drain(2..));
    }
    match config_file::with_file(flags::normalize(arguments))
        .and_then(|arguments| run(Cli::parse_from(arguments)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    start_logging(&cli);
    // Fails only when a provider is installed already, and then there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // A stack of 2 MiB for each of hundreds of possible blocking threads is address space only; the pages are not touched.
    let runtime = builder.enable_all().max_blocking_threads(64).build()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Server(arguments) => server::run(*arguments).await,
            Command::Apiserver(arguments) => apiserver::run(arguments).await,
            Command::ControllerManager(flags) => controller_manager::run(flags).await,
            Command::Scheduler(flags) => scheduler::run(flags).await,
            Command::Image(arguments) => image::run(arguments).await,
            Command::Simulate(arguments) => simulate::run(arguments).await,
            Command::Bench(arguments) => bench::run(arguments).await,
            Command::Check(arguments) => check::run(&arguments),
            Command::Uninstall(arguments) => uninstall::run(arguments).await,
        }
    });
    // Blocking threads (log readers, nft) may be in the middle of something; nothing acknowledged depends on them.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

/// `--log-level` says how much of Orlop is logged, and `ORLOP_LOG` overrides it in tracing's own syntax.
fn start_logging(cli: &Cli) {
    // What the storage engine says of its files is of interest only to those who ask for it.
    let usual = || format!("fjall=warn,lsm_tree=warn,{}", cli.log_level);
    let chosen = std::env::var("ORLOP_LOG").unwrap_or_else(|_| usual());
    let filter = tracing_subscriber::EnvFilter::try_new(&chosen).unwrap_or_else(|error| {
        eprintln!("warning: log level {chosen:?}: {error}; using info");
        tracing_subscriber::EnvFilter::new("info")
    });
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match cli.log_format {
        cli::LogFormat::Text => subscriber.with_target(false).init(),
        cli::LogFormat::Json => subscriber.json().init(),
    }
}
