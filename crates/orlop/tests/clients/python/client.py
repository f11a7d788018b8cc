"""Typed client, dynamic client, watches and patches; ends with an exception at the first surprise."""

import threading

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError

config.load_kube_config()
core, apps, extensions = client.CoreV1Api(), client.AppsV1Api(), client.ApiextensionsV1Api()
assert client.VersionApi().get_code().major == "1"


def status_of(call, *arguments, **named):
    """The status code that a call is refused with."""
    try:
        call(*arguments, **named)
    except ApiException as error:
        return error.status
    raise AssertionError("it should be refused")


# Objects through their life.
core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name="py")))
body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="a", labels={"w": "1"}), data={"k": "1"})
made = core.create_namespaced_config_map("py", body)
assert made.metadata.uid and made.metadata.resource_version
assert status_of(core.create_namespaced_config_map, "py", body) == 409
assert status_of(core.read_namespaced_config_map, "none", "py") == 404
made.data["k"] = "2"
replaced = core.replace_namespaced_config_map("a", "py", made)
assert status_of(core.replace_namespaced_config_map, "a", "py", made) == 409
assert replaced.data == {"k": "2"}

# A dict is a strategic merge patch, a list a JSON patch.
assert core.patch_namespaced_config_map("a", "py", {"data": {"l": "3"}}).data == {"k": "2", "l": "3"}
patch = [{"op": "remove", "path": "/data/l"}]
assert core.patch_namespaced_config_map("a", "py", patch).data == {"k": "2"}
assert core.list_namespaced_config_map("py", label_selector="w=1").items[0].metadata.name == "a"
assert core.list_config_map_for_all_namespaces(field_selector="metadata.name=none").items == []

# A watch hears of what happens while it runs.
listed = core.list_namespaced_config_map("py")


def change():
    core.create_namespaced_config_map("py", client.V1ConfigMap(metadata=client.V1ObjectMeta(name="b")))
    core.patch_namespaced_config_map("b", "py", {"data": {"x": "y"}})
    core.delete_namespaced_config_map("b", "py")


changes = threading.Thread(target=change)
changes.start()
seen, watcher = [], watch.Watch()
version = listed.metadata.resource_version
for event in watcher.stream(core.list_namespaced_config_map, "py", resource_version=version, timeout_seconds=30):
    seen.append((event["type"], event["object"].metadata.name))
    if len(seen) == 3:
        watcher.stop()
changes.join()
assert seen == [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "b")], seen

# Typed objects with everything in them.
container = client.V1Container(name="web", image="web:1", resources=client.V1ResourceRequirements(limits={"cpu": "0.5"}))
template = client.V1PodTemplateSpec(
    metadata=client.V1ObjectMeta(labels={"app": "web"}), spec=client.V1PodSpec(containers=[container])
)
spec = client.V1DeploymentSpec(selector=client.V1LabelSelector(match_labels={"app": "web"}), template=template)
apps.create_namespaced_deployment(
    "py", client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec)
)
scale = apps.read_namespaced_deployment_scale("web", "py")
scale.spec.replicas = 3
assert apps.replace_namespaced_deployment_scale("web", "py", scale).spec.replicas == 3
got = apps.read_namespaced_deployment("web", "py")
assert got.spec.template.spec.containers[0].resources.limits == {"cpu": "500m"}
assert got.spec.strategy.rolling_update.max_surge == "25%"
assert status_of(apps.patch_namespaced_deployment, "web", "py", {"spec": {"replicas": -1}}) == 422

# The dynamic client knows only discovery.
dyn = dynamic.DynamicClient(client.ApiClient())
utils.create_from_dict(
    client.ApiClient(),
    {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                        }
                    },
                }
            ],
        },
    },
)
for event in watch.Watch().stream(extensions.list_custom_resource_definition, timeout_seconds=30):
    conditions = event["object"].status.conditions or [] if event["object"].status else []
    if any(c.type == "Established" and c.status == "True" for c in conditions):
        break
dyn.resources.invalidate_cache()
things = dyn.resources.get(api_version="example.com/v1", kind="Thing")
thing = things.create(
    namespace="py", body={"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"a": 1}}
)
assert thing.spec.a == 1
applied = things.server_side_apply(
    namespace="py",
    name="t",
    field_manager="py",
    force_conflicts=True,
    body={"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"b": [1, 2]}},
)
assert applied.spec.to_dict() == {"a": 1, "b": [1, 2]}
stale = thing.to_dict()
try:
    things.replace(namespace="py", body=stale)
    raise AssertionError("a stale object should be refused")
except ConflictError:
    pass
things.delete(namespace="py", name="t")
try:
    things.get(namespace="py", name="t")
    raise AssertionError("it should be gone")
except NotFoundError:
    pass
print("all is well")
