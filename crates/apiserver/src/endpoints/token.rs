//! `serviceaccounts/token`: tokens on request (`authentication.k8s.io/v1` TokenRequest).

use bytes::Bytes;
use orlop_api::decode::Gvk;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::Endpoint;
use crate::admission::ObjectKind;
use crate::authn::BoundObject;
use crate::authn::service_account::TokenSpec;
use crate::http::body::{self, Response};
use crate::registry::object::meta;
use crate::registry::options::WriteOptions;
use crate::registry::{Call, now, render};

const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// A mounted token asks for this; the server lets it live a year and warns when it is used beyond (KEP-1205).
const EXTENDABLE_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

pub(super) async fn create(endpoint: &Endpoint<'_>, body: Bytes) -> Result<Response, ApiError> {
    let options = WriteOptions::parse(&endpoint.request.query, "CreateOptions", false)?;
    let gvk = Gvk { group: "authentication.k8s.io", version: "v1", kind: "TokenRequest" };
    let mut request = endpoint.decode(&body, &gvk, &options)?;
    let manager = endpoint.manager(&options);
    let call = endpoint.write_call(&options, &manager);
    let kind = ObjectKind::new(gvk.group, gvk.version, gvk.kind);
    endpoint.admit_action(&call, &mut request, kind).await?;
    check_address(&request, &call)?;
    let account = endpoint.server.registry.get(&call)?.value();
    let uid = account["metadata"]["uid"].as_str().unwrap_or("").to_string();
    let asked_uid = meta(&request, "uid");
    if !asked_uid.is_empty() && asked_uid != uid {
        return Err(ApiError::conflict(
            gvk.group,
            gvk.kind,
            call.name,
            format!(
                "the UID in the token request ({asked_uid}) does not match the UID of the service account ({uid})"
            ),
        ));
    }

    let asked = request.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_SECONDS);
    request["spec"]["expirationSeconds"] = json!(asked);
    crate::managed::update_as(&gvk, "token", &manager, None, &mut request);
    let spec_path = Path::new("spec");
    let mut errors = ErrorList::new();
    if asked < MIN_SECONDS {
        errors.push(field::invalid(
            &spec_path.child("expirationSeconds"),
            asked,
            "may not specify a duration less than 10 minutes",
        ));
    }
    if asked > MAX_SECONDS {
        errors.push(field::invalid(
            &spec_path.child("expirationSeconds"),
            asked,
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", errors));
    }
    let mut audiences: Vec<String> = request
        .pointer("/spec/audiences")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(|a| a.as_str().map(String::from)).collect())
        .unwrap_or_default();
    let own = &endpoint.server.options.api_audiences;
    if audiences.is_empty() {
        audiences = own.clone();
    }
    let mut spec = TokenSpec {
        namespace: call.namespace.to_string(),
        account: BoundObject { name: call.name.to_string(), uid },
        audiences: audiences.clone(),
        seconds: asked,
        warn_after: None,
        pod: None,
        secret: None,
        node: None,
    };
    bind(endpoint, &request["spec"]["boundObjectRef"], &mut spec)?;
    let limit = endpoint.server.options.service_account_max_token_expiration;
    if limit > 0 && spec.seconds > limit {
        let shortened = format!("requested expiration of {asked} seconds shortened to {limit} seconds");
        call.warnings.add(shortened);
        spec.seconds = limit;
    }
    let shown = spec.seconds;
    let extends = endpoint.server.options.service_account_extend_token_expiration;
    if extends
        && shown == EXTENDABLE_SECONDS
        && spec.pod.is_some()
        && audiences.iter().all(|a| own.contains(a))
    {
        spec.warn_after = Some(shown);
        spec.seconds = EXTENDED_SECONDS;
    }
    let tokens = &endpoint.server.authenticator.service_accounts;
    let (token, expires, id) = tokens
        .issue(&spec)
        .map_err(|error| ApiError::internal(format!("failed to generate token: {error}")))?;
    endpoint
        .request
        .annotations
        .add("authentication.kubernetes.io/issued-credential-id", format!("JTI={id}"));
    let expires = if spec.warn_after.is_some() { expires - spec.seconds + shown } else { expires };
    let at = jiff::Timestamp::from_second(expires).unwrap_or_default();
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = json!(shown);
    if request["spec"].get("boundObjectRef").is_none() {
        request["spec"]["boundObjectRef"] = Value::Null;
    }
    let metadata = crate::registry::object::metadata_mut(&mut request);
    metadata.insert("name".into(), json!(call.name));
    metadata.insert("namespace".into(), json!(call.namespace));
    metadata.insert("uid".into(), account["metadata"]["uid"].clone());
    metadata.insert("creationTimestamp".into(), json!(now()));
    request["status"] = json!({
        "token": token,
        "expirationTimestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    crate::registry::object::order(&mut request);
    let accept = endpoint.request.accept;
    Ok(body::response(201, accept.format.content_type(), render::encode(&request, accept)))
}

/// A request that names its account names that of the URL.
fn check_address(request: &Value, call: &Call<'_>) -> Result<(), ApiError> {
    for (field, what, actual) in [
        ("name", "service account name", call.name),
        ("namespace", "service account namespace", call.namespace),
    ] {
        let asked = meta(request, field);
        if !asked.is_empty() && asked != actual {
            let path = Path::new("metadata").child(field);
            let error = field::invalid(&path, asked, format!("must match the {what} if specified"));
            return Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", call.name, vec![error]));
        }
    }
    Ok(())
}

/// Checks the object the token shall be bound to.
fn bind(endpoint: &Endpoint<'_>, reference: &Value, spec: &mut TokenSpec) -> Result<(), ApiError> {
    if reference.is_null() {
        return Ok(());
    }
    let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or("");
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let resources = &endpoint.server.registry.resources;
    let plural = match (kind, text("apiVersion")) {
        ("Pod", "v1") => "pods",
        ("Secret", "v1") => "secrets",
        ("Node", "v1") => "nodes",
        (kind, version) => {
            let (group, version) = orlop_api::meta::split_api_version(version);
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    let key = if kind == "Node" { name.to_string() } else { format!("{}/{name}", spec.namespace) };
    let object = resources
        .cache("", kind)
        .and_then(|cache| cache.get(&key))
        .ok_or_else(|| ApiError::not_found("", plural, name))?
        .value();
    let actual = object["metadata"]["uid"].as_str().unwrap_or("").to_string();
    if !uid.is_empty() && uid != actual {
        // Upstream names the kind here, where every other conflict names the resource.
        return Err(ApiError::conflict(
            "",
            kind,
            name,
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        ));
    }
    let bound = BoundObject { name: name.to_string(), uid: actual };
    match kind {
        "Pod" => {
            let account = object.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or("");
            if account != spec.account.name {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {} to pod running with different serviceaccount name.",
                    field::go_quote(&spec.account.name)
                )));
            }
            if let Some(node) =
                object.pointer("/spec/nodeName").and_then(Value::as_str).filter(|n| !n.is_empty())
            {
                spec.node = resources.cache("", "Node").and_then(|c| c.get(node)).map(|entry| BoundObject {
                    name: node.to_string(),
                    uid: entry.value()["metadata"]["uid"].as_str().unwrap_or("").to_string(),
                });
            }
            spec.pod = Some(bound);
        }
        "Secret" => spec.secret = Some(bound),
        _ => spec.node = Some(bound),
    }
    Ok(())
}
