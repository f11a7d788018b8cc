//! What flags change about a server: what it serves, refuses and fills in.

use std::sync::Arc;

use futures::FutureExt as _;
use orlop_apiserver::components::{Component, Health};
use orlop_apiserver::{ApiServer, Options};
use orlop_json::{Value, json};
use orlop_store::memory::MemoryStore;

use crate::support::{Client, admin, server};

async fn with(change: impl FnOnce(&mut Options)) -> Client {
    let mut options = Options::default();
    change(&mut options);
    admin(&ApiServer::new(options, Arc::new(MemoryStore::new())).await.unwrap())
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    })
}

async fn account(client: &Client) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    client.post("/api/v1/namespaces/default/serviceaccounts", account).await.ok();
}

struct Fixed(Health);

impl Component for Fixed {
    fn check(&self) -> futures::future::BoxFuture<'_, Health> {
        futures::future::ready(self.0.clone()).boxed()
    }
}

#[tokio::test]
async fn component_statuses() {
    let client = with(|options| {
        let sick = Health::Unhealthy { message: "not running".into(), error: String::new() };
        options.components = vec![
            ("scheduler".into(), Arc::new(Fixed(sick))),
            ("controller-manager".into(), Arc::new(Fixed(Health::Healthy("ok".into())))),
        ];
    })
    .await;
    const PATH: &str = "/api/v1/componentstatuses";
    const WARNING: &str = "299 - \"v1 ComponentStatus is deprecated in v1.19+\"";
    let answer = client.get(PATH).await;
    assert_eq!(answer.warnings, [WARNING]);
    let item = |name: &str, status: &str, message: &str| {
        json!({
            "metadata": {"name": name},
            "conditions": [{"type": "Healthy", "status": status, "message": message}],
        })
    };
    assert_eq!(
        answer.ok(),
        json!({
            "kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {},
            "items": [
                item("controller-manager", "True", "ok"),
                item("etcd-0", "True", "ok"),
                item("scheduler", "False", "not running"),
            ],
        })
    );
    let one = client.get(&format!("{PATH}/etcd-0")).await;
    assert_eq!(one.warnings, [WARNING]);
    assert_eq!((&one.body["kind"], &one.body["apiVersion"]), (&json!("ComponentStatus"), &json!("v1")));

    let names = async |query: &str| -> Vec<String> {
        let list = client.get(&format!("{PATH}?{query}")).await.ok();
        list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].to_string()).collect()
    };
    assert_eq!(names("fieldSelector=metadata.name=etcd-0").await, ["\"etcd-0\""]);
    assert_eq!(names("labelSelector=a=b").await, [""; 0]);
    assert_eq!(names("labelSelector=!a").await.len(), 3);
    client.get(&format!("{PATH}/nobody")).await.refused(500, "", "Component not found: nobody");
    assert_eq!(client.post(PATH, json!({})).await.code, 405);
    assert_eq!(client.delete(&format!("{PATH}/etcd-0"), json!({})).await.code, 405);

    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = client.call("GET", PATH, &accept, &Value::Null).await.ok();
    let columns: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "Status", "Message", "Error"]);
    assert_eq!(table["rows"][2]["cells"], json!(["scheduler", "Unhealthy", "not running", ""]));
}

/// Every resource of the table is served, with its verbs.
#[tokio::test]
async fn everything_is_served() {
    let client = admin(&server().await);
    for row in orlop_api::resources::all() {
        let path = match row.group.as_str() {
            "" => format!("/api/{}", row.version),
            group => format!("/apis/{group}/{}", row.version),
        };
        let list = client.get(&path).await.ok();
        let found = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == *row.plural);
        let Some(found) = found else { panic!("{} is not served", row.plural) };
        assert_eq!(found["verbs"], json!(row.verbs), "{}", row.plural);
        for subresource in &row.subresources {
            let name = format!("{}/{}", row.plural, subresource.name);
            let found = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == *name);
            assert_eq!(found.map(|r| &r["verbs"]), Some(&json!(subresource.verbs)), "{name}");
        }
    }
}

#[tokio::test]
async fn privileged_containers() {
    let client = with(|options| options.allow_privileged = false).await;
    account(&client).await;
    let mut object = pod("p");
    object["spec"]["initContainers"] =
        json!([{"name": "i", "image": "i", "securityContext": {"privileged": true}}]);
    let message = "Pod \"p\" is invalid: spec.initContainers[0].securityContext.privileged: Forbidden: disallowed by cluster policy";
    client.post("/api/v1/namespaces/default/pods", object.clone()).await.refused(422, "Invalid", message);
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
                {"name": "c", "image": "i", "securityContext": {"privileged": true}},
            ]}},
        },
    });
    let answer = client.post("/apis/apps/v1/namespaces/default/deployments", deployment).await;
    assert!(answer.body["message"].as_str().unwrap().contains(
        "spec.template.spec.containers[0].securityContext.privileged: Forbidden: disallowed by cluster policy"
    ));
    client.post("/api/v1/namespaces/default/pods", pod("p")).await.ok();
}

#[tokio::test]
async fn tolerations() {
    let client = with(|options| {
        options.default_not_ready_toleration_seconds = 7;
        options.default_unreachable_toleration_seconds = 9;
    })
    .await;
    account(&client).await;
    let made = client.post("/api/v1/namespaces/default/pods", pod("p")).await.ok();
    let seconds: Vec<i64> = made["spec"]["tolerations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["tolerationSeconds"].as_i64().unwrap())
        .collect();
    assert_eq!(seconds, [7, 9]);
}

#[tokio::test]
async fn versions_that_are_not_served() {
    let client = with(|options| {
        let set = [("batch/v1", false), ("apps/v1/deployments", false), ("api/beta", true)];
        options.runtime_config = set.map(|(key, value)| (key.to_string(), value)).into();
    })
    .await;
    assert_eq!(client.get("/apis/batch/v1").await.code, 404);
    assert_eq!(client.get("/apis/batch/v1/namespaces/default/jobs").await.code, 404);
    assert_eq!(client.get("/apis/apps/v1/deployments").await.code, 404);
    assert_eq!(client.get("/apis/apps/v1/daemonsets").await.code, 200);
    const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
    assert_eq!(client.get(&format!("{SERVICES}/v1.batch")).await.code, 404);
    assert_eq!(client.get(&format!("{SERVICES}/v1.apps")).await.code, 200);
    let groups = client.get("/apis").await.ok();
    assert!(groups["groups"].as_array().unwrap().iter().all(|group| group["name"] != "batch"));

    let refused = Options { runtime_config: [("nope/v1".to_string(), true)].into(), ..Options::default() };
    let error = ApiServer::new(refused, Arc::new(MemoryStore::new())).await.err().unwrap();
    assert_eq!(error.to_string(), "unknown api groups nope");
}

/// What a server kept and does not serve any more goes when it starts; what it kept wrong is put right.
#[tokio::test]
async fn api_services_follow_the_settings() {
    const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
    let store = Arc::new(MemoryStore::new());
    let start = async |off: &[&str]| {
        let runtime_config = off.iter().map(|key| (key.to_string(), false)).collect();
        let options = Options { runtime_config, ..Options::default() };
        admin(&ApiServer::new(options, store.clone()).await.unwrap())
    };
    let first = start(&[]).await;
    let batch = first.get(&format!("{SERVICES}/v1.batch")).await.ok();
    assert_eq!(batch["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    let priority = &batch["spec"]["groupPriorityMinimum"];
    let wrong = json!({"spec": {"groupPriorityMinimum": 1}});
    first.patch("merge", &format!("{SERVICES}/v1.apps"), wrong.clone()).await.ok();
    let given_up = json!({"metadata": {"labels": null}, "spec": {"groupPriorityMinimum": 1}});
    first.patch("merge", &format!("{SERVICES}/v1.policy"), given_up).await.ok();
    let second = start(&["batch/v1"]).await;
    assert_eq!(second.get(&format!("{SERVICES}/v1.batch")).await.code, 404);
    let apps = second.get(&format!("{SERVICES}/v1.apps")).await.ok();
    assert_ne!(apps["spec"]["groupPriorityMinimum"], 1);
    let policy = second.get(&format!("{SERVICES}/v1.policy")).await.ok();
    assert_eq!(policy["spec"]["groupPriorityMinimum"], 1);
    let third = start(&[]).await;
    let again = third.get(&format!("{SERVICES}/v1.batch")).await.ok();
    assert_eq!(&again["spec"]["groupPriorityMinimum"], priority);
}

/// APIServices of custom resources come, are kept and go.
#[tokio::test]
async fn api_services_of_custom_resources() {
    const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let client = admin(&server().await);
    let eventually = async |what: &str, path: String, holds: &dyn Fn(&crate::support::Answer) -> bool| {
        for _ in 0..200 {
            let answer = client.get(&path).await;
            if holds(&answer) {
                return answer.body;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        panic!("did not happen: {what}");
    };
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        })
    };
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.x.example.com"},
        "spec": {
            "group": "x.example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [version("v1", true), version("v1beta1", false)],
        },
    });
    client.post(DEFINITIONS, definition).await.ok();
    for name in ["v1.x.example.com", "v1beta1.x.example.com"] {
        let available =
            |answer: &crate::support::Answer| answer.body["status"]["conditions"][0]["status"] == "True";
        let made = eventually("an APIService is made", format!("{SERVICES}/{name}"), &available).await;
        assert_eq!(made["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
        assert_eq!(made["spec"]["groupPriorityMinimum"], 1000);
        assert_eq!(made["spec"]["versionPriority"], 100);
        let condition = &made["status"]["conditions"][0];
        assert_eq!((&condition["type"], &condition["reason"]), (&json!("Available"), &json!("Local")));
    }
    // What it keeps is put right; what somebody took is left.
    let path = format!("{SERVICES}/v1.x.example.com");
    client.patch("merge", &path, json!({"spec": {"versionPriority": 7}})).await.ok();
    let right = |answer: &crate::support::Answer| answer.body["spec"]["versionPriority"] == 100;
    eventually("the priority is put right", path.clone(), &right).await;
    // A version that is not served any more loses its APIService, the last one too.
    let less = json!([{"op": "replace", "path": "/spec/versions/1/served", "value": false}]);
    client.patch("json", &format!("{DEFINITIONS}/things.x.example.com"), less).await.ok();
    let gone = |answer: &crate::support::Answer| answer.code == 404;
    eventually("the second version goes", format!("{SERVICES}/v1beta1.x.example.com"), &gone).await;
    client.delete(&format!("{DEFINITIONS}/things.x.example.com"), json!({})).await.ok();
    eventually("the first version goes", path, &gone).await;
}

#[tokio::test]
async fn dual_stack() {
    let client = with(|options| {
        options.service_cidrs =
            vec![("10.96.0.0".parse().unwrap(), 16), ("fd00:10:96::".parse().unwrap(), 108)];
    })
    .await;
    let range = client.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes").await.ok();
    assert_eq!(range["spec"]["cidrs"], json!(["10.96.0.0/16", "fd00:10:96::/108"]));
    let service = |name: &str, policy: Option<&str>| {
        let mut spec = json!({"ports": [{"port": 80}], "selector": {"a": "b"}});
        if let Some(policy) = policy {
            spec["ipFamilyPolicy"] = json!(policy);
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    };
    let families = |service: &Value| -> Vec<&'static str> {
        let all = service["spec"]["clusterIPs"].as_array().unwrap();
        all.iter().map(|ip| if ip.as_str().unwrap().contains(':') { "IPv6" } else { "IPv4" }).collect()
    };
    const PATH: &str = "/api/v1/namespaces/default/services";
    for (name, policy, expected) in [
        ("single", None, &["IPv4"][..]),
        ("prefer", Some("PreferDualStack"), &["IPv4", "IPv6"][..]),
        ("require", Some("RequireDualStack"), &["IPv4", "IPv6"][..]),
    ] {
        let made = client.post(PATH, service(name, policy)).await.ok();
        assert_eq!(families(&made), expected, "{name}");
        assert_eq!(made["spec"]["ipFamilies"], json!(expected), "{name}");
    }
    // A service becomes dual stack and ceases to be; the address it had first stays.
    let before = client.get(&format!("{PATH}/single")).await.ok();
    let more = json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}});
    let both = client.patch("merge", &format!("{PATH}/single"), more).await.ok();
    assert_eq!(families(&both), ["IPv4", "IPv6"]);
    assert_eq!(both["spec"]["clusterIP"], before["spec"]["clusterIP"]);
    let second = both["spec"]["clusterIPs"][1].as_str().unwrap().to_string();
    let address = format!("/apis/networking.k8s.io/v1/ipaddresses/{second}");
    client.get(&address).await.ok();
    let less = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    let one = client.patch("merge", &format!("{PATH}/single"), less).await.ok();
    assert_eq!(one["spec"]["clusterIPs"], json!([before["spec"]["clusterIP"]]));
    assert_eq!(client.get(&address).await.code, 404);
}

#[tokio::test]
async fn pages_of_other_origins() {
    let client = with(|options| options.cors_allowed_origins = vec!["^https://a[.]example$".into()]).await;
    let headers = async |method: &str, origin: &str| {
        let response = client.send(method, "/version", &[("origin", origin)], "").await;
        let allowed = response.headers().get("access-control-allow-origin").cloned();
        (response.status().as_u16(), allowed.map(|value| value.to_str().unwrap().to_string()))
    };
    let ours = Some("https://a.example".to_string());
    assert_eq!(headers("GET", "https://a.example").await, (200, ours.clone()));
    assert_eq!(headers("OPTIONS", "https://a.example").await, (204, ours));
    assert_eq!(headers("GET", "https://b.example").await, (200, None));
}

#[tokio::test]
async fn the_index() {
    let client = admin(&server().await);
    let index = client.get("/").await.ok();
    let paths: Vec<&str> = index["paths"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    for path in ["/apis/", "/openapi/v3/", "/readyz/etcd-readiness", "/healthz/etcd", "/statusz", "/flagz"] {
        assert!(paths.contains(&path), "{path}");
    }
    assert!(!paths.iter().any(|path| path.starts_with("/debug") || path.contains("kms-provider")));
    for path in ["/readyz", "/livez/etcd", "/readyz/etcd-readiness"] {
        assert_eq!(client.get(path).await.body, "ok", "{path}");
    }
    assert_eq!(client.get("/readyz/kms-provider-0").await.code, 404);
}
