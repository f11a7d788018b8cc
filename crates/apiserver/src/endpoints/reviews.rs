//! The virtual kinds: access reviews, token reviews, and the question who one is.

use bytes::Bytes;
use orlop_api::decode::Gvk;
use orlop_api::field::{self, Path};
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::Endpoint;
use crate::admission::{Operation, Request};
use crate::authn::UserInfo;
use crate::authz::rbac::PolicyRule;
use crate::authz::webhook::raw_selector;
use crate::authz::{Attributes, Decision};
use crate::http::body::{self, Response};
use crate::registry::options::WriteOptions;
use crate::registry::{now, object, render};

pub(super) async fn create(endpoint: &Endpoint<'_>, body: Bytes) -> Result<Response, ApiError> {
    if endpoint.resource.kind == "Binding" {
        return super::binding::create(endpoint, body, "").await;
    }
    let options = WriteOptions::parse(&endpoint.request.query, "CreateOptions", false)?;
    let resource = endpoint.resource;
    let gvk = Gvk { group: &resource.group, version: &resource.version, kind: &resource.kind };
    let mut review = endpoint.decode(&body, &gvk, &options)?;
    let manager = endpoint.manager(&options);
    let call = endpoint.write_call(&options, &manager);
    let name = object::meta(&review, "name").to_string();
    let mut request = Request::new(&call, Operation::Create, &mut review, None).named(&name);
    endpoint.server.registry.admit(&mut request).await?;
    if resource.kind == "SelfSubjectReview" {
        review = json!({
            "kind": "SelfSubjectReview",
            "apiVersion": resource.group_version(),
            "metadata": {"creationTimestamp": now()},
            "status": {"userInfo": endpoint.request.user.to_value()},
        });
        return Ok(answer(endpoint, review));
    }
    let namespace = endpoint.request.info.namespace.as_str();
    if resource.namespaced {
        let own = object::meta(&review, "namespace");
        if own.is_empty() {
            object::set_meta(&mut review, "namespace", Some(json!(namespace)));
        } else if own != namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    crate::managed::update_as(&gvk, "", &manager, None, &mut review);
    let status = match resource.kind.as_str() {
        "TokenReview" => token_review(endpoint, &review).await?,
        "SelfSubjectRulesReview" => rules_review(endpoint, &review)?,
        _ => access_review(endpoint, &review, namespace).await?,
    };
    review["status"] = status;
    object::order(&mut review);
    Ok(answer(endpoint, review))
}

fn answer(endpoint: &Endpoint<'_>, value: Value) -> Response {
    let accept = endpoint.request.accept;
    body::response(201, accept.format.content_type(), render::encode(&value, accept))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(String::from)).collect()
}

/// Upstream prints the non-resource attributes as its structure.
fn print_non_resource(attributes: &Value) -> Value {
    json!({"Path": text(attributes, "path"), "Verb": text(attributes, "verb")})
}

async fn access_review(endpoint: &Endpoint<'_>, review: &Value, namespace: &str) -> Result<Value, ApiError> {
    let kind = endpoint.resource.kind.as_str();
    let spec = &review["spec"];
    let path = Path::new("spec");
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let mut errors = Vec::new();
    if !resource.is_null() && !other.is_null() {
        errors.push(field::invalid(
            &path.child("nonResourceAttributes"),
            print_non_resource(other),
            "cannot be specified in combination with resourceAttributes",
        ));
    }
    if resource.is_null() && other.is_null() {
        errors.push(field::invalid(
            &path.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    if !resource.is_null() {
        for (selector, raw) in [("labelSelector", "rawSelector"), ("fieldSelector", "rawSelector")] {
            let given = &resource[selector];
            if !text(given, raw).is_empty() && given["requirements"].as_array().is_some_and(|r| !r.is_empty())
            {
                errors.push(field::invalid(
                    &path.child("resourceAttributes").child(selector).child(raw),
                    text(given, raw),
                    "may not specified at the same time as requirements",
                ));
            }
        }
    }
    let itself = kind == "SelfSubjectAccessReview";
    if !itself && text(spec, "user").is_empty() && strings(&spec["groups"]).is_empty() {
        errors.push(field::invalid(
            &path.child("user"),
            "",
            "at least one of user or group must be specified",
        ));
    }
    if kind == "LocalSubjectAccessReview" {
        if !resource.is_null() && text(resource, "namespace") != namespace {
            errors.push(field::invalid(
                &path.child("resourceAttributes").child("namespace"),
                text(resource, "namespace"),
                "must match metadata.namespace",
            ));
        }
        if !other.is_null() {
            errors.push(field::invalid(
                &path.child("nonResourceAttributes"),
                print_non_resource(other),
                "disallowed on this kind of request",
            ));
        }
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("authorization.k8s.io", "", "", errors));
    }
    let named;
    let user = if itself {
        &endpoint.request.user
    } else {
        let mut user = UserInfo {
            name: text(spec, "user").to_string(),
            uid: text(spec, "uid").to_string(),
            groups: strings(&spec["groups"]),
            ..UserInfo::default()
        };
        for (key, values) in spec["extra"].as_object().into_iter().flatten() {
            user.extra.insert(key.to_lowercase(), strings(values));
        }
        named = user;
        &named
    };
    let (fields, labels) =
        (raw_selector(&resource["fieldSelector"]), raw_selector(&resource["labelSelector"]));
    let attributes = if resource.is_null() {
        Attributes::path(user, text(other, "verb"), text(other, "path"))
    } else {
        Attributes {
            version: text(resource, "version"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            field_selector: &fields,
            label_selector: &labels,
            ..Attributes::resource(
                user,
                text(resource, "verb"),
                text(resource, "group"),
                text(resource, "resource"),
            )
        }
    };
    let mut status = json!({"allowed": false});
    let decision = endpoint.server.authorizer.authorize(&attributes).await;
    match &decision {
        Decision::Allow(_) => status["allowed"] = json!(true),
        Decision::NoOpinion(_) => {}
        Decision::Deny(_) => status["denied"] = json!(true),
        Decision::Failed(failure) => {
            if failure.denied {
                status["denied"] = json!(true);
            }
            status["evaluationError"] = json!(failure.error);
        }
    }
    let reason = decision.reason();
    if !reason.is_empty() {
        status["reason"] = json!(reason);
    }
    Ok(status)
}

async fn token_review(endpoint: &Endpoint<'_>, review: &Value) -> Result<Value, ApiError> {
    let token = text(&review["spec"], "token");
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let authenticator = &endpoint.server.authenticator;
    let mut audiences = strings(&review["spec"]["audiences"]);
    if audiences.is_empty() {
        audiences = authenticator.api_audiences.clone();
    }
    Ok(match authenticator.token(token, &audiences).await {
        Ok((user, audiences)) => {
            json!({"authenticated": true, "user": user.to_value(), "audiences": audiences})
        }
        Err(error) => {
            let message = match &error {
                crate::authn::TokenError::Invalid => error.to_string(),
                other => format!("[invalid bearer token, {other}]"),
            };
            json!({"user": {}, "error": message})
        }
    })
}

fn rules_review(endpoint: &Endpoint<'_>, review: &Value) -> Result<Value, ApiError> {
    let namespace = text(&review["spec"], "namespace");
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let user = &endpoint.request.user;
    let (mut rules, mut errors) = endpoint.server.authorizer.rbac.rules_and_errors(user, namespace);
    if user.in_group(crate::authn::MASTERS) {
        let star = || vec!["*".to_string()];
        rules.push(PolicyRule {
            verbs: star(),
            api_groups: star(),
            resources: star(),
            ..PolicyRule::default()
        });
        rules.push(PolicyRule { verbs: star(), non_resource_urls: star(), ..PolicyRule::default() });
    }
    let (mut resources, mut others) = (Vec::new(), Vec::new());
    for rule in rules {
        if rule.non_resource_urls.is_empty() {
            let mut out =
                json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
            if !rule.resource_names.is_empty() {
                out["resourceNames"] = json!(rule.resource_names);
            }
            resources.push(out);
        } else {
            others.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    // Authorizers that cannot list what they would allow make the list incomplete.
    let unknown = endpoint.server.authorizer.cannot_list(user);
    let incomplete = !unknown.is_empty();
    errors.extend(unknown);
    let mut status =
        json!({"resourceRules": resources, "nonResourceRules": others, "incomplete": incomplete});
    if !errors.is_empty() {
        status["evaluationError"] = json!(orlop_api::status::aggregate(errors));
    }
    Ok(status)
}
