//! Reads metrics through the API server: `metrics.k8s.io`, `custom.metrics.k8s.io` and `external.metrics.k8s.io`.

use http::Request;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use orlop_api::Quantity;
use serde_json::Value;

use super::replicas::{Sample, Samples};
use crate::error::message;
use crate::objects::selector;

/// A reader of metrics; every error is a text for the condition.
pub(super) struct Metrics {
    pub(super) client: kube::Client,
}

fn milli(value: &Value) -> Option<i64> {
    value.as_str().and_then(|text| Quantity::parse(text).ok()).map(|quantity| quantity.milli_value())
}

fn timestamp(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A selector as a query parameter says it.
fn selector_text(by: Option<&LabelSelector>) -> String {
    by.and_then(selector).map(|selector| selector.to_string()).unwrap_or_default()
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte))
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

impl Metrics {
    /// `what` is the resource that an error names, as `pods.metrics.k8s.io`.
    async fn read(&self, path: &str, what: &str) -> Result<Value, String> {
        let request = Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
        self.client.request(request).await.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 404 && status.details.is_none() => {
                format!("the server could not find the requested resource (get {what})")
            }
            kube::Error::Api(status) if status.code == 503 => {
                format!("the server is currently unable to handle the request (get {what})")
            }
            _ => message(&error),
        })
    }

    /// What the pods of a selector use of a resource; of one container, or of all.
    pub(super) async fn resource(
        &self,
        namespace: &str,
        resource: &str,
        container: Option<&str>,
        pods: &str,
    ) -> Result<Samples, String> {
        let pods = escaped(pods);
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={pods}");
        let list = self.read(&path, "pods.metrics.k8s.io").await;
        let list =
            list.map_err(|error| format!("unable to fetch metrics from resource metrics API: {error}"))?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        Ok(items.iter().filter_map(|item| sample(item, resource, container)).collect())
    }

    /// A metric of the pods of a selector.
    pub(super) async fn pods(
        &self,
        namespace: &str,
        metric: &str,
        by: Option<&LabelSelector>,
        pods: &str,
    ) -> Result<Samples, String> {
        let (pods, by) = (escaped(pods), escaped(&selector_text(by)));
        let path = format!(
            "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/pods/%2A/{}?labelSelector={pods}&metricLabelSelector={by}",
            escaped(metric)
        );
        let list = self.read(&path, "pods.custom.metrics.k8s.io").await;
        let list =
            list.map_err(|error| format!("unable to fetch metrics from custom metrics API: {error}"))?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() {
            return Err("no metrics returned from custom metrics API".to_owned());
        }
        let samples = items.iter().filter_map(|item| {
            let window = SignedDuration::from_secs(item["windowSeconds"].as_i64().unwrap_or(60));
            let sample = Sample { milli: milli(&item["value"])?, at: timestamp(&item["timestamp"]), window };
            Some((item["describedObject"]["name"].as_str()?.to_owned(), sample))
        });
        Ok(samples.collect())
    }

    /// A metric of one object; `resource` is `services` or `deployments.apps`.
    pub(super) async fn object(
        &self,
        namespace: &str,
        (resource, name): (&str, &str),
        metric: &str,
        by: Option<&LabelSelector>,
    ) -> Result<i64, String> {
        let (metric, by) = (escaped(metric), escaped(&selector_text(by)));
        let of = match resource {
            "namespaces" => format!("{}/metrics", escaped(name)),
            _ => format!("{namespace}/{resource}/{}", escaped(name)),
        };
        let path =
            format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{of}/{metric}?metricLabelSelector={by}");
        let list = self.read(&path, &format!("{resource}.custom.metrics.k8s.io")).await;
        let list =
            list.map_err(|error| format!("unable to fetch metrics from custom metrics API: {error}"))?;
        milli(&list["items"][0]["value"])
            .ok_or_else(|| "no metrics returned from custom metrics API".to_owned())
    }

    /// The sum of an external metric's values.
    pub(super) async fn external(
        &self,
        namespace: &str,
        metric: &str,
        by: Option<&LabelSelector>,
    ) -> Result<i64, String> {
        let (metric, by) = (escaped(metric), escaped(&selector_text(by)));
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}?labelSelector={by}"
        );
        let list = self.read(&path, &format!("{metric}.external.metrics.k8s.io")).await;
        let list =
            list.map_err(|error| format!("unable to fetch metrics from external metrics API: {error}"))?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        Ok(items.iter().filter_map(|item| milli(&item["value"])).fold(0, i64::saturating_add))
    }
}

fn sample(item: &Value, resource: &str, container: Option<&str>) -> Option<(String, Sample)> {
    let containers = item["containers"].as_array()?;
    let counted = containers.iter().filter(|one| container.is_none_or(|name| one["name"] == name));
    let amounts: Option<Vec<i64>> = counted.map(|one| milli(&one["usage"][resource])).collect();
    let amounts = amounts.filter(|amounts| !amounts.is_empty())?;
    let window = item["window"].as_str().and_then(|window| window.parse().ok());
    let sample = Sample {
        milli: amounts.into_iter().fold(0, i64::saturating_add),
        at: timestamp(&item["timestamp"]),
        window: window.unwrap_or(SignedDuration::from_secs(60)),
    };
    Some((item["metadata"]["name"].as_str()?.to_owned(), sample))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn samples() {
        let item = json!({"metadata": {"name": "p"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15s", "containers": [
            {"name": "a", "usage": {"cpu": "250m", "memory": "1Mi"}}, {"name": "b", "usage": {"cpu": "1"}}]});
        let check = |resource: &str, container: Option<&str>, expected: Option<i64>| {
            let seen = sample(&item, resource, container).map(|(_, sample)| sample.milli);
            assert_eq!(seen, expected, "{resource} {container:?}");
        };
        check("cpu", None, Some(1250));
        check("cpu", Some("a"), Some(250));
        check("cpu", Some("c"), None);
        check("memory", None, None);
        check("memory", Some("a"), Some(1_048_576_000));
        let window = sample(&item, "cpu", None).map(|(_, sample)| sample.window);
        assert_eq!(window, Some(SignedDuration::from_secs(15)));
        assert_eq!(escaped("app in (a,b)"), "app%20in%20%28a%2Cb%29");
    }
}
