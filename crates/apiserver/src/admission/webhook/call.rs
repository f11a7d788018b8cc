//! One call of one webhook: the review out, the verdict back.

use orlop_api::field::go_quote;
use orlop_api::status::{ApiError, Status};
use orlop_json::{Value, json};

use super::{Matched, Request, Webhook, review, shown};

/// Why a webhook did not let a request pass.
pub(super) enum Failure {
    /// It could not be asked, or its answer not be had or understood; `failurePolicy` decides. The code is for the
    /// metrics.
    Call { reason: String, code: u16 },
    /// It said no.
    Refused(ApiError),
    /// The request is one it must not be asked about.
    Unfit(ApiError),
}

impl Failure {
    fn call(code: u16, reason: impl Into<String>) -> Failure {
        Failure::Call { reason: reason.into(), code }
    }

    /// What it answered is not understood.
    fn unclear(reason: impl Into<String>) -> Failure {
        Failure::call(503, reason)
    }
}

/// Asks a webhook; a patch, if it wants a change.
pub(super) async fn call(
    hook: &Webhook,
    request: &Request<'_>,
    matched: &Matched,
    mutating: bool,
) -> Result<Option<Value>, Failure> {
    if request.call.dry_run && !matches!(hook.side_effects.as_str(), "None" | "NoneOnDryRun") {
        let message = format!("admission webhook {} does not support dry run", go_quote(&hook.name));
        return Err(Failure::Unfit(ApiError::bad_request(message)));
    }
    let version = hook.review.ok_or_else(|| {
        Failure::call(
            400,
            "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)",
        )
    })?;
    let uid = uuid::Uuid::new_v4().to_string();
    let body = {
        let (object, old) = shown(request, matched);
        review::review(version, &uid, request, matched, &object, &old).to_string()
    };
    let client = match &hook.client {
        Ok(client) => client,
        Err(error) => return Err(Failure::call(500, format!("could not get REST client: {error}"))),
    };
    let answer = client
        .post(body.into(), hook.timeout)
        .await
        .map_err(|error| Failure::call(error.code, format!("failed to call webhook: {error}")))?;
    let verdict = review::read(&answer, version, &uid, mutating)
        .map_err(|error| Failure::unclear(format!("received invalid webhook response: {error}")))?;
    for (key, value) in &verdict.annotations {
        request.call.annotate(format!("{}/{key}", hook.name), value.as_str());
    }
    for warning in &verdict.warnings {
        request.call.warnings.add(warning.as_str());
    }
    if !verdict.allowed {
        return Err(Failure::Refused(denied(&hook.name, verdict.result)));
    }
    if verdict.patch.is_empty() {
        return Ok(None);
    }
    if !verdict.patch_type.is_empty() && verdict.patch_type != "JSONPatch" {
        let reason = format!("unsupported patch type {}", go_quote(&verdict.patch_type));
        return Err(Failure::call(400, reason));
    }
    let patch: Value = orlop_json::from_slice(&verdict.patch).map_err(|error| {
        Failure::unclear(format!("received undecodable patch in webhook response: {error}"))
    })?;
    match &patch {
        Value::Null => Ok(None),
        Value::Array(operations) if operations.is_empty() => Ok(None),
        Value::Array(_) => Ok(Some(patch)),
        _ => Err(Failure::unclear(
            "received undecodable patch in webhook response: json: cannot unmarshal object into Go value of type jsonpatch.Patch",
        )),
    }
}

/// The refusal of a webhook: its own Status, made to say who refused, and never with a code of success.
fn denied(webhook: &str, result: Option<Value>) -> ApiError {
    let mut result = result.unwrap_or_else(|| json!({}));
    let by = format!("admission webhook {} denied the request", go_quote(webhook));
    let text = |key: &str| result.get(key).and_then(Value::as_str).unwrap_or("");
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = result.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| (400..600).contains(code)).unwrap_or(400);
    let reason = text("reason").to_string();
    let mut error = ApiError::generic(code, &reason, message.clone());
    result["status"] = json!("Failure");
    result["code"] = json!(code);
    result["message"] = json!(message);
    // Details that are not of the known form are left out rather than refused.
    if let Ok(status) = orlop_json::from_value::<Status>(&result) {
        error.0.details = status.details;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals() {
        let check = |result: Value, code: u16, reason: &str, message: &str| {
            let error = denied("w", Some(result).filter(|r| !r.is_null()));
            assert_eq!(
                (error.code(), error.reason(), error.status().message.as_str()),
                (code, reason, message)
            );
        };
        check(Value::Null, 400, "", "admission webhook \"w\" denied the request without explanation");
        check(
            json!({"message": "no", "code": 403, "reason": "Forbidden"}),
            403,
            "Forbidden",
            "admission webhook \"w\" denied the request: no",
        );
        check(
            json!({"reason": "Because", "code": 200}),
            400,
            "Because",
            "admission webhook \"w\" denied the request: Because",
        );
    }
}
