use orlop_apiserver::UserInfo;
use orlop_json::{Value, json};

use crate::support::{Client, admin, config_map, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn rights_come_from_roles() {
    let server = server().await;
    let (admin, jane) = (admin(&server), Client::new(&server, UserInfo::new("jane", &[])));
    admin.post(MAPS, config_map("a", json!({}))).await.ok();
    jane.get(MAPS).await.refused(
        403,
        "Forbidden",
        "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"",
    );
    jane.get("/metrics").await.refused(
        403,
        "Forbidden",
        "forbidden: User \"jane\" cannot get path \"/metrics\"",
    );
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]});
    admin.post(&format!("{rbac}/roles"), role).await.ok();
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    admin.post(&format!("{rbac}/rolebindings"), binding).await.ok();
    assert_eq!(jane.get(MAPS).await.ok()["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(jane.delete(&format!("{MAPS}/a"), Value::Null).await.code, 403);
    // The aggregated role `view` works although no controller has written its rules.
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "v"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    admin.post(&format!("{rbac}/rolebindings"), binding).await.ok();
    jane.get("/api/v1/namespaces/default/pods").await.ok();
    assert_eq!(jane.get("/api/v1/namespaces/default/secrets").await.code, 403);
}

#[tokio::test]
async fn tokens_end_with_what_they_are_bound_to() {
    let server = server().await;
    let admin = admin(&server);
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    admin
        .post(accounts, json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}}))
        .await
        .ok();
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let token = admin.post(&format!("{accounts}/robot/token"), request).await.ok();
    let token = token["status"]["token"].as_str().unwrap().to_string();
    let review = || {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let admin = admin.clone();
        async move { admin.post("/apis/authentication.k8s.io/v1/tokenreviews", body).await.ok()["status"].clone() }
    };
    let status = review().await;
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:robot");
    admin.delete(&format!("{accounts}/robot"), Value::Null).await.ok();
    assert_eq!(review().await.get("authenticated"), None);
}

#[tokio::test]
async fn kubelets_read_only_what_their_pods_need() {
    let server = server().await;
    let (admin, node) = (admin(&server), Client::new(&server, UserInfo::node("n1")));
    let secret = |name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
    for name in ["mine", "other"] {
        admin.post("/api/v1/namespaces/default/secrets", secret(name)).await.ok();
    }
    admin
        .post(
            "/api/v1/namespaces/default/serviceaccounts",
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
        )
        .await
        .ok();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n1",
        "containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "secret": {"secretName": "mine"}}]}});
    let pod = admin.post("/api/v1/namespaces/default/pods", pod).await.ok();
    assert_eq!(pod["spec"]["serviceAccountName"], "default");
    assert!(
        pod["spec"]["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|v| v["name"].as_str().unwrap().starts_with("kube-api-access-"))
    );
    assert_eq!(node.get("/api/v1/namespaces/default/secrets/mine").await.code, 200);
    node.get("/api/v1/namespaces/default/secrets/other").await.refused(
        403,
        "Forbidden",
        "secrets \"other\" is forbidden: User \"system:node:n1\" cannot get resource \"secrets\" in API group \"\" in the namespace \"default\": no relationship found between node 'n1' and this object",
    );
    assert_eq!(
        node.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.ok()["items"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    assert_eq!(node.get("/api/v1/pods").await.code, 403);
}

#[tokio::test]
async fn binding_and_graceful_deletion() {
    let server = server().await;
    let admin = admin(&server);
    admin
        .post(
            "/api/v1/namespaces/default/serviceaccounts",
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
        )
        .await
        .ok();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    admin.post(pods, pod).await.ok();
    let bind = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(admin.post(&format!("{pods}/p/binding"), bind.clone()).await.code, 201);
    let bound = admin.get(&format!("{pods}/p")).await.ok();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert!(bound["status"]["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "PodScheduled"));
    admin.post(&format!("{pods}/p/binding"), bind).await.refused(
        409,
        "Conflict",
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\"",
    );
    let deleting = admin.delete(&format!("{pods}/p"), Value::Null).await.ok();
    assert_eq!(deleting["metadata"]["deletionGracePeriodSeconds"], 30);
    admin.delete(&format!("{pods}/p"), json!({"gracePeriodSeconds": 0})).await.ok();
    assert_eq!(admin.get(&format!("{pods}/p")).await.code, 404);
}

#[tokio::test]
async fn nobody_grants_what_he_does_not_hold() {
    let server = server().await;
    let admin = admin(&server);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let all = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "writer"},
        "rules": [{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["*"], "verbs": ["*"]}]});
    // "*" would include escalate; only plain verbs are given.
    let mut role = all.clone();
    role["rules"][0]["verbs"] = json!(["create", "get", "update"]);
    admin.post(&format!("{rbac}/clusterroles"), role).await.ok();
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "w"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "writer"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    admin.post(&format!("{rbac}/clusterrolebindings"), binding).await.ok();
    let jane = Client::new(&server, UserInfo::new("jane", &[]));
    let secret_reader = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "s"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]});
    jane.post(&format!("{rbac}/clusterroles"), secret_reader).await.refused(
        403,
        "Forbidden",
        "clusterroles.rbac.authorization.k8s.io \"s\" is forbidden: user \"jane\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}",
    );
}
