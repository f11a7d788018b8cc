//! CEL expressions that choose devices, over the variable `device`. Answers to `dynamic-resource-allocation/cel`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::Device;
use orlop_api::Quantity;
use orlop_cel::{Budget, Environment, EnvironmentBuilder, OwnedMap, Program, Type, Val, Vars};

/// How many expressions are remembered.
const MAX_EXPRESSIONS: usize = 1024;

struct Compiled {
    program: Program,
    /// What the expression may look up as a domain: all its texts. A device without a domain has an empty one.
    domains: Vec<String>,
}

/// Compiled expressions.
pub struct Selectors {
    environment: Environment,
    semver: Option<Program>,
    compiled: HashMap<String, Result<Arc<Compiled>, String>>,
}

impl fmt::Debug for Selectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selectors").field("compiled", &self.compiled.len()).finish_non_exhaustive()
    }
}

impl Default for Selectors {
    fn default() -> Self {
        let version = EnvironmentBuilder::kubernetes().variable("version", Type::String).build();
        Self {
            environment: EnvironmentBuilder::kubernetes().variable("device", Type::Dyn).build(),
            semver: version.compile("semver(version)").ok(),
            compiled: HashMap::new(),
        }
    }
}

impl Selectors {
    pub fn compile(&mut self, expression: &str) {
        if self.compiled.contains_key(expression) {
            return;
        }
        if self.compiled.len() >= MAX_EXPRESSIONS {
            self.compiled.clear();
        }
        let program = self.environment.compile(expression);
        let compiled = program.map(|program| Arc::new(Compiled { program, domains: texts(expression) }));
        let compiled = compiled.map_err(|errors| errors.detail());
        self.compiled.insert(expression.to_owned(), compiled);
    }

    /// Whether a device is chosen. Fails when the expression does.
    pub fn matches(&self, expression: &str, driver: &str, device: &Device) -> Result<bool, String> {
        let compiled = match self.compiled.get(expression) {
            Some(Ok(compiled)) => compiled,
            Some(Err(reason)) => return Err(reason.clone()),
            None => return Err("selector was not compiled".to_owned()),
        };
        let vars = Vars(vec![("device", self.device(driver, device, &compiled.domains))]);
        let mut budget = Budget::new(orlop_cel::RUNTIME_BUDGET);
        match compiled.program.eval(&vars, &mut budget) {
            Ok(Val::Bool(chosen)) => Ok(chosen),
            Ok(other) => Err(format!("selector: expected bool, got {}", other.type_name())),
            Err(error) => Err(error.to_string()),
        }
    }

    fn device<'a>(&'a self, driver: &str, device: &'a Device, domains: &[String]) -> Val<'a> {
        let attributes = device.attributes.iter().flatten().filter_map(|(name, attribute)| {
            let value = match attribute {
                one if one.bool.is_some() => Val::Bool(one.bool?),
                one if one.int.is_some() => Val::Int(one.int?),
                one if one.string.is_some() => Val::string(one.string.as_deref()?),
                one if one.bools.is_some() => {
                    Val::list(one.bools.iter().flatten().map(|b| Val::Bool(*b)).collect())
                }
                one if one.ints.is_some() => {
                    Val::list(one.ints.iter().flatten().map(|i| Val::Int(*i)).collect())
                }
                one if one.strings.is_some() => {
                    Val::list(one.strings.iter().flatten().map(|text| Val::string(text.as_str())).collect())
                }
                one if one.versions.is_some() => {
                    Val::list(one.versions.iter().flatten().filter_map(|text| self.version(text)).collect())
                }
                one => self.version(one.version.as_deref()?)?,
            };
            Some((name, value))
        });
        let capacity = device.capacity.iter().flatten().filter_map(|(name, capacity)| {
            let quantity = Quantity::parse(&capacity.value.0).ok()?;
            Some((name, Val::Opaque(orlop_cel::Opaque::Quantity(quantity))))
        });
        map([
            ("driver", Val::string(driver)),
            ("allowMultipleAllocations", Val::Bool(device.allow_multiple_allocations == Some(true))),
            ("attributes", by_domain(driver, attributes, domains)),
            ("capacity", by_domain(driver, capacity, domains)),
        ])
    }

    fn version(&self, text: &str) -> Option<Val<'static>> {
        let vars = Vars(vec![("version", Val::string(text))]);
        let value = self.semver.as_ref()?.eval(&vars, &mut Budget::new(orlop_cel::RUNTIME_BUDGET)).ok()?;
        match value {
            Val::Opaque(orlop_cel::Opaque::Semver(version)) => {
                Some(Val::Opaque(orlop_cel::Opaque::Semver(version)))
            }
            _ => None,
        }
    }
}

fn map<'a>(entries: impl IntoIterator<Item = (&'a str, Val<'a>)>) -> Val<'a> {
    let mut map = OwnedMap::default();
    for (key, value) in entries {
        // Keys are texts, which every map takes; a name given twice keeps its first value.
        let _ = map.insert(Val::string(key), value);
    }
    Val::map(map)
}

/// Names without a domain are in that of the driver.
fn by_domain<'a>(
    driver: &str,
    values: impl Iterator<Item = (&'a String, Val<'a>)>,
    domains: &[String],
) -> Val<'a> {
    let mut all: BTreeMap<String, Vec<(&'a str, Val<'a>)>> =
        domains.iter().map(|domain| (domain.clone(), Vec::new())).collect();
    for (name, value) in values {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        all.entry(domain.to_owned()).or_default().push((id, value));
    }
    let mut outer = OwnedMap::default();
    for (domain, values) in all {
        let _ = outer.insert(Val::string(domain), map(values));
    }
    Val::map(outer)
}

/// All quoted texts of an expression.
fn texts(expression: &str) -> Vec<String> {
    let mut texts = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(['"', '\'']) {
        let quote = if rest[start..].starts_with('"') { '"' } else { '\'' };
        let inner = &rest[start + 1..];
        let Some(end) = inner.find(quote) else { break };
        texts.push(inner[..end].to_owned());
        rest = &inner[end + 1..];
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn devices_are_chosen_by_their_attributes() {
        let device: Device = serde_json::from_value(json!({
            "name": "gpu-0",
            "attributes": {"model": {"string": "a100"}, "example.com/cores": {"int": 8}, "fw": {"version": "1.2.3"}},
            "capacity": {"memory": {"value": "80Gi"}},
        }))
        .unwrap();
        let mut selectors = Selectors::default();
        let mut check = |expression: &str, expected: Result<bool, ()>| {
            selectors.compile(expression);
            let verdict = selectors.matches(expression, "gpu.example.com", &device);
            assert_eq!(verdict.map_err(drop), expected, "{expression}");
        };
        check("device.driver == 'gpu.example.com'", Ok(true));
        check("device.attributes['gpu.example.com'].model == 'a100'", Ok(true));
        check("device.attributes[\"example.com\"].cores > 8", Ok(false));
        check("'x' in device.attributes['unknown.com']", Ok(false));
        check("device.attributes['gpu.example.com'].missing == 1", Err(()));
        check("device.attributes['gpu.example.com'].fw.isGreaterThan(semver('1.0.0'))", Ok(true));
        check("device.capacity['gpu.example.com'].memory.compareTo(quantity('40Gi')) > 0", Ok(true));
        check("device.driver", Err(()));
    }
}
