//! Which plugins there are, in which order they are asked, which are on without being named, and how
//! `--enable-admission-plugins`, `--disable-admission-plugins` and `--admission-control-config-file` choose among them.
//! Upstream's counterpart is `pkg/kubeapiserver/options/plugins.go`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use orlop_api::decode::{self, Media};
use orlop_api::field::go_quote;
use orlop_json::Value;

use super::fields::Fields as _;
use super::webhook::credentials::Credentials;
use super::*;
use crate::options::Options;

/// Why the admission plugins cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// An option names a plugin that does not exist, or contradicts another option.
    #[error("{0}")]
    Names(String),
    /// A file could not be read.
    #[error("unable to read admission control configuration from {path:?} [{source}]")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A configuration is wrong.
    #[error("couldn't init admission plugin {plugin:?}: {message}")]
    Configuration {
        /// The plugin.
        plugin: String,
        /// What is wrong.
        message: String,
    },
}

type Make = fn(Option<&Value>, &Options) -> Result<Box<dyn Admission>, String>;

/// One row of the table.
struct Row {
    name: &'static str,
    default_on: bool,
    /// Makes the plugin from its configuration.
    make: Make,
}

const fn on(name: &'static str, make: Make) -> Row {
    Row { name, default_on: true, make }
}

const fn off(name: &'static str, make: Make) -> Row {
    Row { name, default_on: false, make }
}

/// A plugin that takes no configuration.
macro_rules! plain {
    ($plugin:expr) => {
        |_, _| Ok(Box::new($plugin))
    };
}

/// Every plugin in the order in which they are asked.
const PLUGINS: &[Row] = &[
    off("AlwaysAdmit", plain!(always::AlwaysAdmit)),
    off("NamespaceAutoProvision", plain!(namespace_exists::NamespaceAutoProvision)),
    on("NamespaceLifecycle", plain!(namespace_lifecycle::NamespaceLifecycle)),
    off("NamespaceExists", plain!(namespace_exists::NamespaceExists)),
    off("LimitPodHardAntiAffinityTopology", plain!(hard_anti_affinity::LimitPodHardAntiAffinityTopology)),
    on("LimitRanger", plain!(limit_ranger::LimitRanger)),
    on("ServiceAccount", plain!(service_account::ServiceAccount)),
    off("NodeRestriction", plain!(node_restriction::NodeRestriction)),
    on("TaintNodesByCondition", plain!(taint_nodes_by_condition::TaintNodesByCondition)),
    off("AlwaysPullImages", plain!(always_pull_images::AlwaysPullImages)),
    off("ImagePolicyWebhook", |configuration, _| {
        Ok(Box::new(image_policy::ImagePolicyWebhook::new(configuration)?))
    }),
    on("PodSecurity", |configuration, _| Ok(Box::new(pod_security::PodSecurity::new(configuration)?))),
    off("PodNodeSelector", |configuration, _| {
        Ok(Box::new(pod_node_selector::PodNodeSelector::new(configuration)?))
    }),
    on("Priority", plain!(priority::Priority)),
    on("DefaultTolerationSeconds", |_, options| {
        Ok(Box::new(default_toleration_seconds::DefaultTolerationSeconds::new(options)))
    }),
    off("PodTolerationRestriction", |configuration, _| {
        Ok(Box::new(pod_toleration_restriction::PodTolerationRestriction::new(configuration)?))
    }),
    off("EventRateLimit", |configuration, _| {
        Ok(Box::new(event_rate_limit::EventRateLimit::new(configuration)?))
    }),
    off("ExtendedResourceToleration", plain!(extended_resource_toleration::ExtendedResourceToleration)),
    on("DefaultStorageClass", plain!(default_storage_class::DefaultStorageClass)),
    on("StorageObjectInUseProtection", plain!(storage_protection::StorageObjectInUseProtection)),
    off(
        "OwnerReferencesPermissionEnforcement",
        plain!(owner_references::OwnerReferencesPermissionEnforcement),
    ),
    on("PersistentVolumeClaimResize", plain!(volume_resize::PersistentVolumeClaimResize)),
    on("RuntimeClass", plain!(runtime_class::RuntimeClass)),
    on("CertificateApproval", plain!(certificates::CertificateApproval)),
    on("CertificateSigning", plain!(certificates::CertificateSigning)),
    on("ClusterTrustBundleAttest", plain!(certificates::ClusterTrustBundleAttest)),
    on("CertificateSubjectRestriction", plain!(certificates::CertificateSubjectRestriction)),
    on("DefaultIngressClass", plain!(default_ingress_class::DefaultIngressClass)),
    off("DenyServiceExternalIPs", plain!(external_ips::DenyServiceExternalIPs)),
    on("PodTopologyLabels", plain!(pod_topology_labels::PodTopologyLabels)),
    on("MutatingAdmissionPolicy", plain!(policy::MutatingAdmissionPolicy)),
    on("MutatingAdmissionWebhook", plain!(webhook::MutatingAdmissionWebhook)),
    on("ValidatingAdmissionPolicy", plain!(policy::ValidatingAdmissionPolicy)),
    on("ValidatingAdmissionWebhook", plain!(webhook::ValidatingAdmissionWebhook)),
    on("ResourceQuota", |configuration, _| Ok(Box::new(resource_quota::ResourceQuota::new(configuration)?))),
    off("AlwaysDeny", plain!(always::AlwaysDeny)),
];

fn known(name: &str) -> bool {
    PLUGINS.iter().any(|row| row.name == name)
}

/// Checks the names that options give.
fn check_names(enabled: &[String], disabled: &[String]) -> Result<(), PluginError> {
    for (flag, names) in [("enable-admission-plugins", enabled), ("disable-admission-plugins", disabled)] {
        if let Some(name) = names.iter().find(|name| !known(name)) {
            return Err(PluginError::Names(format!("{flag} plugin {} is unknown", go_quote(name))));
        }
    }
    let mut both: Vec<&str> =
        enabled.iter().filter(|name| disabled.contains(name)).map(String::as_str).collect();
    both.sort_unstable();
    both.dedup();
    if both.is_empty() {
        Ok(())
    } else {
        Err(PluginError::Names(format!(
            "[{}] in enable-admission-plugins and disable-admission-plugins overlapped",
            both.join(" ")
        )))
    }
}

/// The plugins that are on without being named.
pub fn default_plugins() -> impl Iterator<Item = &'static str> {
    PLUGINS.iter().filter(|row| row.default_on).map(|row| row.name)
}

/// The plugins that are asked under these options, in order.
pub fn plugins(options: &Options) -> Result<Vec<Box<dyn Admission>>, PluginError> {
    let (enabled, disabled) = (&options.enable_admission_plugins, &options.disable_admission_plugins);
    check_names(enabled, disabled)?;
    let configurations = configurations(options)?;
    let mut out = Vec::new();
    for row in PLUGINS {
        let named = enabled.iter().any(|name| name == row.name);
        if disabled.iter().any(|name| name == row.name) || !(named || row.default_on) {
            continue;
        }
        let plugin = (row.make)(configurations.get(row.name), options)
            .map_err(|message| PluginError::Configuration { plugin: row.name.to_string(), message })?;
        out.push(plugin);
    }
    Ok(out)
}

/// Who this server is to mutating and to validating webhooks.
pub fn webhook_credentials(options: &Options) -> Result<[Credentials; 2], PluginError> {
    let configurations = configurations(options)?;
    let of = |plugin: &str| {
        Credentials::load(configurations.get(plugin))
            .map_err(|message| PluginError::Configuration { plugin: plugin.to_string(), message })
    };
    Ok([of("MutatingAdmissionWebhook")?, of("ValidatingAdmissionWebhook")?])
}

fn configurations(options: &Options) -> Result<HashMap<String, Value>, PluginError> {
    options.admission_control_config_file.as_deref().map_or_else(|| Ok(HashMap::new()), load)
}

fn read(path: &Path) -> Result<Value, PluginError> {
    let bytes =
        std::fs::read(path).map_err(|source| PluginError::File { path: path.to_path_buf(), source })?;
    decode::parse(&bytes, Media::Yaml)
        .map_err(|error| PluginError::Names(format!("{}: {error}", path.display())))
}

/// The configurations in an `AdmissionConfiguration` file, by plugin.
fn load(path: &Path) -> Result<HashMap<String, Value>, PluginError> {
    let file = read(path)?;
    if file.text("kind") != "AdmissionConfiguration"
        || !matches!(
            file.text("apiVersion"),
            "apiserver.config.k8s.io/v1" | "apiserver.k8s.io/v1alpha1" | "apiserver.k8s.io/v1"
        )
    {
        return Err(PluginError::Names(format!(
            "{}: no kind {} is registered for version {}",
            path.display(),
            go_quote(file.text("kind")),
            go_quote(file.text("apiVersion"))
        )));
    }
    let base = path.parent().unwrap_or(Path::new("."));
    let mut out = HashMap::new();
    for plugin in file.items("plugins") {
        let configuration = if plugin.has("configuration") {
            plugin["configuration"].clone()
        } else if plugin.text("path").is_empty() {
            continue;
        } else {
            read(&base.join(plugin.text("path")))?
        };
        out.insert(plugin.text("name").to_string(), configuration);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(enabled: &[&str], disabled: &[&str]) -> Result<Vec<&'static str>, String> {
        let list = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        let options = Options {
            enable_admission_plugins: list(enabled),
            disable_admission_plugins: list(disabled),
            ..Options::default()
        };
        plugins(&options).map(|all| all.iter().map(|p| p.name()).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_and_order() {
        let default = names(&[], &[]).unwrap();
        assert_eq!(default.first(), Some(&"NamespaceLifecycle"));
        assert!(!default.contains(&"AlwaysPullImages"));
        let chosen = names(&["AlwaysPullImages", "AlwaysAdmit"], &["Priority"]).unwrap();
        assert_eq!(chosen.first(), Some(&"AlwaysAdmit"));
        assert!(chosen.contains(&"AlwaysPullImages") && !chosen.contains(&"Priority"));
        // A plugin answers under the name of its row.
        for row in PLUGINS {
            // Some cannot be without a configuration.
            if !matches!(row.name, "EventRateLimit" | "ImagePolicyWebhook") {
                assert_eq!((row.make)(None, &Options::default()).map(|plugin| plugin.name()), Ok(row.name));
            }
        }
        let check = |enabled: &[&str], disabled: &[&str], expected: &str| {
            assert_eq!(names(enabled, disabled).unwrap_err(), expected);
        };
        check(&["Foo"], &[], "enable-admission-plugins plugin \"Foo\" is unknown");
        check(&[], &["Bar"], "disable-admission-plugins plugin \"Bar\" is unknown");
        check(
            &["Priority"],
            &["Priority"],
            "[Priority] in enable-admission-plugins and disable-admission-plugins overlapped",
        );
    }
}
