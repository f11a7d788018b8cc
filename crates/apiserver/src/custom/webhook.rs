//! Conversion by a webhook: `ConversionReview`, `apiextensions.k8s.io/v1` (and `v1beta1`, which looks the same).
//!
//! Answers to `apiserver/conversion/webhook_converter.go`.

use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::definition::{Definition, Webhook};
use crate::registry::Registry;
use crate::registry::object::meta;

/// Versions of ConversionReview that are spoken here.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// Asks the webhook to convert objects to `api_version`.
pub async fn convert(
    registry: &Registry,
    definition: &Definition,
    webhook: &Webhook,
    objects: Vec<Value>,
    api_version: &str,
) -> Result<Vec<Value>, ApiError> {
    let from = objects.first().and_then(|o| o.get("apiVersion")).and_then(Value::as_str).unwrap_or("");
    let what = format!("{from}, Kind={}", definition.kind);
    let failed = |why: String| ApiError::internal(format!("conversion webhook for {what} failed: {why}"));
    let Some(review) = webhook.review_versions.iter().find(|v| REVIEWS.contains(&v.as_str())) else {
        return Err(failed("it understands no known version of ConversionReview".to_string()));
    };
    let uid = uuid::Uuid::new_v4().to_string();
    let review_version = format!("apiextensions.k8s.io/{review}");
    let request = json!({
        "kind": "ConversionReview",
        "apiVersion": review_version,
        "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects},
    });
    let answer = webhook.client.post(registry, &webhook.config, request).await.map_err(failed)?;
    let converted = response(&answer, &review_version, &uid).map_err(failed)?;
    if converted.len() != objects.len() {
        return Err(ApiError::internal(format!(
            "conversion webhook for {what} returned {} objects, expected {}",
            converted.len(),
            objects.len()
        )));
    }
    let mut out = Vec::with_capacity(converted.len());
    for (at, (new, old)) in converted.into_iter().zip(&objects).enumerate() {
        let wrong = |field: &str, expected: &str| {
            let received = new.get(field).and_then(Value::as_str).unwrap_or("");
            let name = if field == "apiVersion" { "groupVersion" } else { field };
            (received != expected).then(|| {
                ApiError::internal(format!(
                    "conversion webhook for {what} returned invalid converted object at index {at}: invalid {name} (expected {expected}, received {received})"
                ))
            })
        };
        if let Some(error) = wrong("apiVersion", api_version).or_else(|| wrong("kind", &definition.kind)) {
            return Err(error);
        }
        out.push(restore_metadata(new, old).map_err(|why| {
            ApiError::internal(format!(
                "conversion webhook for {what} returned invalid metadata in object at index {at}: {why}"
            ))
        })?);
    }
    Ok(out)
}

/// The converted objects of an answer.
fn response(answer: &Value, review_version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let text =
        |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or("").to_string();
    let (kind, version) = (text(answer, "kind"), text(answer, "apiVersion"));
    if kind != "ConversionReview" || version != review_version {
        return Err(format!(
            "expected webhook response of {review_version}, Kind=ConversionReview, got {version}, Kind={kind}"
        ));
    }
    let Some(response) = answer.get("response").filter(|response| response.is_object()) else {
        return Err("no response provided".to_string());
    };
    if text(response, "uid") != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(response, "uid")));
    }
    let result = response.get("result").cloned().unwrap_or_default();
    if text(&result, "status") != "Success" {
        let message = text(&result, "message");
        return Err(if text(&result, "status") == "Failure" && !message.is_empty() {
            message
        } else {
            format!("response.result.status was '{}', not 'Success'", text(&result, "status"))
        });
    }
    Ok(response.get("convertedObjects").and_then(Value::as_array).cloned().unwrap_or_default())
}

/// A webhook may change labels and annotations; the rest of metadata is what it was.
fn restore_metadata(mut new: Value, old: &Value) -> Result<Value, String> {
    if !new.get("metadata").is_some_and(Value::is_object) {
        return Err("missing metadata in converted object".to_string());
    }
    for field in ["name", "namespace", "uid"] {
        let (now, before) = (meta(&new, field), meta(old, field));
        if now != before {
            let shown = if field == "uid" { "UID" } else { field };
            return Err(format!("must have the same {shown}: {before} != {now}"));
        }
    }
    let mut metadata = old["metadata"].clone();
    for field in ["labels", "annotations"] {
        match new["metadata"].get(field).filter(|given| !given.is_null()) {
            Some(given) => metadata[field] = given.clone(),
            None => {
                if let Some(metadata) = metadata.as_object_mut() {
                    metadata.remove(field);
                }
            }
        }
    }
    new["metadata"] = metadata;
    Ok(new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers() {
        let check = |answer: Value, expected: Result<usize, &str>| {
            let got = response(&answer, "apiextensions.k8s.io/v1", "u").map(|all| all.len());
            assert_eq!(got, expected.map_err(String::from), "{answer}");
        };
        let review = |response: Value| json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
        check(review(json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [{}]})), Ok(1));
        check(review(json!({"uid": "x"})), Err(r#"expected response.uid="u", got "x""#));
        check(review(json!({"uid": "u", "result": {"status": "Failure", "message": "no"}})), Err("no"));
        check(review(json!({"uid": "u", "result": {}})), Err("response.result.status was '', not 'Success'"));
        check(review(Value::Null), Err("no response provided"));
        check(
            json!({"kind": "X"}),
            Err("expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got , Kind=X"),
        );
    }

    #[test]
    fn metadata_is_restored() {
        let old = json!({"metadata": {"name": "a", "uid": "u", "generation": 2, "labels": {"x": "y"}}});
        let new = json!({"metadata": {"name": "a", "uid": "u", "generation": 9, "annotations": {"c": "d"}}, "spec": 1});
        assert_eq!(
            restore_metadata(new, &old).unwrap(),
            json!({"metadata": {"name": "a", "uid": "u", "generation": 2, "annotations": {"c": "d"}}, "spec": 1})
        );
        assert_eq!(
            restore_metadata(json!({"metadata": {"name": "b"}}), &old).unwrap_err(),
            "must have the same name: a != b"
        );
    }
}
