//! Plugins by name. Answers to upstream's `plugins.NewInTreeRegistry`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ExtensionPoint, Plugin};
use crate::config::{ConfigError, KubeSchedulerProfile, PluginArgs};

/// Makes a plugin from its arguments.
pub type Factory = fn(PluginArgs) -> Arc<dyn Plugin>;

/// All plugins that a profile may name.
pub struct Registry {
    factories: BTreeMap<&'static str, Factory>,
}

impl Registry {
    pub fn new(factories: impl IntoIterator<Item = (&'static str, Factory)>) -> Self {
        Self { factories: factories.into_iter().collect() }
    }

    /// Every plugin that a profile names anywhere, once.
    pub fn build(&self, profile: &KubeSchedulerProfile) -> Result<Vec<Arc<dyn Plugin>>, ConfigError> {
        let plugins = &profile.plugins;
        let own = ExtensionPoint::ALL.into_iter().flat_map(|point| &plugins.at(point).enabled);
        let mut built: Vec<Arc<dyn Plugin>> = Vec::new();
        for reference in plugins.multi_point.enabled.iter().chain(own) {
            let name = reference.name.as_str();
            if built.iter().any(|plugin| plugin.name() == name) {
                continue;
            }
            let Some(factory) = self.factories.get(name) else {
                return Err(ConfigError::Profile(format!("plugin {name:?} does not exist")));
            };
            let args = profile.plugin_config.iter().find(|config| config.name == name);
            let args = PluginArgs::parse(name, args.map_or(&serde_json::Value::Null, |config| &config.args));
            built.push(factory(args.map_err(ConfigError::Profile)?));
        }
        Ok(built)
    }
}
