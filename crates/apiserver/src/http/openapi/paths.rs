//! Operations as documents write them. What every operation of a path accepts stands at the path.

use std::collections::{BTreeMap, BTreeSet};

use orlop_json::{Map, Value, json};

use super::definitions::Version;
use super::parameters::{self, Parameter};
use super::routes::{Model, Route};

/// The items of `paths`, sorted, and the definitions that they refer to.
pub fn items(routes: &[Route], version: Version) -> (Map, BTreeSet<String>) {
    let mut by_path: BTreeMap<&str, Vec<&Route>> = BTreeMap::new();
    for route in routes {
        by_path.entry(&route.path).or_default().push(route);
    }
    let items = by_path.into_iter().map(|(path, routes)| (path.into(), item(&routes, version))).collect();
    let mut names = BTreeSet::new();
    for route in routes {
        names.extend(route.body.iter().map(|(name, _)| name.clone()));
        names.extend(route.answers.iter().filter_map(|(_, model)| match model {
            Model::Named(name) => Some(name.clone()),
            Model::Text => None,
        }));
    }
    (items, names)
}

fn item(routes: &[&Route], version: Version) -> Value {
    let everywhere = |parameter: &Parameter| {
        routes.iter().all(|route| route.parameters.iter().any(|other| other.key() == parameter.key()))
    };
    let mut out = Map::new();
    for route in routes {
        let own = route.parameters.iter().filter(|parameter| !everywhere(parameter)).collect();
        out.insert(route.method.into(), operation(route, own, version));
    }
    let common = routes.first().into_iter().flat_map(|route| &route.parameters);
    let common = values(common.filter(|parameter| everywhere(parameter)).collect(), version);
    if !common.is_empty() {
        out.insert("parameters".into(), Value::Array(common));
    }
    Value::Object(out)
}

fn values(mut parameters: Vec<&Parameter>, version: Version) -> Vec<Value> {
    parameters.sort_by_key(|parameter| parameter.key());
    parameters.into_iter().map(|parameter| parameter.value(version)).collect()
}

fn schema(model: &Model, version: Version) -> Value {
    match model {
        Model::Named(name) => version.reference(name),
        Model::Text => json!({"type": "string"}),
    }
}

/// The same schema in every content type.
fn content(types: &[&str], schema: &Value) -> Value {
    Value::Object(types.iter().map(|ty| ((*ty).into(), json!({ "schema": schema }))).collect())
}

fn reason(code: u16) -> &'static str {
    match code {
        201 => "Created",
        202 => "Accepted",
        _ => "OK",
    }
}

fn operation(route: &Route, parameters: Vec<&Parameter>, version: Version) -> Value {
    let (id, tag) = route.id_and_tag();
    let mut out = Map::new();
    let v2 = version == Version::V2;
    if v2 {
        out.insert("consumes".into(), json!(route.consumes));
    }
    out.insert("description".into(), json!(route.description));
    out.insert("operationId".into(), json!(id));
    let mut list = values(parameters, version);
    if let Some((model, required)) = &route.body {
        if v2 {
            // The body sorts before everything else, as its name does.
            list.insert(0, parameters::v2_body(model, *required));
        } else {
            let mut body = json!({"content": content(route.consumes, &version.reference(model))});
            if *required {
                body["required"] = json!(true);
            }
            out.insert("requestBody".into(), body);
        }
    }
    if !list.is_empty() {
        out.insert("parameters".into(), Value::Array(list));
    }
    if v2 {
        out.insert("produces".into(), json!(route.produces));
    }
    let mut answers = Map::new();
    for (code, model) in &route.answers {
        let schema = schema(model, version);
        let answer = if v2 {
            json!({"description": reason(*code), "schema": schema})
        } else {
            json!({"description": reason(*code), "content": content(route.produces, &schema)})
        };
        answers.insert(code.to_string().into(), answer);
    }
    answers.insert("401".into(), json!({"description": "Unauthorized"}));
    out.insert("responses".into(), Value::Object(answers));
    if v2 {
        out.insert("schemes".into(), json!(["https"]));
    }
    out.insert("tags".into(), json!([tag]));
    if !route.action.is_empty() {
        out.insert("x-kubernetes-action".into(), json!(route.action));
    }
    if let Some(kind) = &route.kind {
        out.insert("x-kubernetes-group-version-kind".into(), kind.clone());
    }
    Value::Object(out)
}
