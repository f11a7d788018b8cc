//! Certificates, load balancers, Service ranges and ResourceClaims against a real API server in memory.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::time::Duration;

use base64::Engine;
use cluster::{Cluster, conditions, eventually, start};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use orlop_controllers::{Options, Signing};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair};
use serde_json::{Value, json};

fn named(common_name: &str, organization: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params
}

async fn request(cluster: &Cluster, name: &str, signer: &str, params: &CertificateParams) {
    let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let request = base64::engine::general_purpose::STANDARD.encode(request);
    let body = json!({"metadata": {"name": name}, "spec": {"request": request, "expirationSeconds": 3600,
        "signerName": format!("kubernetes.io/{signer}"), "usages": ["digital signature", "client auth"]}});
    let api = Api::<CertificateSigningRequest>::all(cluster.admin.clone());
    api.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_approved_and_signed() {
    let key = KeyPair::generate().unwrap();
    let mut ca = named("test-ca", "test");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let signing = Signing {
        cert_pem: ca.self_signed(&key).unwrap().pem(),
        key_pem: key.serialize_pem(),
        duration: Duration::from_secs(24 * 3600),
    };
    let cluster = start(Options { signing: Some(signing), ..Options::default() }).await;
    let csr = |name: &str| format!("apis/certificates.k8s.io/v1/certificatesigningrequests/{name}");
    let signed = |name: &'static str| {
        let (cluster, path) = (&cluster, csr(name));
        eventually("it is signed", move || {
            let path = path.clone();
            async move {
                let seen = cluster.get(&path).await;
                if seen["status"]["certificate"].is_string() { Ok(seen) } else { Err(seen) }
            }
        })
    };

    request(&cluster, "kubelet", "kube-apiserver-client-kubelet", &named("system:node:n1", "system:nodes"))
        .await;
    let kubelet = signed("kubelet").await;
    assert_eq!(conditions(&kubelet)["Approved"], "True AutoApproved");
    let pem = kubelet["status"]["certificate"].as_str().unwrap();
    let pem = base64::engine::general_purpose::STANDARD.decode(pem).unwrap();
    assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----\n"));

    // People are approved by people.
    request(&cluster, "person", "kube-apiserver-client", &named("alice", "dev")).await;
    request(&cluster, "wrong", "kube-apiserver-client-kubelet", &named("alice", "dev")).await;
    for name in ["person", "wrong"] {
        let approval = json!({"status": {"conditions": [
            {"type": "Approved", "status": "True", "reason": "Test", "message": "test"}]}});
        let api = Api::<CertificateSigningRequest>::all(cluster.admin.clone());
        assert!(api.get(name).await.unwrap().status.unwrap_or_default().certificate.is_none());
        api.patch_subresource("approval", name, &PatchParams::default(), &Patch::Merge(approval))
            .await
            .unwrap();
    }
    signed("person").await;
    eventually("its signer refuses it", || async {
        let seen = cluster.get(&csr("wrong")).await;
        match conditions(&seen).get("Failed").map(String::as_str) {
            Some("True SignerValidationFailure") => Ok(()),
            _ => Err(seen),
        }
    })
    .await;
}

async fn balancer(cluster: &Cluster, name: &str, expected: &[&str]) {
    eventually(&format!("{name} has {expected:?}"), || async {
        let service = cluster.get(&format!("api/v1/namespaces/default/services/{name}")).await;
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        let seen: Vec<_> = ingress.iter().map(|one| one["ip"].as_str().unwrap_or_default()).collect();
        if seen == expected { Ok(()) } else { Err(service) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_load_balancers() {
    let cluster = start(Options::default()).await;
    let nodes = Api::<Node>::all(cluster.admin.clone());
    for (name, ip) in [("n1", "192.168.0.1"), ("n2", "192.168.0.2")] {
        cluster.add_node(name).await;
        let addresses = json!({"status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(addresses)).await.unwrap();
    }
    let web = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"type": "LoadBalancer", "selector": {"app": "web"},
            "ports": [{"port": 80}]}})
    };
    cluster.create::<Service>("default", web("first")).await;
    balancer(&cluster, "first", &["192.168.0.1", "192.168.0.2"]).await;
    cluster.create::<Service>("default", web("second")).await;
    eventually("the second is told", || async {
        let events = cluster.list("api/v1/namespaces/default/events").await;
        let text = "port 80/TCP of the nodes belongs to Service default/first";
        let told = |event: &Value| event["message"].as_str().is_some_and(|message| message.ends_with(text));
        if events.iter().any(told) { Ok(()) } else { Err(json!(events)) }
    })
    .await;
    balancer(&cluster, "second", &[]).await;
    nodes
        .patch_status(
            "n2",
            &PatchParams::default(),
            &Patch::Strategic(json!({"status": {"conditions": [
        {"type": "Ready", "status": "False"}]}})),
        )
        .await
        .unwrap();
    balancer(&cluster, "first", &["192.168.0.1"]).await;
    let services = cluster.api::<Service>("default");
    let plain = json!({"spec": {"type": "ClusterIP"}});
    services.patch("first", &PatchParams::default(), &Patch::Merge(plain)).await.unwrap();
    balancer(&cluster, "first", &[]).await;
    balancer(&cluster, "second", &["192.168.0.1"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_range_stays_while_it_is_used() {
    let cluster = start(Options::default()).await;
    let cidrs = Api::<ServiceCIDR>::all(cluster.admin.clone());
    let body = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24"]}});
    cidrs.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
    let path = "apis/networking.k8s.io/v1/servicecidrs/more";
    eventually("it is ready", || async {
        let seen = cluster.get(path).await;
        let ready = seen["status"]["conditions"][0]["status"] == "True";
        if ready && seen["metadata"]["finalizers"][0] == "networking.k8s.io/service-cidr-finalizer" {
            Ok(())
        } else {
            Err(seen)
        }
    })
    .await;
    let service =
        json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.200.0.9", "ports": [{"port": 80}]}});
    cluster.create::<Service>("default", service).await;
    cidrs.delete("more", &DeleteParams::default()).await.unwrap();
    eventually("its address holds it", || async {
        let seen = cluster.get(path).await;
        if conditions(&seen).get("Ready").is_some_and(|text| text == "False Terminating") {
            Ok(())
        } else {
            Err(seen)
        }
    })
    .await;
    cluster.api::<Service>("default").delete("s", &DeleteParams::default()).await.unwrap();
    eventually("it goes, after the time of grace", || async {
        let seen = cluster.get(path).await;
        if seen.is_null() { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_follow_their_pods() {
    let cluster = start(Options::default()).await;
    cluster.add_node("n1").await;
    eventually("pods can be made", || async {
        let account = cluster.get("api/v1/namespaces/default/serviceaccounts/default").await;
        if account.is_null() { Err(account) } else { Ok(()) }
    })
    .await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x",
        "resources": {"claims": [{"name": "device"}]}}],
        "resourceClaims": [{"name": "device", "resourceClaimTemplateName": "t"}]}});
    cluster.create::<Pod>("default", pod).await;
    eventually("the pod waits for its template", || async {
        let events = cluster.list("api/v1/namespaces/default/events").await;
        let told = |event: &Value| event["reason"] == "FailedResourceClaimCreation";
        if events.iter().any(told) { Ok(()) } else { Err(json!(events)) }
    })
    .await;
    let spec = json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}});
    let template = json!({"metadata": {"name": "t"}, "spec": {"spec": spec}});
    cluster.create::<ResourceClaimTemplate>("default", template).await;
    let name = eventually("the pod knows its claim", || async {
        let pod = cluster.get("api/v1/namespaces/default/pods/p").await;
        let status = &pod["status"]["resourceClaimStatuses"][0];
        match (status["name"].as_str(), status["resourceClaimName"].as_str()) {
            (Some("device"), Some(name)) => Ok(name.to_owned()),
            _ => Err(pod),
        }
    })
    .await;
    assert!(name.starts_with("p-device-"), "{name}");
    let claims = cluster.api::<ResourceClaim>("default");
    assert_eq!(claims.list(&Default::default()).await.unwrap().items.len(), 1);
    // As the scheduler does it.
    let uid = cluster.get("api/v1/namespaces/default/pods/p").await["metadata"]["uid"].clone();
    let held = json!({"metadata": {"finalizers": ["resource.kubernetes.io/delete-protection"]}});
    claims.patch(&name, &PatchParams::default(), &Patch::Merge(held)).await.unwrap();
    let allocated = json!({"status": {"allocation": {"devices": {"results": [
        {"request": "r", "driver": "d.example.com", "pool": "p", "device": "0"}]}},
        "reservedFor": [{"resource": "pods", "name": "p", "uid": uid}]}});
    claims.patch_status(&name, &PatchParams::default(), &Patch::Merge(allocated)).await.unwrap();
    let pods = cluster.api::<Pod>("default");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let kept = claims.get(&name).await.unwrap();
    assert!(kept.status.is_some_and(|status| status.allocation.is_some()), "a claim in use stays allocated");
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    eventually("the claim is freed and goes", || async {
        let left = cluster.list("apis/resource.k8s.io/v1/namespaces/default/resourceclaims").await;
        if left.is_empty() { Ok(()) } else { Err(json!(left)) }
    })
    .await;
}
