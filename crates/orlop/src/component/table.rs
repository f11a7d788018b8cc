//! Flags that upstream's scheduler and controller manager share.

use crate::flags::table::Kind::{Bool, Duration, Float, Int, List, Map, Repeat, Text};
use crate::flags::table::{Flag, idle, lacks, used};

const NO_PROFILER: &str = "there is no profiler";
const PRIORITY: &str = "the API server's priority and fairness holds clients back, none does so itself";

/// Which API server, and as whom.
pub const CLIENT: &[Flag] = &[
    used(
        "kubeconfig",
        Text,
        "",
        "File with the API server's address and this component's credentials; those of the pod it runs in when absent",
    ),
    used("master", Text, "", "Address of the API server, instead of the one in the kubeconfig"),
    idle("kube-api-burst", Int, "", PRIORITY, "Requests sent at once"),
    idle(
        "kube-api-content-type",
        Text,
        "application/vnd.kubernetes.protobuf",
        "requests are JSON",
        "Encoding of requests",
    ),
    idle("kube-api-qps", Float, "", PRIORITY, "Requests a second"),
];

/// Where health and metrics are served.
pub const SECURE_SERVING: &[Flag] = &[
    used("bind-address", Text, "0.0.0.0", "Address to listen on"),
    used("cert-dir", Text, "", "Where a self-signed certificate is kept; in memory when absent"),
    used("disable-http2-serving", Bool, "false", "Serve HTTP/1.1 only"),
    idle(
        "http2-max-streams-per-connection",
        Int,
        "0",
        "few ask, and each asks little",
        "HTTP/2 streams a connection may have at once",
    ),
    idle(
        "permit-address-sharing",
        Bool,
        "false",
        "the address is shared with ended connections already",
        "Listen with SO_REUSEADDR",
    ),
    lacks("permit-port-sharing", Bool, "false", "listen beside another process (SO_REUSEPORT)"),
    used("tls-cert-file", Text, "", "Serving certificate; self-signed when absent"),
    used("tls-cipher-suites", List, "", "Cipher suites by their Go names"),
    used("tls-curve-preferences", List, "", "Key exchanges by their IANA numbers, best first"),
    used("tls-min-version", Text, "", "VersionTLS12 or VersionTLS13"),
    used("tls-private-key-file", Text, "", "Key of the serving certificate"),
    lacks("tls-sni-cert-key", Repeat, "", "show another certificate for some server names"),
];

/// Who asks.
pub const AUTHENTICATION: &[Flag] = &[
    used(
        "authentication-kubeconfig",
        Text,
        "",
        "Kubeconfig to ask about tokens with (TokenReview); that of --kubeconfig when absent",
    ),
    idle(
        "authentication-skip-lookup",
        Bool,
        "false",
        "tokens are looked up when one comes",
        "Do not look up the cluster's authentication configuration",
    ),
    idle(
        "authentication-token-webhook-cache-ttl",
        Duration,
        "10s",
        "few ask, and each is looked up",
        "How long answers about tokens are remembered",
    ),
    idle(
        "authentication-tolerate-lookup-failure",
        Bool,
        "false",
        "a failed lookup refuses the request alone",
        "Go on when the lookup at the start fails",
    ),
    used("client-ca-file", Text, "", "CA of client certificates"),
    lacks("requestheader-allowed-names", List, "", "believe the headers of an authenticating proxy"),
    lacks("requestheader-client-ca-file", Text, "", "believe the headers of an authenticating proxy"),
    idle(
        "requestheader-extra-headers-prefix",
        List,
        "x-remote-extra-",
        "no proxy is believed",
        "Headers of a proxy",
    ),
    idle("requestheader-group-headers", List, "x-remote-group", "no proxy is believed", "Headers of a proxy"),
    idle("requestheader-uid-headers", List, "", "no proxy is believed", "Headers of a proxy"),
    idle(
        "requestheader-username-headers",
        List,
        "x-remote-user",
        "no proxy is believed",
        "Headers of a proxy",
    ),
];

/// What they may.
pub const AUTHORIZATION: &[Flag] = &[
    used(
        "authorization-always-allow-paths",
        List,
        "/healthz,/readyz,/livez",
        "Paths that everybody may read",
    ),
    used(
        "authorization-kubeconfig",
        Text,
        "",
        "Kubeconfig to ask about rights with (SubjectAccessReview); that of --kubeconfig when absent",
    ),
    idle(
        "authorization-webhook-cache-authorized-ttl",
        Duration,
        "10s",
        "few ask, and each is looked up",
        "How long a yes is remembered",
    ),
    idle(
        "authorization-webhook-cache-unauthorized-ttl",
        Duration,
        "10s",
        "few ask, and each is looked up",
        "How long a no is remembered",
    ),
];

/// Who works when several run.
pub const LEADER_ELECTION: &[Flag] = &[
    used("leader-elect", Bool, "true", "Work only while holding a Lease, so that several can run"),
    used("leader-elect-lease-duration", Duration, "15s", "How long a Lease holds without renewal"),
    used(
        "leader-elect-renew-deadline",
        Duration,
        "10s",
        "How long the leader tries to renew before it gives up",
    ),
    used("leader-elect-resource-lock", Text, "leases", "Kind of the lock: leases"),
    used("leader-elect-resource-name", Text, "", "Name of the Lease; the component's when absent"),
    used("leader-elect-resource-namespace", Text, "kube-system", "Namespace of the Lease"),
    used("leader-elect-retry-period", Duration, "2s", "Pause between tries"),
];

/// Versions and gates.
pub const FEATURES: &[Flag] = &[
    idle("contention-profiling", Bool, "false", NO_PROFILER, "Profile waiting for locks"),
    lacks("emulated-version", List, "", "behave as an older Kubernetes version would"),
    idle(
        "emulation-forward-compatible",
        Bool,
        "false",
        "no older release is emulated",
        "With --emulated-version",
    ),
    used("feature-gates", Map, "", "Feature gates: Name=true or Name=false"),
    lacks("min-compatibility-version", List, "", "keep what an older release would need to read"),
    idle("profiling", Bool, "true", NO_PROFILER, "Serve profiles at /debug/pprof"),
];

/// What is measured.
pub const METRICS: &[Flag] = &[
    lacks("allow-metric-labels", Map, "", "restrict the values of metric labels"),
    lacks("allow-metric-labels-manifest", Text, "", "restrict the values of metric labels by a file"),
    lacks("disabled-metrics", List, "", "leave metrics out"),
    idle(
        "show-hidden-metrics-for-version",
        Text,
        "",
        "there are no hidden metrics",
        "Show metrics hidden in a release",
    ),
];
