//! Containers of all three lists: upstream's `validateContainers`, `validateInitContainers`, `validateEphemeralContainers`.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use super::env;
use super::resources::validate_requirements;
use super::security::validate_security_context;
use super::validation::Pod;
use crate::cursor::Cursor;
use crate::validate::{
    dns_label, local_descending_path, nonnegative, one_of, path_no_backsteps, port_num_or_name, port_number,
    require_one_of, require_text,
};

pub(super) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// The fields an ephemeral container may have.
const EPHEMERAL_FIELDS: [&str; 19] = [
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "envFrom",
    "env",
    "volumeMounts",
    "volumeDevices",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
    "targetContainerName",
    // Checked on their own, when not empty.
    "resources",
    "ports",
];

/// `spec.containers`.
pub(super) fn validate_containers(errs: &mut ErrorList, path: &Path, pod: &Pod) {
    let containers = pod.spec["containers"].items();
    if containers.is_empty() {
        errs.push(field::required(path, ""));
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, container) in containers.iter().enumerate() {
        let path = path.index(i);
        validate_common(errs, &path, container, pod);
        let name = container["name"].text();
        if seen.contains(&name) {
            errs.push(field::duplicate(&path.child("name"), name));
        }
        seen.push(name);
        validate_hooks_and_probes(errs, &path, container, pod);
        validate_restart_policy(errs, &path, container, &["Always", "Never", "OnFailure"]);
    }
    let all: Vec<(usize, &Value)> = containers.iter().enumerate().collect();
    host_port_conflicts(errs, path, &all);
}

/// `spec.initContainers`; one with `restartPolicy: Always` is a sidecar and may have hooks and probes.
pub(super) fn validate_init_containers(errs: &mut ErrorList, path: &Path, pod: &Pod) {
    let mut seen: Vec<&str> = names_of(&pod.spec["containers"]);
    for (i, container) in pod.spec["initContainers"].items().iter().enumerate() {
        let list_path = path;
        let path = path.index(i);
        validate_common(errs, &path, container, pod);
        validate_restart_policy(errs, &path, container, &["Always", "Never", "OnFailure"]);
        let name = container["name"].text();
        if seen.contains(&name) {
            errs.push(field::duplicate(&path.child("name"), name));
        } else if !name.is_empty() {
            seen.push(name);
        }
        host_port_conflicts(errs, list_path, &[(0, container)]);
        if container["restartPolicy"].text() == "Always" {
            validate_hooks_and_probes(errs, &path, container, pod);
        } else {
            for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if container[key].is_set() {
                    errs.push(field::forbidden(
                        &path.child(key),
                        "may not be set for init containers without restartPolicy=Always",
                    ));
                }
            }
        }
    }
}

/// `spec.ephemeralContainers`.
pub(super) fn validate_ephemeral_containers(errs: &mut ErrorList, path: &Path, pod: &Pod) {
    let mut others = names_of(&pod.spec["containers"]);
    others.extend(names_of(&pod.spec["initContainers"]));
    let mut seen = others.clone();
    for (i, container) in pod.spec["ephemeralContainers"].items().iter().enumerate() {
        let path = path.index(i);
        validate_common(errs, &path, container, pod);
        validate_image_is_trimmed(errs, &path, container);
        let name = container["name"].text();
        if seen.contains(&name) {
            errs.push(field::duplicate(&path.child("name"), name));
        }
        seen.push(name);
        let target = container["targetContainerName"].text();
        if !target.is_empty() && !others.contains(&target) {
            errs.push(field::not_found(&path.child("targetContainerName"), target));
        }
        for (key, value) in container.entries() {
            let empty_only = matches!(key.as_str(), "resources" | "ports");
            let allowed = EPHEMERAL_FIELDS.contains(&key.as_str()) && (!empty_only || value.is_empty());
            if !allowed && value.is_set() {
                errs.push(field::forbidden(&path.child(key), "cannot be set for an Ephemeral Container"));
            }
        }
        for (m, mount) in container["volumeMounts"].items().iter().enumerate() {
            for key in ["subPath", "subPathExpr"] {
                if !mount[key].text().is_empty() {
                    errs.push(field::forbidden(
                        &path.child("volumeMounts").index(m).child(key),
                        "cannot be set for an Ephemeral Container",
                    ));
                }
            }
        }
    }
}

fn names_of(containers: &Value) -> Vec<&str> {
    containers.items().iter().map(|c| c["name"].text()).collect()
}

/// A pod's image names have no spaces around them; a template's may, for old times' sake.
pub(super) fn validate_image_is_trimmed(errs: &mut ErrorList, path: &Path, container: &Value) {
    let image = container["image"].text();
    if image.trim() != image {
        errs.push(field::invalid(
            &path.child("image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
}

fn validate_common(errs: &mut ErrorList, path: &Path, container: &Value, pod: &Pod) {
    let name = container["name"].text();
    if name.is_empty() {
        errs.push(field::required(&path.child("name"), ""));
    } else {
        dns_label(errs, &path.child("name"), name);
    }
    require_text(errs, &path.child("image"), container["image"].text());
    require_one_of(
        errs,
        &path.child("terminationMessagePolicy"),
        container["terminationMessagePolicy"].text(),
        &["File", "FallbackToLogsOnError"],
    );
    validate_ports(errs, &path.child("ports"), &container["ports"]);
    env::validate_env(errs, &path.child("env"), &container["env"], pod);
    env::validate_env_from(errs, &path.child("envFrom"), &container["envFrom"]);
    validate_mounts(errs, &path.child("volumeMounts"), container, pod);
    validate_devices(errs, &path.child("volumeDevices"), container, pod);
    require_one_of(
        errs,
        &path.child("imagePullPolicy"),
        container["imagePullPolicy"].text(),
        &["Always", "IfNotPresent", "Never"],
    );
    let at = path.child("resources");
    validate_requirements(errs, &at, &container["resources"], &pod.claims, pod.tolerated);
    validate_resize_policy(errs, &path.child("resizePolicy"), container, pod);
    validate_security_context(
        errs,
        &path.child("securityContext"),
        &container["securityContext"],
        pod.host_users(),
    );
}

fn validate_restart_policy(errs: &mut ErrorList, path: &Path, container: &Value, valid: &[&str]) {
    one_of(errs, &path.child("restartPolicy"), &container["restartPolicy"], valid);
    let rules = container["restartPolicyRules"].items();
    let rules_path = path.child("restartPolicyRules");
    if !rules.is_empty() && !container["restartPolicy"].is_set() {
        errs.push(field::required(
            &path.child("restartPolicy"),
            "must specify restartPolicy when restart rules are used",
        ));
    }
    if rules.len() > 20 {
        errs.push(field::too_many(&rules_path, rules.len(), 20));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = rules_path.index(i);
        require_one_of(
            errs,
            &path.child("action"),
            rule["action"].text(),
            &["Restart", "RestartAllContainers"],
        );
        let codes = &rule["exitCodes"];
        if !codes.is_set() {
            errs.push(field::required(&path.child("exitCodes"), "must be specified"));
            continue;
        }
        let path = path.child("exitCodes");
        require_one_of(errs, &path.child("operator"), codes["operator"].text(), &["In", "NotIn"]);
        if codes["values"].items().len() > 255 {
            errs.push(field::too_many(&path.child("values"), codes["values"].items().len(), 255));
        }
    }
}

fn validate_hooks_and_probes(errs: &mut ErrorList, path: &Path, container: &Value, pod: &Pod) {
    let grace = pod.spec["terminationGracePeriodSeconds"].as_i64();
    for hook in ["postStart", "preStop"] {
        let handler = &container["lifecycle"][hook];
        if handler.is_set() {
            let path = path.child("lifecycle").child(hook);
            validate_handler(errs, &path, handler, grace, &["exec", "httpGet", "tcpSocket", "sleep"]);
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = &container[kind];
        if !probe.is_set() {
            continue;
        }
        let path = path.child(kind);
        validate_handler(errs, &path, probe, grace, &["exec", "httpGet", "tcpSocket", "grpc"]);
        for key in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            nonnegative(errs, &path.child(key), &probe[key]);
        }
        let own_grace = &probe["terminationGracePeriodSeconds"];
        let grace_path = path.child("terminationGracePeriodSeconds");
        if own_grace.is_set() && own_grace.int() <= 0 {
            errs.push(field::invalid(&grace_path, own_grace.int(), "must be greater than 0"));
        }
        if kind == "readinessProbe" {
            if own_grace.is_set() {
                errs.push(field::invalid(
                    &grace_path,
                    own_grace.int(),
                    "must not be set for readinessProbes",
                ));
            }
        } else if probe["successThreshold"].int() != 1 {
            errs.push(field::invalid(
                &path.child("successThreshold"),
                probe["successThreshold"].int(),
                "must be 1",
            ));
        }
    }
}

/// Exactly one of the handler types `kinds`.
fn validate_handler(errs: &mut ErrorList, path: &Path, handler: &Value, grace: Option<i64>, kinds: &[&str]) {
    let mut found = false;
    for kind in kinds {
        let action = &handler[*kind];
        if !action.is_set() {
            continue;
        }
        let path = path.child(kind);
        if found {
            errs.push(field::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        found = true;
        match *kind {
            "exec" => {
                if action["command"].items().is_empty() {
                    errs.push(field::required(&path.child("command"), ""));
                }
            }
            "httpGet" => {
                require_text(errs, &path.child("path"), action["path"].text());
                port_num_or_name(errs, &path.child("port"), &action["port"]);
                let scheme = action["scheme"].text();
                if !["HTTP", "HTTPS"].contains(&scheme) {
                    errs.push(field::not_supported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]));
                }
                for header in action["httpHeaders"].items() {
                    let name = header["name"].text();
                    for msg in names::is_http_header_name(name) {
                        errs.push(field::invalid(&path.child("httpHeaders"), name, msg));
                    }
                }
            }
            "sleep" => {
                let seconds = action["seconds"].int();
                if let Some(grace) = grace
                    && !(0..=grace).contains(&seconds)
                {
                    errs.push(field::invalid(
                        &path,
                        seconds,
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
                    ));
                }
            }
            _ => port_num_or_name(errs, &path.child("port"), &action["port"]),
        }
    }
    if !found {
        errs.push(field::required(path, "must specify a handler type"));
    }
}

fn validate_ports(errs: &mut ErrorList, path: &Path, ports: &Value) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in ports.items().iter().enumerate() {
        let path = path.index(i);
        let name = port["name"].text();
        if !name.is_empty() {
            let messages = names::is_valid_port_name(name);
            if !messages.is_empty() {
                crate::validate::invalids(errs, &path.child("name"), name, messages);
            } else if seen.contains(&name) {
                errs.push(field::duplicate(&path.child("name"), name));
            } else {
                seen.push(name);
            }
        }
        let container_port = port["containerPort"].int();
        if container_port == 0 {
            errs.push(field::required(&path.child("containerPort"), ""));
        } else {
            port_number(errs, &path.child("containerPort"), container_port);
        }
        let host_port = port["hostPort"].int();
        if host_port != 0 {
            port_number(errs, &path.child("hostPort"), host_port);
        }
        require_one_of(errs, &path.child("protocol"), port["protocol"].text(), &PROTOCOLS);
    }
}

/// No two of these containers want the same protocol, address and port of the host.
fn host_port_conflicts(errs: &mut ErrorList, path: &Path, containers: &[(usize, &Value)]) {
    let mut taken: Vec<String> = Vec::new();
    for (i, container) in containers {
        for (p, port) in container["ports"].items().iter().enumerate() {
            let host_port = port["hostPort"].int();
            if host_port == 0 {
                continue;
            }
            let key = format!("{}/{}/{host_port}", port["protocol"].text(), port["hostIP"].text());
            if taken.contains(&key) {
                let path = path.index(*i).child("ports").index(p).child("hostPort");
                errs.push(field::duplicate(&path, key));
            } else {
                taken.push(key);
            }
        }
    }
}

fn validate_mounts(errs: &mut ErrorList, path: &Path, container: &Value, pod: &Pod) {
    let devices = container["volumeDevices"].items();
    let mut points: Vec<&str> = Vec::new();
    for (i, mount) in container["volumeMounts"].items().iter().enumerate() {
        let at = path.index(i);
        let name = mount["name"].text();
        let mount_path = mount["mountPath"].text();
        let (sub_path, sub_path_expr) = (mount["subPath"].text(), mount["subPathExpr"].text());
        require_text(errs, &at.child("name"), name);
        let volume = pod.volume(name);
        if volume.is_none() {
            errs.push(field::not_found(&at.child("name"), name));
        }
        require_text(errs, &at.child("mountPath"), mount_path);
        if points.contains(&mount_path) {
            errs.push(field::invalid(&at.child("mountPath"), mount_path, "must be unique"));
        }
        points.push(mount_path);
        if devices.iter().any(|d| d["name"].text() == name) {
            errs.push(field::invalid(&at.child("name"), name, "must not already exist in volumeDevices"));
        }
        if devices.iter().any(|d| d["devicePath"].text() == mount_path) {
            errs.push(field::invalid(
                &at.child("mountPath"),
                mount_path,
                "must not already exist as a path in volumeDevices",
            ));
        }
        // Upstream reports these four at the list, not at the item.
        if !sub_path.is_empty() {
            local_descending_path(errs, &path.child("subPath"), sub_path);
        }
        if !sub_path_expr.is_empty() {
            if !sub_path.is_empty() {
                errs.push(field::invalid(
                    &at.child("subPathExpr"),
                    sub_path_expr,
                    "subPathExpr and subPath are mutually exclusive",
                ));
            }
            local_descending_path(errs, &path.child("subPathExpr"), sub_path_expr);
        }
        let propagation = &mount["mountPropagation"];
        let propagation_path = path.child("mountPropagation");
        one_of(errs, &propagation_path, propagation, &["Bidirectional", "HostToContainer", "None"]);
        if propagation.text() == "Bidirectional" && !container["securityContext"]["privileged"].flag() {
            errs.push(field::forbidden(
                &propagation_path,
                "Bidirectional mount propagation is available only to privileged containers",
            ));
        }
        validate_recursive_read_only(errs, &path.child("recursiveReadOnly"), mount);
    }
}

fn validate_recursive_read_only(errs: &mut ErrorList, path: &Path, mount: &Value) {
    match mount["recursiveReadOnly"].text() {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !mount["readOnly"].flag() {
                errs.push(field::forbidden(path, "may only be specified when readOnly is true"));
            }
            if !matches!(mount["mountPropagation"].text(), "" | "None") {
                errs.push(field::forbidden(
                    path,
                    "may only be specified when mountPropagation is None or not specified",
                ));
            }
        }
        other => errs.push(field::not_supported(path, other, &["Disabled", "Enabled", "IfPossible"])),
    }
}

fn validate_devices(errs: &mut ErrorList, path: &Path, container: &Value, pod: &Pod) {
    let mounts = container["volumeMounts"].items();
    let mut names_seen: Vec<&str> = Vec::new();
    let mut paths_seen: Vec<&str> = Vec::new();
    for (i, device) in container["volumeDevices"].items().iter().enumerate() {
        let at = path.index(i);
        let (name_path, device_path) = (at.child("name"), at.child("devicePath"));
        let (name, device) = (device["name"].text(), device["devicePath"].text());
        require_text(errs, &name_path, name);
        if names_seen.contains(&name) {
            errs.push(field::invalid(&name_path, name, "must be unique"));
        }
        match pod.volume(name) {
            None => errs.push(field::not_found(&name_path, name)),
            Some(v) if !v["persistentVolumeClaim"].is_set() && !v["ephemeral"].is_set() => {
                errs.push(field::invalid(
                    &name_path,
                    name,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                ));
            }
            Some(_) => {}
        }
        require_text(errs, &device_path, device);
        if paths_seen.contains(&device) {
            errs.push(field::invalid(&device_path, device, "must be unique"));
        }
        let mut backsteps = ErrorList::new();
        path_no_backsteps(&mut backsteps, &device_path, device);
        if backsteps.is_empty() {
            paths_seen.push(device);
        } else {
            errs.push(field::invalid(&device_path, device, "can not contain backsteps ('..')"));
        }
        if mounts.iter().any(|m| m["name"].text() == name) {
            errs.push(field::invalid(&name_path, name, "must not already exist in volumeMounts"));
        }
        if mounts.iter().any(|m| m["mountPath"].text() == device) {
            errs.push(field::invalid(
                &device_path,
                device,
                "must not already exist as a path in volumeMounts",
            ));
        }
        if !name.is_empty() {
            names_seen.push(name);
        }
    }
}

fn validate_resize_policy(errs: &mut ErrorList, path: &Path, container: &Value, pod: &Pod) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, policy) in container["resizePolicy"].items().iter().enumerate() {
        let (resource, restart) = (policy["resourceName"].text(), policy["restartPolicy"].text());
        if seen.contains(&resource) {
            errs.push(field::duplicate(&path.index(i), resource));
        }
        seen.push(resource);
        require_one_of(errs, path, resource, &["cpu", "memory"]);
        require_one_of(errs, path, restart, &["NotRequired", "RestartContainer"]);
        if pod.spec["restartPolicy"].text() == "Never" && restart != "NotRequired" {
            errs.push(field::invalid(path, restart, "must be 'NotRequired' when `restartPolicy` is 'Never'"));
        }
    }
}
