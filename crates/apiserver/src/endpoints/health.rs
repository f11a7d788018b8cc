//! `/healthz`, `/livez`, `/readyz`: upstream's checks by name. Many of upstream's start-up hooks are one step here (the
//! server is not reachable before its caches are filled and the bootstrap objects exist), so they share its state.

use std::sync::atomic::Ordering;

use crate::ApiServer;
use crate::http::body::{self, Response};
use crate::http::pipeline::Request;
use crate::metrics::Exposition;

const ROOTS: [&str; 3] = ["/healthz", "/livez", "/readyz"];

/// What a check looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// That the process answers.
    Answers,
    /// That a plugin that knows keys is well, counted from 0.
    Plugin(usize),
    /// That the store answers, in the time for (0) health, (1) readiness.
    Store(usize),
    /// That the bootstrap is over.
    Started,
    /// That the server is not going.
    Stays,
}

/// Every check in upstream's order, and whether it is one of readiness only.
const CHECKS: [(&str, What, bool); 35] = [
    ("ping", What::Answers, false),
    ("log", What::Answers, false),
    ("etcd", What::Store(0), false),
    ("etcd-readiness", What::Store(1), true),
    ("informer-sync", What::Started, true),
    ("poststarthook/start-apiserver-admission-initializer", What::Started, false),
    ("poststarthook/generic-apiserver-start-informers", What::Started, false),
    ("poststarthook/priority-and-fairness-config-consumer", What::Started, false),
    ("poststarthook/priority-and-fairness-filter", What::Started, false),
    ("poststarthook/storage-object-count-tracker-hook", What::Started, false),
    ("poststarthook/start-apiextensions-informers", What::Started, false),
    ("poststarthook/start-apiextensions-controllers", What::Started, false),
    ("poststarthook/crd-informer-synced", What::Started, false),
    ("poststarthook/start-system-namespaces-controller", What::Started, false),
    ("poststarthook/start-cluster-authentication-info-controller", What::Started, false),
    ("poststarthook/start-kube-apiserver-identity-lease-controller", What::Started, false),
    ("poststarthook/start-kube-apiserver-identity-lease-garbage-collector", What::Started, false),
    ("poststarthook/start-legacy-token-tracking-controller", What::Started, false),
    ("poststarthook/start-service-ip-repair-controllers", What::Started, false),
    ("poststarthook/rbac/bootstrap-roles", What::Started, false),
    ("poststarthook/scheduling/bootstrap-system-priority-classes", What::Started, false),
    ("poststarthook/priority-and-fairness-config-producer", What::Started, false),
    ("poststarthook/bootstrap-controller", What::Started, false),
    ("poststarthook/start-kubernetes-service-cidr-controller", What::Started, false),
    ("poststarthook/aggregator-reload-proxy-client-cert", What::Started, false),
    ("poststarthook/start-kube-aggregator-informers", What::Started, false),
    ("poststarthook/apiservice-status-local-available-controller", What::Started, false),
    ("poststarthook/apiservice-status-remote-available-controller", What::Started, false),
    ("poststarthook/apiservice-registration-controller", What::Started, false),
    ("poststarthook/apiservice-discovery-controller", What::Started, false),
    ("poststarthook/kube-apiserver-autoregistration", What::Started, false),
    ("autoregister-completion", What::Started, false),
    ("poststarthook/apiservice-openapi-controller", What::Started, false),
    ("poststarthook/apiservice-openapiv3-controller", What::Started, false),
    ("shutdown", What::Stays, true),
];

fn root_of(path: &str) -> Option<(&'static str, &str)> {
    ROOTS.iter().find_map(|root| {
        let rest = path.strip_prefix(root)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| (*root, rest.trim_matches('/')))
    })
}

fn built_in(root: &str) -> impl Iterator<Item = (&'static str, What)> + use<> {
    let ready = root == "/readyz";
    CHECKS
        .into_iter()
        .filter(move |(_, _, readiness)| ready || !readiness)
        .map(|(name, what, _)| (name, what))
}

/// What the names of checks of plugins begin with.
const PLUGIN: &str = "kms-provider";

/// The checks of a root on this server.
fn checks(server: &ApiServer, root: &str) -> Vec<(String, What)> {
    let mut all: Vec<(String, What)> = built_in(root).map(|(name, what)| (name.to_string(), what)).collect();
    let plugins = server.registry.encryption.as_ref().map_or(0, |encryption| encryption.plugin_count());
    // Behind the store's own.
    let behind = all.iter().take_while(|(_, what)| !matches!(what, What::Started)).count();
    // A configuration that may change has one check for whatever plugins there are.
    let name = |at: usize| match server.options.encryption_automatic_reload {
        true => format!("{PLUGIN}s"),
        false => format!("{PLUGIN}-{at}"),
    };
    let shown = if server.options.encryption_automatic_reload { plugins.min(1) } else { plugins };
    all.splice(behind..behind, (0..shown).map(|at| (name(at), What::Plugin(at))));
    all
}

/// Whether this is a path of health checks; one of a plugin may be of none that there is.
pub(super) fn is_path(path: &str) -> bool {
    root_of(path).is_some_and(|(root, name)| {
        name.is_empty() || name.starts_with(PLUGIN) || built_in(root).any(|(check, _)| check == name)
    })
}

/// Every such path.
pub(super) fn paths(server: &ApiServer) -> impl Iterator<Item = String> {
    ROOTS.into_iter().flat_map(move |root| {
        let below = checks(server, root).into_iter().map(move |(check, _)| format!("{root}/{check}"));
        std::iter::once(root.to_string()).chain(below)
    })
}

async fn check(server: &ApiServer, what: What) -> Result<(), String> {
    match what {
        What::Answers => Ok(()),
        What::Store(at) => {
            let asked = server.registry.store.check();
            let result = match tokio::time::timeout(server.options.store_check_timeouts[at], asked).await {
                Ok(answer) => answer.map_err(|error| format!("etcd failed: {error}")),
                Err(_) => Err("etcd failed: context deadline exceeded".to_string()),
            };
            server.store_healthy.store(result.is_ok(), Ordering::Relaxed);
            result
        }
        What::Plugin(at) => match &server.registry.encryption {
            Some(encryption) if server.options.encryption_automatic_reload => {
                let all = (0..encryption.plugin_count()).map(|at| encryption.check_plugin(at));
                futures::future::try_join_all(all).await.map(drop)
            }
            Some(encryption) => encryption.check_plugin(at).await,
            None => Ok(()),
        },
        What::Started if server.is_ready() => Ok(()),
        What::Started => Err("not finished".to_string()),
        What::Stays if server.is_stopping() => Err("process is shutting down".to_string()),
        What::Stays => Ok(()),
    }
}

/// What the last checks found; asks nobody.
fn last(server: &ApiServer, what: What) -> bool {
    match what {
        What::Answers | What::Plugin(_) => true,
        What::Store(_) => server.store_healthy.load(Ordering::Relaxed),
        What::Started => server.is_ready(),
        What::Stays => !server.is_stopping(),
    }
}

/// Answers a path of health checks.
pub(super) async fn serve(server: &ApiServer, path: &str, request: &Request) -> Response {
    let Some((root, name)) = root_of(path) else { return body::text(404, "404 page not found\n") };
    let mut response = if name.is_empty() {
        let excluded: Vec<&str> = request.query.all("exclude").collect();
        let mut checked = Vec::new();
        for (name, what) in checks(server, root) {
            // What is excluded need not be asked.
            let result = if excluded.contains(&name.as_str()) { Ok(()) } else { check(server, what).await };
            checked.push((name, result));
        }
        all(root.trim_start_matches('/'), checked, excluded, request.query.get("verbose").is_some())
    } else {
        match checks(server, root).into_iter().find(|(check, _)| check == name) {
            Some((_, what)) => match check(server, what).await {
                Ok(()) => body::text(200, "ok"),
                Err(why) => body::text(500, format!("internal server error: {why}\n")),
            },
            None => body::text(404, "404 page not found\n"),
        }
    };
    let nosniff = http::HeaderValue::from_static("nosniff");
    response.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// All checks of a root at once.
fn all(
    name: &str,
    checked: Vec<(String, Result<(), String>)>,
    mut excluded: Vec<&str>,
    verbose: bool,
) -> Response {
    let mut text = String::new();
    let mut failed = Vec::new();
    for (check, result) in checked {
        if excluded.contains(&check.as_str()) {
            excluded.retain(|other| *other != check);
            text.push_str(&format!("[+]{check} excluded: ok\n"));
            continue;
        }
        match result {
            Ok(()) => text.push_str(&format!("[+]{check} ok\n")),
            Err(why) => {
                failed.push(format!("{check}: {why}"));
                text.push_str(&format!("[-]{check} failed: reason withheld\n"));
            }
        }
    }
    excluded.retain(|name| !name.is_empty());
    excluded.sort_unstable();
    excluded.dedup();
    if !excluded.is_empty() {
        let quoted: Vec<String> = excluded.iter().map(|name| orlop_api::field::go_quote(name)).collect();
        text.push_str(&format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            quoted.join(",")
        ));
    }
    if !failed.is_empty() {
        tracing::debug!(checks = failed.join("; "), "{name} check failed");
        return body::text(500, format!("{text}{name} check failed\n"));
    }
    if verbose { body::text(200, format!("{text}{name} check passed\n")) } else { body::text(200, "ok") }
}

/// `/metrics/slis`: the state of every check.
pub(super) fn slis(server: &ApiServer) -> String {
    let mut out = Exposition::default();
    out.family(
        "kubernetes_healthcheck",
        "gauge",
        "[STABLE] This metric records the result of a single healthcheck.",
    );
    for root in ROOTS {
        for (name, what) in checks(server, root) {
            let ok = last(server, what);
            let labels = [("name", name.as_str()), ("type", root.trim_start_matches('/'))];
            out.sample("kubernetes_healthcheck", &labels, f64::from(u8::from(ok)));
        }
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn texts() {
        let check = async |bad: bool, excluded: &[&str], verbose: bool, code: u16, expected: &str| {
            let checked = vec![
                ("ping".to_string(), Ok(())),
                ("etcd".to_string(), if bad { Err("gone".to_string()) } else { Ok(()) }),
            ];
            let response = all("readyz", checked, excluded.to_vec(), verbose);
            assert_eq!(response.status().as_u16(), code);
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(String::from_utf8_lossy(&bytes), expected);
        };
        check(false, &[], false, 200, "ok").await;
        check(false, &[], true, 200, "[+]ping ok\n[+]etcd ok\nreadyz check passed\n").await;
        check(true, &[], false, 500, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n")
            .await;
        check(true, &["etcd"], true, 200, "[+]ping ok\n[+]etcd excluded: ok\nreadyz check passed\n").await;
        check(
            false,
            &["x", "y"],
            true,
            200,
            "[+]ping ok\n[+]etcd ok\nwarn: some health checks cannot be excluded: no matches for \"x\",\"y\"\nreadyz check passed\n",
        )
        .await;
    }

    #[test]
    fn paths_exist() {
        for (path, expected) in [
            ("/readyz", true),
            ("/readyz/ping", true),
            ("/readyz/shutdown", true),
            ("/livez/shutdown", false),
            ("/livez/poststarthook/rbac/bootstrap-roles", true),
            ("/livezz", false),
            ("/healthz/unknown", false),
        ] {
            assert_eq!(is_path(path), expected, "{path}");
        }
    }
}
