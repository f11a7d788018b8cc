//! Pods against levels and versions.

use orlop_json::{Value, json};

use super::checks::{Pod, evaluate};
use super::policy::{Level, LevelVersion, Version};
use super::told;

fn check_at(level: Level, version: Version, spec: Value, expected: &str) {
    let complaints = evaluate(LevelVersion { level, version }, Pod { metadata: &json!({}), spec: &spec });
    assert_eq!(told(&complaints, true), expected, "{spec}");
}

fn baseline(spec: Value, expected: &str) {
    check_at(Level::Baseline, Version::Latest, spec, expected);
}

fn restricted(spec: Value, expected: &str) {
    // What everything else must say to be restricted.
    let mut spec = spec;
    if spec.get("securityContext").is_none() {
        spec["securityContext"] = json!({});
    }
    let context = &mut spec["securityContext"];
    if context.get("runAsNonRoot").is_none() {
        context["runAsNonRoot"] = json!(true);
    }
    if context.get("seccompProfile").is_none() {
        context["seccompProfile"] = json!({"type": "RuntimeDefault"});
    }
    check_at(Level::Restricted, Version::Latest, spec, expected);
}

/// A container `c` with this security context.
fn with(context: Value) -> Value {
    json!({"containers": [{"name": "c", "securityContext": context}]})
}

fn tight(mut context: Value) -> Value {
    context["allowPrivilegeEscalation"] = json!(false);
    if context.get("capabilities").is_none() {
        context["capabilities"] = json!({"drop": ["ALL"]});
    }
    with(context)
}

#[test]
fn baseline_controls() {
    baseline(with(json!({})), "");
    baseline(
        json!({"hostNetwork": true, "hostPID": true, "hostIPC": true}),
        "host namespaces (hostNetwork=true, hostPID=true, hostIPC=true)",
    );
    baseline(
        with(json!({"capabilities": {"add": ["NET_RAW", "CHOWN", "BPF"]}})),
        "non-default capabilities (container \"c\" must not include \"BPF\", \"NET_RAW\" in securityContext.capabilities.add)",
    );
    baseline(
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
        "hostPath volumes (volume \"v\")",
    );
    baseline(
        json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 443}]}, {"name": "b", "ports": [{"hostPort": 80}]}]}),
        "hostPort (containers \"a\", \"b\" use hostPorts 443, 80)",
    );
    baseline(
        json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "x"}}, "lifecycle": {"preStop": {"tcpSocket": {"host": "y"}}}}]}),
        "probe or lifecycle host (container \"c\" uses probe or lifecycle hosts \"x\", \"y\")",
    );
    baseline(
        json!({"initContainers": [{"name": "i", "securityContext": {"privileged": true}}], "ephemeralContainers": [{"name": "e", "securityContext": {"privileged": true}}]}),
        "privileged (containers \"i\", \"e\" must not set securityContext.privileged=true)",
    );
    baseline(
        with(json!({"procMount": "Unmasked"})),
        "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
    );
    baseline(
        json!({"securityContext": {"seLinuxOptions": {"type": "spc_t", "role": "r"}}, "containers": [{"name": "c", "securityContext": {"seLinuxOptions": {"user": "u", "type": "container_engine_t"}}}]}),
        "seLinuxOptions (pod and container \"c\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set; role may not be set)",
    );
    baseline(
        json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
        "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
    );
    baseline(
        json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}, {"name": "x"}]}}),
        "forbidden sysctls (kernel.msgmax, x)",
    );
    baseline(
        with(json!({"windowsOptions": {"hostProcess": true}})),
        "hostProcess (container \"c\" must not set securityContext.windowsOptions.hostProcess=true)",
    );
    baseline(
        json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
        "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
    );
}

#[test]
fn annotations_of_old() {
    let metadata = json!({"annotations": {
        "container.apparmor.security.beta.kubernetes.io/a": "unconfined",
        "container.apparmor.security.beta.kubernetes.io/b": "localhost/x",
        "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
    }});
    let check = |version: Version, expected: &str| {
        let at = LevelVersion { level: Level::Baseline, version };
        assert_eq!(told(&evaluate(at, Pod { metadata: &metadata, spec: &json!({}) }), true), expected);
    };
    let app_armor = "forbidden AppArmor profile (annotation must not set AppArmor profile type to \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\")";
    check(Version::Latest, app_armor);
    check(
        Version::Minor(18),
        &format!(
            "{app_armor}, seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")"
        ),
    );
}

#[test]
fn restricted_controls() {
    restricted(tight(json!({})), "");
    restricted(
        with(json!({})),
        "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"])",
    );
    restricted(
        tight(json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE", "CHOWN"]}})),
        "unrestricted capabilities (container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add)",
    );
    let mut volumes = tight(json!({}));
    volumes["volumes"] = json!([{"name": "a", "hostPath": {"path": "/"}}, {"name": "b", "nfs": {}}, {"name": "c", "emptyDir": {}}, {"name": "d", "image": {}}]);
    restricted(
        volumes,
        "restricted volume types (volumes \"a\", \"b\" use restricted volume types \"hostPath\", \"nfs\")",
    );
    restricted(
        tight(json!({"runAsNonRoot": false})),
        "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false)",
    );
    restricted(tight(json!({"runAsUser": 0})), "runAsUser=0 (container \"c\" must not set runAsUser=0)");
    restricted(
        tight(json!({"seccompProfile": {"type": "Unconfined"}})),
        "seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
    );
    let mut windows = with(json!({}));
    windows["os"] = json!({"name": "windows"});
    restricted(windows, "");
}

#[test]
fn user_namespaces_relax() {
    let mut spec = tight(json!({"runAsUser": 0, "runAsNonRoot": false, "procMount": "Unmasked"}));
    spec["hostUsers"] = json!(false);
    restricted(
        spec.clone(),
        "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
    );
    baseline(spec, "");
}

#[test]
fn versions() {
    let probe = json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "x"}}}]});
    check_at(Level::Baseline, Version::Minor(33), probe.clone(), "");
    check_at(
        Level::Baseline,
        Version::Minor(34),
        probe,
        "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"x\")",
    );
    let sysctl = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_keepalive_time"}]}});
    check_at(
        Level::Baseline,
        Version::Minor(28),
        sysctl.clone(),
        "forbidden sysctls (net.ipv4.tcp_keepalive_time)",
    );
    check_at(Level::Baseline, Version::Minor(29), sysctl, "");
    // Nothing restricted was known of before 1.8 but volumes and users.
    check_at(
        Level::Restricted,
        Version::Minor(0),
        with(json!({})),
        "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)",
    );
    check_at(Level::Privileged, Version::Latest, with(json!({"privileged": true})), "");
}
