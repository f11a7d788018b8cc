use super::*;
use crate::framework::Framework;

fn parse(body: &str) -> Result<KubeSchedulerConfiguration, ConfigError> {
    let head = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";
    KubeSchedulerConfiguration::parse(&format!("{head}{body}"))
}

#[track_caller]
fn invalid(body: &str, expected: &str) {
    assert_eq!(parse(body).unwrap_err().to_string(), expected);
}

/// The plugins of an extension point of the first profile.
fn at(body: &str, point: ExtensionPoint) -> Vec<&'static str> {
    let configuration = parse(body).unwrap();
    let framework = Framework::new(&configuration.profiles[0], &crate::plugins::registry()).unwrap();
    framework.at(point).iter().map(|plugin| plugin.name()).collect()
}

#[test]
fn the_defaults_are_upstreams() {
    let configuration = parse("").unwrap();
    assert_eq!(configuration, KubeSchedulerConfiguration::defaulted());
    assert_eq!(configuration.profiles[0].scheduler_name.as_deref(), Some("default-scheduler"));
    let filters = at("", ExtensionPoint::Filter);
    assert_eq!(
        filters,
        [
            "NodeUnschedulable",
            "NodeName",
            "TaintToleration",
            "NodeAffinity",
            "NodePorts",
            "NodeResourcesFit",
            "VolumeRestrictions",
            "NodeVolumeLimits",
            "VolumeBinding",
            "VolumeZone",
            "PodTopologySpread",
            "InterPodAffinity",
            "DynamicResources",
        ]
    );
    assert_eq!(at("", ExtensionPoint::PostFilter), ["DynamicResources", "DefaultPreemption"]);
    assert_eq!(at("", ExtensionPoint::Bind), ["DefaultBinder"]);
}

#[test]
fn plugin_sets_are_merged() {
    let disabled = "profiles: [{plugins: {multiPoint: {disabled: [{name: DefaultPreemption}]}}}]";
    assert_eq!(at(disabled, ExtensionPoint::PostFilter), ["DynamicResources"]);
    let at_one_point = "profiles: [{plugins: {filter: {disabled: [{name: NodePorts}]}}}]";
    assert!(!at(at_one_point, ExtensionPoint::Filter).contains(&"NodePorts"));
    assert!(at(at_one_point, ExtensionPoint::PreFilter).contains(&"NodePorts"));
    let only = "profiles: [{plugins: {score: {disabled: [{name: '*'}], enabled: [{name: ImageLocality}]}}}]";
    assert_eq!(at(only, ExtensionPoint::Score), ["ImageLocality"]);
    let first = "profiles: [{plugins: {score: {enabled: [{name: ImageLocality, weight: 9}]}}}]";
    assert_eq!(at(first, ExtensionPoint::Score).first(), Some(&"ImageLocality"));
}

#[test]
fn profiles_that_cannot_be_built() {
    let check = |body: &str, expected: &str| {
        let configuration = parse(body).unwrap();
        let built = Framework::new(&configuration.profiles[0], &crate::plugins::registry());
        assert_eq!(built.err().map(|error| error.to_string()).as_deref(), Some(expected));
    };
    check(
        "profiles: [{plugins: {filter: {enabled: [{name: Foo}]}}}]",
        "initializing profiles: plugin \"Foo\" does not exist",
    );
    check(
        "profiles: [{plugins: {filter: {enabled: [{name: ImageLocality}]}}}]",
        "initializing profiles: plugin \"ImageLocality\" does not extend Filter plugin",
    );
    check(
        "profiles: [{plugins: {bind: {disabled: [{name: '*'}]}}}]",
        "initializing profiles: at least one bind plugin is needed for profile with scheduler name \"default-scheduler\"",
    );
    check(
        "profiles: [{plugins: {queueSort: {disabled: [{name: '*'}]}}}]",
        "initializing profiles: no queue sort plugin is enabled for profile with scheduler name \"default-scheduler\"",
    );
}

#[test]
fn values_that_are_not_allowed() {
    invalid("parallelism: 0", "parallelism: Invalid value: 0: should be an integer value greater than zero");
    invalid(
        "percentageOfNodesToScore: 101",
        "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]",
    );
    invalid(
        "podInitialBackoffSeconds: 0",
        "podInitialBackoffSeconds: Invalid value: 0: must be greater than 0",
    );
    invalid(
        "podMaxBackoffSeconds: 0",
        "podMaxBackoffSeconds: Invalid value: 0: must be greater than or equal to PodInitialBackoffSeconds",
    );
    invalid(
        "profiles: [{schedulerName: a}, {schedulerName: a}]",
        "profiles[1].schedulerName: Duplicate value: \"profiles[0].schedulerName\"",
    );
    invalid("profiles: [{}, {schedulerName: b}]", "profiles[0].schedulerName: Required value");
    invalid(
        "extenders: [{urlPrefix: 'http://x', prioritizeVerb: p}]",
        "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
    );
    invalid(
        "extenders: [{bindVerb: b}, {bindVerb: b}]",
        "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind",
    );
    invalid(
        "extenders: [{managedResources: [{name: cpu}]}]",
        "extenders[0].managedResources[0].name: Invalid value: \"cpu\": is an invalid extended resource name",
    );
}

#[test]
fn arguments_of_plugins() {
    let check = |plugin: &str, args: &str, expected: &str| {
        let body = format!("profiles: [{{pluginConfig: [{{name: {plugin}, args: {args}}}]}}]");
        invalid(&body, &format!("profiles[0].pluginConfig[0].args.{expected}"));
    };
    check(
        "InterPodAffinity",
        "{hardPodAffinityWeight: 101}",
        "hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]",
    );
    check(
        "DefaultPreemption",
        "{minCandidateNodesPercentage: 200}",
        "minCandidateNodesPercentage: Invalid value: 200: not in valid range [0, 100]",
    );
    check(
        "NodeResourcesFit",
        "{scoringStrategy: {type: Foo}}",
        "scoringStrategy.type: Unsupported value: \"Foo\": supported values: \"LeastAllocated\", \"MostAllocated\", \
         \"RequestedToCapacityRatio\"",
    );
    check(
        "NodeResourcesFit",
        "{scoringStrategy: {type: RequestedToCapacityRatio}}",
        "scoringStrategy.requestedToCapacityRatio: Required value: must be specified when type is \
         RequestedToCapacityRatio",
    );
    check(
        "NodeResourcesBalancedAllocation",
        "{resources: [{name: cpu, weight: 2}]}",
        "resources[0].weight: Invalid value: 2: must be 1",
    );
    check(
        "PodTopologySpread",
        "{defaultConstraints: [{maxSkew: 1, topologyKey: z, whenUnsatisfiable: ScheduleAnyway}]}",
        "defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty",
    );
    check(
        "VolumeBinding",
        "{bindTimeoutSeconds: -1}",
        "bindTimeoutSeconds: Invalid value: -1: invalid BindTimeoutSeconds, should not be a negative value",
    );
}

#[test]
fn what_is_no_configuration() {
    let check = |text: &str| assert!(KubeSchedulerConfiguration::parse(text).is_err(), "{text}");
    check("kind: Foo\napiVersion: kubescheduler.config.k8s.io/v1");
    check("kind: KubeSchedulerConfiguration\napiVersion: kubescheduler.config.k8s.io/v1beta3");
    check("[");
    assert!(parse("foo: bar").unwrap_err().to_string().contains("unknown field `foo`"));
}
