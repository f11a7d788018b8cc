//! kube-controller-manager's flags.

use crate::component::table as shared;
use crate::flags::table::Kind::{Bool, Duration, Float, Int, List, Text};
use crate::flags::table::{Flag, LOGS, Table, idle, lacks, used};

/// The flags.
#[derive(Debug, Default)]
pub struct ControllerManager;

impl Table for ControllerManager {
    const GROUPS: &'static [(&'static str, &'static [Flag])] = &[
        ("Generic flags", GENERIC),
        ("Client flags", shared::CLIENT),
        ("Secure serving flags", shared::SECURE_SERVING),
        ("Authentication flags", shared::AUTHENTICATION),
        ("Authorization flags", shared::AUTHORIZATION),
        ("Leader election flags", shared::LEADER_ELECTION),
        ("Signing flags", SIGNING),
        ("Node flags", NODES),
        ("Workload flags", WORKLOADS),
        ("Service flags", SERVICES),
        ("Volume flags", VOLUMES),
        ("Horizontal pod autoscaler flags", AUTOSCALING),
        ("Clean-up flags", CLEANING),
        ("Cloud flags", CLOUD),
        ("Feature gate flags", shared::FEATURES),
        ("Metrics flags", shared::METRICS),
        ("Logs flags", LOGS),
    ];
}

const EVENTS: &str = "controllers follow events and do not look again and again";
const WORKERS: &str = "each controller has as many workers as it needs";
const NO_CLOUD: &str = "there is no cloud provider in the controller manager";
const AT_ONCE: &str = "endpoints are written as soon as they change";

const fn workers(name: &'static str, default: &'static str) -> Flag {
    idle(name, Int, default, WORKERS, "Objects worked on at once")
}

const GENERIC: &[Flag] = &[
    used(
        "controllers",
        List,
        "*",
        "Controllers to run: * for all that are on by default, NAME to add one, -NAME to leave one out",
    ),
    used("secure-port", Int, "10257", "Port of health and metrics; 0 serves none"),
    used(
        "use-service-account-credentials",
        Bool,
        "false",
        "Each controller acts under a service account of its own",
    ),
    idle(
        "controller-shutdown-timeout",
        Duration,
        "10s",
        "controllers end at once; what they left undone, the next process does",
        "How long controllers may take to end",
    ),
    idle(
        "controller-start-interval",
        Duration,
        "0s",
        "controllers start together",
        "Pause between starts of controllers",
    ),
    idle("min-resync-period", Duration, "12h0m0s", EVENTS, "How often everything is looked at again"),
    lacks("enable-leader-migration", Bool, "false", "move controllers between two kinds of managers"),
    lacks("leader-migration-config", Text, "", "move controllers between two kinds of managers"),
];

const SIGNING: &[Flag] = &[
    used(
        "cluster-signing-cert-file",
        Text,
        "",
        "CA that signs CertificateSigningRequests; none are signed when absent",
    ),
    used("cluster-signing-key-file", Text, "", "Its key"),
    used("cluster-signing-duration", Duration, "8760h0m0s", "How long certificates live at most"),
    lacks(
        "cluster-signing-kube-apiserver-client-cert-file",
        Text,
        "",
        "sign for one signer with a CA of its own",
    ),
    lacks(
        "cluster-signing-kube-apiserver-client-key-file",
        Text,
        "",
        "sign for one signer with a CA of its own",
    ),
    lacks("cluster-signing-kubelet-client-cert-file", Text, "", "sign for one signer with a CA of its own"),
    lacks("cluster-signing-kubelet-client-key-file", Text, "", "sign for one signer with a CA of its own"),
    lacks("cluster-signing-kubelet-serving-cert-file", Text, "", "sign for one signer with a CA of its own"),
    lacks("cluster-signing-kubelet-serving-key-file", Text, "", "sign for one signer with a CA of its own"),
    lacks("cluster-signing-legacy-unknown-cert-file", Text, "", "sign for one signer with a CA of its own"),
    lacks("cluster-signing-legacy-unknown-key-file", Text, "", "sign for one signer with a CA of its own"),
    used(
        "root-ca-file",
        Text,
        "",
        "CA of the API server, published in every namespace; that of the kubeconfig when absent",
    ),
    used(
        "service-account-private-key-file",
        Text,
        "",
        "Key that signs the tokens of Secrets; none are filled when absent",
    ),
    workers("concurrent-serviceaccount-token-syncs", "5"),
];

const NODES: &[Flag] = &[
    used("allocate-node-cidrs", Bool, "false", "Give each node a part of --cluster-cidr"),
    used("cluster-cidr", Text, "", "Addresses of pods"),
    used("service-cluster-ip-range", Text, "", "Addresses of Services, never given to a node"),
    used("node-cidr-mask-size", Int, "", "Prefix length of a node's part (IPv4 24)"),
    used("node-cidr-mask-size-ipv4", Int, "", "Prefix length of a node's part (24)"),
    lacks("node-cidr-mask-size-ipv6", Int, "", "give nodes IPv6 ranges"),
    used("node-monitor-grace-period", Duration, "50s", "How long a node may be silent"),
    used("node-startup-grace-period", Duration, "1m0s", "The same for a node that has said nothing yet"),
    idle(
        "node-monitor-period",
        Duration,
        "5s",
        "a silent node is noticed by a timer of its own",
        "How often nodes are looked at",
    ),
    lacks("node-eviction-rate", Float, "0.1", "evict from another number of nodes a second"),
    lacks("secondary-node-eviction-rate", Float, "0.01", "evict from another number of nodes a second"),
    lacks("large-cluster-size-threshold", Int, "50", "count other zones as large"),
    lacks("unhealthy-zone-threshold", Float, "0.55", "count other zones as unhealthy"),
];

const WORKLOADS: &[Flag] = &[
    workers("concurrent-deployment-syncs", "5"),
    workers("concurrent-replicaset-syncs", "5"),
    workers("concurrent-rc-syncs", "5"),
    workers("concurrent-statefulset-syncs", "5"),
    workers("concurrent-daemonset-syncs", "2"),
    workers("concurrent-job-syncs", "5"),
    workers("concurrent-cron-job-syncs", "5"),
    workers("concurrent-validating-admission-policy-status-syncs", "5"),
];

const SERVICES: &[Flag] = &[
    workers("concurrent-endpoint-syncs", "5"),
    workers("concurrent-service-endpoint-syncs", "5"),
    workers("mirroring-concurrent-service-endpoint-syncs", "5"),
    idle("endpoint-updates-batch-period", Duration, "0s", AT_ONCE, "How long changes are collected"),
    idle("endpointslice-updates-batch-period", Duration, "0s", AT_ONCE, "How long changes are collected"),
    idle(
        "mirroring-endpointslice-updates-batch-period",
        Duration,
        "0s",
        AT_ONCE,
        "How long changes are collected",
    ),
    lacks("max-endpoints-per-slice", Int, "100", "put another number of endpoints into a slice"),
    lacks("mirroring-max-endpoints-per-subset", Int, "1000", "mirror another number of endpoints"),
    workers("concurrent-service-syncs", "1"),
];

const VOLUMES: &[Flag] = &[
    idle(
        "attach-detach-reconcile-sync-period",
        Duration,
        "1m0s",
        EVENTS,
        "How often attachments are looked at again",
    ),
    idle("disable-attach-detach-reconcile-sync", Bool, "false", EVENTS, "Do not look again"),
    lacks("disable-force-detach-on-timeout", Bool, "false", "never detach by force"),
    workers("concurrent-ephemeralvolume-syncs", "5"),
    lacks("enable-dynamic-provisioning", Bool, "true", "leave claims to volumes that exist"),
    lacks("enable-hostpath-provisioner", Bool, "false", "make hostPath volumes for tests"),
    idle(
        "flex-volume-plugin-dir",
        Text,
        "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/",
        "there are no flex volumes",
        "Directory of flex volume plugins",
    ),
    idle("pvclaimbinder-sync-period", Duration, "15s", EVENTS, "How often claims are looked at again"),
    lacks("pv-recycler-pod-template-filepath-hostpath", Text, "", "recycle volumes by pods of another form"),
    lacks("pv-recycler-pod-template-filepath-nfs", Text, "", "recycle volumes by pods of another form"),
    idle("pv-recycler-increment-timeout-nfs", Int, "30", "volumes are not recycled", "Time for a recycler"),
    idle(
        "pv-recycler-minimum-timeout-hostpath",
        Int,
        "60",
        "volumes are not recycled",
        "Time for a recycler",
    ),
    idle("pv-recycler-minimum-timeout-nfs", Int, "300", "volumes are not recycled", "Time for a recycler"),
    idle(
        "pv-recycler-timeout-increment-hostpath",
        Int,
        "30",
        "volumes are not recycled",
        "Time for a recycler",
    ),
];

const AUTOSCALING: &[Flag] = &[
    workers("concurrent-horizontal-pod-autoscaler-syncs", "5"),
    lacks(
        "horizontal-pod-autoscaler-cpu-initialization-period",
        Duration,
        "5m0s",
        "leave out the CPU of young pods for another time",
    ),
    lacks(
        "horizontal-pod-autoscaler-downscale-stabilization",
        Duration,
        "5m0s",
        "wait another time before scaling down",
    ),
    lacks(
        "horizontal-pod-autoscaler-initial-readiness-delay",
        Duration,
        "30s",
        "trust readiness after another time",
    ),
    lacks("horizontal-pod-autoscaler-sync-period", Duration, "15s", "look at metrics at other intervals"),
    lacks(
        "horizontal-pod-autoscaler-tolerance",
        Float,
        "0.1",
        "tolerate other deviations; the field `tolerance` of an autoscaler says it for one",
    ),
];

const CLEANING: &[Flag] = &[
    used("terminated-pod-gc-threshold", Int, "12500", "Finished pods that may stay; 0 keeps all"),
    workers("concurrent-gc-syncs", "20"),
    used("enable-garbage-collector", Bool, "true", "Whether dependents of deleted objects are deleted"),
    workers("concurrent-namespace-syncs", "10"),
    idle("namespace-sync-period", Duration, "5m0s", EVENTS, "How often namespaces are looked at again"),
    workers("concurrent-resource-quota-syncs", "5"),
    idle("resource-quota-sync-period", Duration, "5m0s", EVENTS, "How often quotas are counted again"),
    workers("concurrent-ttl-after-finished-syncs", "5"),
    lacks(
        "legacy-service-account-token-clean-up-period",
        Duration,
        "8760h0m0s",
        "clean tokens after another time",
    ),
];

const CLOUD: &[Flag] = &[
    lacks("cloud-provider", Text, "", "talk to a cloud"),
    lacks("cloud-config", Text, "", "talk to a cloud"),
    idle("allow-untagged-cloud", Bool, "false", NO_CLOUD, "Deprecated"),
    idle("cidr-allocator-type", Text, "RangeAllocator", NO_CLOUD, "Who gives nodes their ranges"),
    idle("cluster-name", Text, "kubernetes", NO_CLOUD, "Prefix of the cluster's things in a cloud"),
    idle("configure-cloud-routes", Bool, "true", NO_CLOUD, "Routes in the cloud"),
    idle("external-cloud-volume-plugin", Text, "", NO_CLOUD, "Volumes of a cloud outside"),
    idle("node-sync-period", Duration, "0s", NO_CLOUD, "Deprecated"),
    idle("route-reconciliation-period", Duration, "10s", NO_CLOUD, "How often routes are looked at"),
];
