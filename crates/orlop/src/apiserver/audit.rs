//! `--audit-*`: what is recorded about requests, and where.

use anyhow::{bail, ensure};
use orlop_apiserver::options::{AuditBatch, AuditLogOptions, AuditMode, AuditOptions, AuditWebhookOptions};

use super::flags::Flags;

fn mode(flags: &Flags, name: &str) -> anyhow::Result<AuditMode> {
    Ok(match flags.text(name).as_str() {
        "batch" => AuditMode::Batch,
        "blocking" => AuditMode::Blocking,
        "blocking-strict" => AuditMode::BlockingStrict,
        other => {
            bail!("invalid audit {name} mode {other}, allowed modes are \"batch,blocking,blocking-strict\"")
        }
    })
}

fn batch(flags: &Flags, prefix: &str) -> anyhow::Result<AuditBatch> {
    let name = |end: &str| format!("{prefix}-batch-{end}");
    let throttled = flags.bool(&name("throttle-enable"))?;
    let (qps, burst) = (flags.number(&name("throttle-qps"))?, flags.number(&name("throttle-burst"))?);
    let batch = AuditBatch {
        buffer_size: flags.number(&name("buffer-size"))?,
        max_size: flags.number(&name("max-size"))?,
        max_wait: flags.duration(&name("max-wait"))?,
        throttle: throttled.then_some((qps, burst)),
    };
    ensure!(batch.buffer_size > 0, "invalid audit batch {prefix} buffer size 0, must be a positive number");
    ensure!(batch.max_size > 0, "invalid audit batch {prefix} max batch size 0, must be a positive number");
    if let Some((qps, burst)) = batch.throttle {
        ensure!(qps > 0.0, "invalid audit batch {prefix} throttle QPS {qps}, must be a positive number");
        ensure!(burst > 0, "invalid audit batch {prefix} throttle burst 0, must be a positive number");
    }
    Ok(batch)
}

fn truncate(flags: &Flags, prefix: &str) -> anyhow::Result<Option<usize>> {
    let size = flags.number(&format!("{prefix}-truncate-max-event-size"))?;
    Ok(flags.bool(&format!("{prefix}-truncate-enabled"))?.then_some(size))
}

/// What flags say about audit.
pub fn options(flags: &Flags) -> anyhow::Result<AuditOptions> {
    for name in ["audit-log-version", "audit-webhook-version"] {
        let version = flags.text(name);
        ensure!(
            version == "audit.k8s.io/v1",
            "invalid audit {name} {version}, allowed versions are \"audit.k8s.io/v1\""
        );
    }
    let format = flags.text("audit-log-format");
    ensure!(
        matches!(format.as_str(), "json" | "legacy"),
        "invalid audit log format {format}, allowed formats are \"legacy,json\""
    );
    let log = AuditLogOptions {
        path: flags.path("audit-log-path").unwrap_or_default(),
        max_age: flags.number("audit-log-maxage")?,
        max_backup: flags.number("audit-log-maxbackup")?,
        max_size: flags.number("audit-log-maxsize")?,
        compress: flags.bool("audit-log-compress")?,
        legacy_format: format == "legacy",
        mode: mode(flags, "audit-log-mode")?,
        batch: batch(flags, "audit-log")?,
        truncate: truncate(flags, "audit-log")?,
    };
    let webhook = AuditWebhookOptions {
        config_file: flags.path("audit-webhook-config-file").unwrap_or_default(),
        initial_backoff: flags.duration("audit-webhook-initial-backoff")?,
        mode: mode(flags, "audit-webhook-mode")?,
        batch: batch(flags, "audit-webhook")?,
        truncate: truncate(flags, "audit-webhook")?,
    };
    Ok(AuditOptions {
        policy_file: flags.path("audit-policy-file"),
        log: (!log.path.as_os_str().is_empty()).then_some(log),
        webhook: (!webhook.config_file.as_os_str().is_empty()).then_some(webhook),
    })
}
