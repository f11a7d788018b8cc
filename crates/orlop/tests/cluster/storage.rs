//! Volumes of the built-in class, from the claim to the directory on the node's disk.

use crate::support::{Cluster, WEB, eventually};

fn claim(name: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, \
         spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}{more}}}}}"
    )
}

fn pod(name: &str, claim: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0{more}, \
         volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}], \
         containers: [{{name: main, image: {WEB}, command: [sleep, '100000'], volumeMounts: [{{name: data, mountPath: /data}}]}}]}}}}"
    )
}

impl Cluster {
    fn field(&self, kind: &str, name: &str, path: &str) -> String {
        self.ok(&["get", kind, name, "-o", &format!("jsonpath={{{path}}}")])
    }

    fn ready(&self, pod: &str) {
        self.ok(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{pod}")]);
    }

    fn told(&self, name: &str, reason: &str, message: &str) {
        eventually(&format!("{name} is told {reason}: {message}"), || {
            let selector = format!("--field-selector=involvedObject.name={name},reason={reason}");
            self.ok(&["get", "events", &selector, "-o", "jsonpath={.items[*].message}"])
                .contains(message)
                .then_some(())
        });
    }

    fn volume_directories(&self) -> usize {
        std::fs::read_dir(self.data().join("storage")).map_or(0, Iterator::count)
    }
}

#[test]
fn a_claim_waits_for_its_pod_and_outlives_it() {
    let cluster = Cluster::start();
    let classes = eventually("the class is there", || {
        let listed = cluster.ok(&["get", "storageclass"]);
        listed.contains("local-path").then_some(listed)
    });
    for part in ["local-path (default)", "orlop.io/local-path", "Delete", "WaitForFirstConsumer", "true"] {
        assert!(classes.contains(part), "{part}: {classes}");
    }
    cluster.apply(&claim("data", ""));
    cluster.told("data", "WaitForFirstConsumer", "waiting for first consumer to be created before binding");
    assert_eq!(cluster.field("pvc", "data", ".status.phase"), "Pending");
    assert_eq!(cluster.field("pvc", "data", ".spec.storageClassName"), "local-path");
    cluster.apply(&pod("first", "data", ", securityContext: {fsGroup: 2345}"));
    cluster.ready("first");
    assert_eq!(cluster.field("pvc", "data", ".status.phase"), "Bound");
    cluster.told("data", "ExternalProvisioning", "orlop.io/local-path");
    cluster.told(
        "data",
        "Provisioning",
        "External provisioner is provisioning volume for claim \"default/data\"",
    );
    cluster.told("data", "ProvisioningSucceeded", "Successfully provisioned volume pvc-");
    let volume = cluster.field("pvc", "data", ".spec.volumeName");
    let path = cluster.data().canonicalize().unwrap().join("storage").join(&volume);
    assert_eq!(cluster.field("pv", &volume, ".spec.local.path"), path.display().to_string());
    assert_eq!(cluster.exec("first", "stat -c %g /data"), "2345\n");
    cluster.exec("first", "echo kept > /data/file");

    // The data is there for the next pod, also after the server's death; a read-only user cannot change it.
    cluster.ok(&["delete", "pod", "first"]);
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "kept\n");
    cluster.apply(&pod("second", "data", "").replace("claimName: data", "claimName: data, readOnly: true"));
    cluster.ready("second");
    assert_eq!(cluster.exec("second", "cat /data/file; touch /data/x 2>/dev/null || echo no"), "kept\nno\n");

    // Neither goes while a pod uses it; then the directory goes, too.
    cluster.ok(&["delete", "pvc", "data", "--wait=false"]);
    cluster.ok(&["delete", "pv", &volume, "--wait=false"]);
    cluster.apply(&pod("third", "data", ""));
    assert_eq!(cluster.exec("second", "cat /data/file"), "kept\n");
    assert_eq!(cluster.field("pvc", "data", ".metadata.finalizers"), "[\"kubernetes.io/pvc-protection\"]");
    cluster.ok(&["delete", "pod", "second", "third"]);
    eventually("claim, volume and directory are gone", || {
        let left = cluster.ok(&["get", "pvc,pv", "-o", "name"]);
        (left.is_empty() && !path.exists()).then_some(())
    });
}

#[test]
fn an_ordinal_keeps_its_data() {
    let cluster = Cluster::start();
    let set = format!(
        r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  serviceName: db
  replicas: 2
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: main
          image: {WEB}
          command: [sh, -c, 'hostname >> /data/log; sleep 100000']
          volumeMounts: [{{name: data, mountPath: /data, subPathExpr: of-$(NAME)}}]
          env: [{{name: NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec: {{accessModes: [ReadWriteOncePod], resources: {{requests: {{storage: 10Mi}}}}}}
"#
    );
    cluster.apply(&set);
    let settled = |replicas: &str| {
        cluster.ok(&["rollout", "status", "statefulset/db", "--timeout=60s"]);
        eventually("the set has its size", || {
            (cluster.field("statefulset", "db", ".status.readyReplicas") == replicas
                && cluster.field("statefulset", "db", ".status.replicas") == replicas)
                .then_some(())
        });
    };
    settled("2");
    assert_eq!(cluster.exec("db-1", "cat /data/log"), "db-1\n");
    cluster.ok(&["delete", "pod", "db-1"]);
    settled("2");
    assert_eq!(cluster.exec("db-1", "cat /data/log"), "db-1\ndb-1\n");
    cluster.ok(&["scale", "statefulset/db", "--replicas=1"]);
    settled("1");
    cluster.ok(&["scale", "statefulset/db", "--replicas=3"]);
    settled("3");
    assert_eq!(cluster.exec("db-1", "cat /data/log"), "db-1\ndb-1\ndb-1\n");
    assert_eq!(cluster.exec("db-2", "cat /data/log"), "db-2\n");
    assert_eq!(cluster.exec("db-0", "cat /data/log"), "db-0\n");
    assert_eq!(cluster.volume_directories(), 3);
    cluster.ok(&["delete", "statefulset", "db"]);
    cluster.apply(&set.replace("replicas: 2", "replicas: 1"));
    settled("1");
    assert_eq!(cluster.exec("db-0", "cat /data/log"), "db-0\ndb-0\n");
    cluster.ok(&["delete", "statefulset", "db"]);
    cluster.ok(&["delete", "pvc", "--all"]);
    eventually("all directories are gone", || (cluster.volume_directories() == 0).then_some(()));
}

#[test]
fn volumes_grow_are_kept_and_refused_as_their_class_says() {
    let mut cluster = Cluster::start();
    cluster.apply(
        "{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: keep}, provisioner: orlop.io/local-path, \
         reclaimPolicy: Retain, volumeBindingMode: Immediate}",
    );
    // At once, without a pod; kept when the claim goes.
    cluster.apply(&claim("kept", ", storageClassName: keep"));
    eventually("it is bound", || (cluster.field("pvc", "kept", ".status.phase") == "Bound").then_some(()));
    let volume = cluster.field("pvc", "kept", ".spec.volumeName");
    cluster.ok(&["delete", "pvc", "kept"]);
    eventually("it is released", || {
        (cluster.field("pv", &volume, ".status.phase") == "Released").then_some(())
    });
    cluster.ok(&["delete", "pv", &volume]);
    assert!(cluster.data().join("storage").join(&volume).is_dir());

    // Growing takes no time, in use or not.
    cluster.apply(&claim("data", ""));
    cluster.apply(&pod("user", "data", ""));
    cluster.ready("user");
    let larger = r#"{"spec": {"resources": {"requests": {"storage": "3Gi"}}}}"#;
    cluster.ok(&["patch", "pvc", "data", "-p", larger]);
    eventually("it has grown", || {
        (cluster.field("pvc", "data", ".status.capacity.storage") == "3Gi").then_some(())
    });
    let volume = cluster.field("pvc", "data", ".spec.volumeName");
    assert_eq!(cluster.field("pv", &volume, ".spec.capacity.storage"), "3Gi");
    cluster.told("data", "VolumeResizeSuccessful", "Resize volume succeeded");

    // What a directory cannot be is refused in words.
    cluster.apply(&claim("many", "").replace("ReadWriteOnce", "ReadWriteMany"));
    cluster.apply(&pod("waits", "many", ""));
    cluster.told(
        "many",
        "ProvisioningFailed",
        "only the access modes ReadWriteOnce and ReadWriteOncePod are supported",
    );
    cluster.apply(&pod("stray", "nothing", ", nodeName: node-1"));
    let missing = "error processing PVC default/nothing: failed to fetch PVC from API server: persistentvolumeclaims \"nothing\" not found";
    cluster.told("stray", "FailedMount", missing);

    // The choice of a default is the user's, also over a restart.
    cluster.ok(&["delete", "storageclass", "local-path"]);
    cluster.kill_server();
    cluster.start_server();
    cluster.wait_until_ready();
    assert_eq!(cluster.exec("user", "touch /data/x && ls /data"), "x\n");
    assert_eq!(cluster.ok(&["get", "storageclass", "-o", "name"]), "storageclass.storage.k8s.io/keep\n");
    let pod_of = "metadata: {name: own}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: data, ephemeral: \
        {volumeClaimTemplate: {spec: {storageClassName: keep, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}}]";
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, {pod_of}, containers: [{{name: main, image: {WEB}, command: [sleep, '100000'], \
         volumeMounts: [{{name: data, mountPath: /data}}]}}]}}}}"
    ));
    cluster.ready("own");
    cluster.ok(&["delete", "pod", "own"]);
    eventually("the pod's own claim goes with it", || {
        (!cluster.kubectl(&["get", "pvc", "own-data"]).status.success()).then_some(())
    });
}
