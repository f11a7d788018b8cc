//! A controller written with kube-rs, over TLS as a stranger would run it: it keeps a ConfigMap for each custom object
//! and says so in the object's status.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use serde_json::json;

use crate::support::{PATIENCE, Server};

const CRD: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: notes.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: notes, kind: Note}
  versions:
    - name: v1
      served: true
      storage: true
      subresources: {status: {}}
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec: {type: object, properties: {text: {type: string}}}
            status: {type: object, properties: {written: {type: string}}}
"#;

struct Context {
    client: Client,
    notes: ApiResource,
}

async fn reconcile(note: Arc<DynamicObject>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let text = note.data["spec"]["text"].as_str().unwrap_or_default();
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), "default");
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": note.name_any(),
            "ownerReferences": [{
                "apiVersion": "example.com/v1", "kind": "Note", "name": note.name_any(),
                "uid": note.uid(), "controller": true,
            }],
        },
        "data": {"text": text},
    });
    maps.patch(&note.name_any(), &PatchParams::apply("scribe").force(), &Patch::Apply(&map)).await?;
    let notes: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), "default", &context.notes);
    let status = json!({"apiVersion": "example.com/v1", "kind": "Note", "status": {"written": text}});
    notes
        .patch_status(&note.name_any(), &PatchParams::apply("scribe").force(), &Patch::Apply(&status))
        .await?;
    Ok(Action::await_change())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = Server::start();
    server.ok_stdin(&["apply", "-f", "-"], CRD);
    server.ok(&["wait", "--for=condition=Established", "crd/notes.example.com", "--timeout=30s"]);
    let kubeconfig = kube::config::Kubeconfig::read_from(server.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("example.com", "v1", "Note"), "notes");
    let notes: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");

    let context = Arc::new(Context { client: client.clone(), notes: resource.clone() });
    let controller = Controller::new_with(notes.clone(), watcher::Config::default(), resource.clone())
        .owns(maps.clone(), watcher::Config::default().streaming_lists())
        .run(
            reconcile,
            |_, error, _| {
                eprintln!("reconcile failed: {error}");
                Action::requeue(Duration::from_millis(200))
            },
            context,
        );
    let running = tokio::spawn(controller.for_each(|_| async {}));

    for n in 0..20 {
        let note = serde_json::from_value(json!({
            "apiVersion": "example.com/v1", "kind": "Note", "metadata": {"name": format!("note-{n}")},
            "spec": {"text": format!("text {n}")},
        }));
        notes.create(&PostParams::default(), &note.unwrap()).await.unwrap();
    }
    // Damage is repaired: the controller watches what it owns.
    let written = async |name: &str, text: &str| {
        let wait = async {
            loop {
                let map = maps.get_opt(name).await.unwrap();
                let seen = map.and_then(|map| map.data).and_then(|mut data| data.remove("text"));
                let note = notes.get(name).await.unwrap();
                if seen.as_deref() == Some(text) && note.data["status"]["written"] == text {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{name} has not {text:?}"));
    };
    for n in 0..20 {
        written(&format!("note-{n}"), &format!("text {n}")).await;
    }
    let damage = json!({"data": {"text": "damaged"}});
    maps.patch("note-3", &PatchParams::default(), &Patch::Merge(&damage)).await.unwrap();
    maps.delete("note-4", &Default::default()).await.unwrap();
    notes
        .patch("note-5", &PatchParams::default(), &Patch::Merge(&json!({"spec": {"text": "new"}})))
        .await
        .unwrap();
    written("note-3", "text 3").await;
    written("note-4", "text 4").await;
    written("note-5", "new").await;
    running.abort();
}
