//! kube-apiserver's flags.

use crate::flags::table::{Flag, Kind, LOGS, Table, idle, lacks, used};

use Kind::{Bool, Duration, Float, Int, List, Map, Repeat, Text};

/// Upstream refuses these too, without a feature gate that is off by default.
const PEERS: &str = "let servers of different versions pass requests to each other (the feature UnknownVersionInteroperabilityProxy)";

/// The flags by the headings of upstream's `--help`.
#[derive(Debug, Default)]
pub struct Apiserver;

impl Table for Apiserver {
    const GROUPS: &'static [(&'static str, &'static [Flag])] = &[
        ("Orlop flags", ORLOP),
        ("Generic flags", GENERIC),
        ("Etcd flags", ETCD),
        ("Secure serving flags", SECURE_SERVING),
        ("Auditing flags", AUDITING),
        ("Features flags", FEATURES),
        ("Authentication flags", AUTHENTICATION),
        ("Authorization flags", AUTHORIZATION),
        ("API enablement flags", API_ENABLEMENT),
        ("Egress selector flags", EGRESS),
        ("Admission flags", ADMISSION),
        ("Metrics flags", METRICS),
        ("Logs flags", LOGS),
        ("Traces flags", TRACES),
        ("Misc flags", MISC),
    ];
}

const ORLOP: &[Flag] = &[
    used("data-dir", Text, "/var/lib/orlop", "Where the state and the server's own certificates live"),
    used("write-kubeconfig", Text, "", "Where to write an administrator's kubeconfig"),
];

const GENERIC: &[Flag] = &[
    used("advertise-address", Text, "", "Address published in the kubernetes Service"),
    idle(
        "cloud-provider-gce-l7lb-src-cidrs",
        List,
        "130.211.0.0/22,35.191.0.0/16",
        "there is no cloud provider in the API server",
        "Addresses that a cloud's load balancers come from",
    ),
    used(
        "cors-allowed-origins",
        List,
        "",
        "Expressions of origins whose pages may call the API from browsers",
    ),
    used(
        "default-not-ready-toleration-seconds",
        Int,
        "300",
        "How long pods that do not say tolerate a node that is not ready",
    ),
    used(
        "default-unreachable-toleration-seconds",
        Int,
        "300",
        "How long pods that do not say tolerate a node that cannot be reached",
    ),
    used(
        "emulated-version",
        List,
        "",
        "The release to answer as: kube=1.36, this server's own, is the only one",
    ),
    idle(
        "emulation-forward-compatible",
        Bool,
        "false",
        "no older release is emulated",
        "Serve newer API versions while an older release is emulated",
    ),
    used("enable-priority-and-fairness", Bool, "true", "Queue requests by flow instead of two plain limits"),
    used("external-hostname", Text, "", "Host name in addresses given to others, such as OpenID discovery"),
    used("feature-gates", Map, "", "Feature gates: Name=true or Name=false"),
    used("goaway-chance", Float, "0", "Share of HTTP/2 requests (at most 0.02) that close their connection"),
    idle(
        "livez-grace-period",
        Duration,
        "0s",
        "the server can be reached only when its start is over",
        "How long /livez says yes while the server starts",
    ),
    used("max-mutating-requests-inflight", Int, "200", "Changing requests served at once"),
    used("max-requests-inflight", Int, "400", "Reading requests served at once"),
    used(
        "min-compatibility-version",
        List,
        "",
        "The oldest release this server works beside: kube=1.35, the one before its own, is the only one",
    ),
    used("min-request-timeout", Int, "1800", "Seconds a watch is kept open at least"),
    used("request-timeout", Duration, "1m0s", "How long a request may take that is no watch"),
    used("shutdown-delay-duration", Duration, "0s", "How long to go on serving after the signal to stop"),
    used(
        "shutdown-send-retry-after",
        Bool,
        "false",
        "Answer 429 with Retry-After to new requests while stopping",
    ),
    used(
        "shutdown-watch-termination-grace-period",
        Duration,
        "0s",
        "Over how long watches end when the server stops",
    ),
    used(
        "strict-transport-security-directives",
        List,
        "",
        "Directives of the Strict-Transport-Security header",
    ),
];

const ETCD: &[Flag] = &[
    idle(
        "delete-collection-workers",
        Int,
        "1",
        "the store commits many writers together",
        "Objects deleted at once by a deletecollection",
    ),
    idle(
        "enable-garbage-collector",
        Bool,
        "true",
        "who collects is the controllers' own setting",
        "Generic garbage collection",
    ),
    used("encryption-provider-config", Text, "", "File with the providers that encrypt at rest"),
    used(
        "encryption-provider-config-automatic-reload",
        Bool,
        "false",
        "Take in changes of that file while running",
    ),
    used("etcd-cafile", Text, "", "CA of the etcd servers"),
    used("etcd-certfile", Text, "", "Client certificate for etcd"),
    used("etcd-compaction-interval", Duration, "5m0s", "How often history is compacted; 0 turns it off"),
    idle(
        "etcd-count-metric-poll-period",
        Duration,
        "1m0s",
        "objects are counted in memory when asked",
        "How often objects are counted",
    ),
    idle(
        "etcd-db-metric-poll-interval",
        Duration,
        "30s",
        "the size is read when asked",
        "How often the size of the database is read",
    ),
    used("etcd-healthcheck-timeout", Duration, "2s", "How long the store may take to answer a health check"),
    used("etcd-keyfile", Text, "", "Key of the client certificate for etcd"),
    used("etcd-prefix", Text, "/registry", "What all keys begin with"),
    used(
        "etcd-readycheck-timeout",
        Duration,
        "2s",
        "How long the store may take to answer a readiness check",
    ),
    used(
        "etcd-servers",
        List,
        "",
        "etcd servers (scheme://host:port) to keep the state in; the data directory when absent",
    ),
    lacks(
        "etcd-servers-overrides",
        List,
        "",
        "keep some resources in other etcd servers; here all are in --etcd-servers, or in --data-dir",
    ),
    used("event-ttl", Duration, "1h0m0s", "How long events are kept"),
    idle(
        "lease-reuse-duration-seconds",
        Int,
        "60",
        "events expire by their age, not by leases",
        "How long an etcd lease is used for further events",
    ),
    idle(
        "storage-backend",
        Text,
        "etcd3",
        "the state is in the data directory or in --etcd-servers",
        "Kind of storage: etcd3",
    ),
    used(
        "storage-initialization-timeout",
        Duration,
        "1m0s",
        "How long etcd may take to answer for the first time; a data directory is open at once",
    ),
    idle(
        "storage-media-type",
        Text,
        "application/vnd.kubernetes.protobuf",
        "objects are stored as JSON",
        "Encoding of stored objects",
    ),
    idle(
        "watch-cache",
        Bool,
        "true",
        "objects are always read from memory, as fresh as from the store",
        "Keep objects in memory",
    ),
    idle(
        "watch-cache-sizes",
        List,
        "",
        "as upstream, the sizes follow the objects",
        "Recent changes kept by resource, resource[.group]#size",
    ),
    idle(
        "default-watch-cache-size",
        Int,
        "100",
        "as upstream, the sizes follow the objects",
        "Recent changes kept of each kind",
    ),
];

const SECURE_SERVING: &[Flag] = &[
    used("bind-address", Text, "0.0.0.0", "Address to listen on"),
    used(
        "cert-dir",
        Text,
        "/var/run/kubernetes",
        "Where the server's own certificates are kept; in the data directory when absent",
    ),
    used("http2-max-streams-per-connection", Int, "0", "HTTP/2 streams a connection may have at once"),
    used("disable-http2-serving", Bool, "false", "Serve HTTP/1.1 only"),
    used("permit-address-sharing", Bool, "false", "Listen with SO_REUSEADDR"),
    used("permit-port-sharing", Bool, "false", "Listen with SO_REUSEPORT, beside another process"),
    used("secure-port", Int, "6443", "Port to listen on"),
    used("tls-cert-file", Text, "", "Serving certificate; issued by the server's own CA when absent"),
    used("tls-cipher-suites", List, "", "Cipher suites by their Go names"),
    used("tls-curve-preferences", List, "", "Key exchanges by their IANA numbers, best first"),
    used("tls-min-version", Text, "", "VersionTLS12 or VersionTLS13"),
    used("tls-private-key-file", Text, "", "Key of the serving certificate"),
    used("tls-sni-cert-key", Repeat, "", "A further certificate,key[:names] by server name"),
];

const AUDITING: &[Flag] = &[
    used("audit-log-batch-buffer-size", Int, "10000", "Events kept for batches"),
    used("audit-log-batch-max-size", Int, "1", "Events in a batch"),
    used("audit-log-batch-max-wait", Duration, "0s", "How long an incomplete batch waits"),
    used("audit-log-batch-throttle-burst", Int, "0", "Batches written at once"),
    used("audit-log-batch-throttle-enable", Bool, "false", "Whether batches are throttled"),
    used("audit-log-batch-throttle-qps", Float, "0", "Batches a second"),
    used("audit-log-compress", Bool, "false", "Compress old files"),
    used("audit-log-format", Text, "json", "json or legacy"),
    used("audit-log-maxage", Int, "366", "Days an old file is kept"),
    used("audit-log-maxbackup", Int, "100", "Old files kept"),
    used("audit-log-maxsize", Int, "100", "Size in MiB at which a file is put aside"),
    used("audit-log-mode", Text, "blocking", "batch, blocking or blocking-strict"),
    used("audit-log-path", Text, "", "File that requests are recorded in; - is the standard output"),
    used("audit-log-truncate-enabled", Bool, "false", "Whether large events lose request and response"),
    idle(
        "audit-log-truncate-max-batch-size",
        Int,
        "10485760",
        "a file has no batches to split",
        "Bytes of a batch",
    ),
    used("audit-log-truncate-max-event-size", Int, "102400", "Bytes of an event"),
    used("audit-log-version", Text, "audit.k8s.io/v1", "Version of the events: audit.k8s.io/v1"),
    used("audit-policy-file", Text, "", "The audit policy"),
    used("audit-webhook-batch-buffer-size", Int, "10000", "Events kept for batches"),
    used("audit-webhook-batch-max-size", Int, "400", "Events in a batch"),
    used("audit-webhook-batch-max-wait", Duration, "30s", "How long an incomplete batch waits"),
    used("audit-webhook-batch-throttle-burst", Int, "15", "Batches sent at once"),
    used("audit-webhook-batch-throttle-enable", Bool, "true", "Whether batches are throttled"),
    used("audit-webhook-batch-throttle-qps", Float, "10", "Batches a second"),
    used("audit-webhook-config-file", Text, "", "kubeconfig file of the receiver of events"),
    used("audit-webhook-initial-backoff", Duration, "10s", "First pause after a failure"),
    used("audit-webhook-mode", Text, "batch", "batch, blocking or blocking-strict"),
    used("audit-webhook-truncate-enabled", Bool, "false", "Whether large events lose request and response"),
    idle(
        "audit-webhook-truncate-max-batch-size",
        Int,
        "10485760",
        "batches are bounded by their number of events",
        "Bytes of a batch",
    ),
    used("audit-webhook-truncate-max-event-size", Int, "102400", "Bytes of an event"),
    used("audit-webhook-version", Text, "audit.k8s.io/v1", "Version of the events: audit.k8s.io/v1"),
];

const FEATURES: &[Flag] = &[
    idle(
        "contention-profiling",
        Bool,
        "false",
        "there is no profiler to turn on",
        "Profile waiting for locks, when profiling is on",
    ),
    lacks(
        "debug-socket-path",
        Text,
        "",
        "serve profiles on a Unix socket; profile the process from outside, with perf or bpftrace",
    ),
    idle("profiling", Bool, "true", "there is no /debug/pprof to turn off", "Serve profiles at /debug/pprof"),
    idle(
        "coordinated-leadership-lease-duration",
        Duration,
        "15s",
        "as upstream without the feature gate CoordinatedLeaderElection",
        "A time of coordinated leader election",
    ),
    idle(
        "coordinated-leadership-renew-deadline",
        Duration,
        "10s",
        "as upstream without the feature gate CoordinatedLeaderElection",
        "A time of coordinated leader election",
    ),
    idle(
        "coordinated-leadership-retry-period",
        Duration,
        "2s",
        "as upstream without the feature gate CoordinatedLeaderElection",
        "A time of coordinated leader election",
    ),
];

const AUTHENTICATION: &[Flag] = &[
    used(
        "anonymous-auth",
        Bool,
        "true",
        "Whether requests without credentials are anonymous instead of refused",
    ),
    used("api-audiences", List, "", "Audiences of the API; the issuer when absent"),
    used("authentication-config", Text, "", "File with JWT issuers and the anonymous authenticator"),
    used("authentication-token-webhook-cache-ttl", Duration, "2m0s", "How long its answers are remembered"),
    used(
        "authentication-token-webhook-config-file",
        Text,
        "",
        "kubeconfig file of a service that knows tokens",
    ),
    used(
        "authentication-token-webhook-version",
        Text,
        "v1beta1",
        "Version of the TokenReview: v1 or v1beta1",
    ),
    used(
        "client-ca-file",
        Text,
        "",
        "CA whose client certificates are believed; the server's own when absent",
    ),
    used(
        "enable-bootstrap-token-auth",
        Bool,
        "false",
        "Believe tokens in Secrets of type bootstrap.kubernetes.io/token",
    ),
    used("oidc-ca-file", Text, "", "CA of the OpenID issuer"),
    used("oidc-client-id", Text, "", "Client that tokens must be issued for"),
    used("oidc-groups-claim", Text, "", "Claim with the groups"),
    used("oidc-groups-prefix", Text, "", "Put before groups"),
    used("oidc-issuer-url", Text, "", "OpenID issuer"),
    used("oidc-required-claim", Map, "", "key=value pairs that tokens must have"),
    used("oidc-signing-algs", List, "RS256", "Signature algorithms"),
    used("oidc-username-claim", Text, "sub", "Claim with the user name"),
    used("oidc-username-prefix", Text, "", "Put before user names; - for nothing"),
    used("requestheader-allowed-names", List, "", "Common names of authenticating proxies"),
    used("requestheader-client-ca-file", Text, "", "CA of authenticating proxies"),
    used("requestheader-extra-headers-prefix", List, "", "Beginnings of headers with further facts"),
    used("requestheader-group-headers", List, "", "Headers with groups"),
    used("requestheader-uid-headers", List, "", "Headers with the uid"),
    used("requestheader-username-headers", List, "", "Headers with the user name"),
    used("service-account-extend-token-expiration", Bool, "true", "Let mounted tokens live a year"),
    used("service-account-issuer", Repeat, "", "Issuer of service account tokens; the first one signs"),
    used("service-account-jwks-uri", Text, "", "Address of the key set in OpenID discovery"),
    used("service-account-key-file", Repeat, "", "Keys that service account tokens are checked with"),
    used("service-account-lookup", Bool, "true", "Whether what a token is bound to must exist"),
    used("service-account-max-token-expiration", Duration, "0s", "Longest life of a token"),
    used("token-auth-file", Text, "", "Users by static token"),
];

const AUTHORIZATION: &[Flag] = &[
    used("authorization-config", Text, "", "File that names the authorizers"),
    used(
        "authorization-mode",
        List,
        "Node,RBAC",
        "Who decides, asked in this order: AlwaysAllow, AlwaysDeny, ABAC, Webhook, RBAC, Node",
    ),
    used("authorization-policy-file", Text, "", "Policies of the ABAC mode, one JSON object a line"),
    used("authorization-webhook-cache-authorized-ttl", Duration, "5m0s", "How long a yes is remembered"),
    used("authorization-webhook-cache-unauthorized-ttl", Duration, "30s", "How long a no is remembered"),
    used("authorization-webhook-config-file", Text, "", "kubeconfig file of a service that decides"),
    used(
        "authorization-webhook-version",
        Text,
        "v1beta1",
        "Version of the SubjectAccessReview: v1 or v1beta1",
    ),
];

const API_ENABLEMENT: &[Flag] = &[
    used("runtime-config", Map, "", "API groups and versions that are served: group/version=true|false"),
    idle(
        "runtime-config-emulation-forward-compatible",
        Bool,
        "false",
        "no older release is emulated",
        "Serve named APIs under an emulated version",
    ),
];

const EGRESS: &[Flag] = &[used(
    "egress-selector-config-file",
    Text,
    "",
    "File that says how nodes, etcd and webhooks are reached: directly",
)];

const ADMISSION: &[Flag] = &[
    used(
        "admission-control",
        List,
        "",
        "Deprecated: all plugins by name; use --enable-admission-plugins and --disable-admission-plugins",
    ),
    used("admission-control-config-file", Text, "", "Settings of admission plugins"),
    used("disable-admission-plugins", List, "", "Default plugins to turn off"),
    used("enable-admission-plugins", List, "", "Plugins to turn on besides the default ones"),
];

const METRICS: &[Flag] = &[
    used(
        "allow-metric-labels",
        Repeat,
        "",
        "METRIC,LABEL=VALUE,...: any other value is shown as `unexpected`",
    ),
    used("allow-metric-labels-manifest", Text, "", "File of the same: \"METRIC,LABEL\": VALUE,..."),
    used("disabled-metrics", List, "", "Metrics that are left out"),
    used(
        "show-hidden-metrics-for-version",
        Text,
        "",
        "Show metrics hidden since this release, the one before this server's own: there are none",
    ),
];

const TRACES: &[Flag] = &[lacks(
    "tracing-config-file",
    Text,
    "",
    "send traces of requests; see --audit-policy-file and /metrics",
)];

const MISC: &[Flag] = &[
    lacks(
        "aggregator-reject-forwarding-redirect",
        Bool,
        "true",
        "pass on redirects of aggregated servers when false",
    ),
    used("allow-privileged", Bool, "false", "Whether pods may have privileged containers"),
    idle("apiserver-count", Int, "1", "each server keeps its own endpoint by a lease", "Number of servers"),
    idle(
        "enable-aggregator-routing",
        Bool,
        "false",
        "aggregated servers are always reached at their endpoints",
        "Reach aggregated servers at their endpoints",
    ),
    idle(
        "enable-logs-handler",
        Bool,
        "false",
        "deprecated upstream, where it has no effect any more",
        "Serve /logs",
    ),
    idle(
        "endpoint-reconciler-type",
        Text,
        "lease",
        "each server publishes its own endpoint",
        "How endpoints are kept: lease, master-count or none",
    ),
    used("kubelet-certificate-authority", Text, "", "CA of the kubelets' serving certificates"),
    used("kubelet-client-certificate", Text, "", "Certificate shown to kubelets"),
    used("kubelet-client-key", Text, "", "Key of that certificate"),
    used("kubelet-port", Int, "10250", "Deprecated: port of kubelets whose node does not say one"),
    used(
        "kubelet-preferred-address-types",
        List,
        "Hostname,InternalDNS,InternalIP,ExternalDNS,ExternalIP",
        "Which address of a node is used, best first",
    ),
    idle(
        "kubelet-read-only-port",
        Int,
        "10255",
        "deprecated upstream, where it has no effect any more",
        "Read-only port of kubelets",
    ),
    used("kubelet-timeout", Duration, "5s", "How long a kubelet has to accept a connection"),
    used(
        "kubernetes-service-node-port",
        Int,
        "0",
        "Node port of the kubernetes Service; 0 makes it a ClusterIP",
    ),
    lacks(
        "max-connection-bytes-per-sec",
        Int,
        "0",
        "slow connections that take long down to so many bytes a second",
    ),
    lacks("peer-advertise-ip", Text, "", PEERS),
    lacks("peer-advertise-port", Text, "", PEERS),
    lacks("peer-ca-file", Text, "", PEERS),
    used("proxy-client-cert-file", Text, "", "Certificate shown to aggregated servers and webhooks"),
    used("proxy-client-key-file", Text, "", "Key of that certificate"),
    used("service-account-signing-key-file", Text, "", "Key that service account tokens are signed with"),
    lacks(
        "service-account-signing-endpoint",
        Text,
        "",
        "have tokens signed by a service outside; name a key with --service-account-signing-key-file",
    ),
    used(
        "service-cluster-ip-range",
        List,
        "10.96.0.0/16",
        "Addresses of Services; a second range of the other family for dual stack",
    ),
    used("service-node-port-range", Text, "30000-32767", "Node ports of Services"),
];
