#!/usr/bin/env python3
"""Packs the fact tables of a Kubernetes version into the files beside this script.

    generate.py REFERENCE_DIR

schema.txt, tab-separated:
  S  <Go type>  <OpenAPI name>  <flags: t = has kind and apiVersion, a = atomic for server-side apply>
     <required fields: name,name>  <x-kubernetes-unions, JSON>
  F  <JSON name, "-" = inline>  <protobuf number, 0 = none>  <wire>  <type>  <flags: o omitempty, p pointer>
     <Go type, when not the type's usual one>  <list: a atomic, s set, m:key,key map; A atomic, G granular map>
     <patch strategy>  <patch merge key>  <default, JSON>  <enum: value,value>
  K  <group>  <version>  <kind>  <index of the struct>
Types: s string, i int32, l int64, b bool, f float64, y bytes, Q Quantity, T Time, M MicroTime, D Duration,
O IntOrString, R RawExtension, V FieldsV1, J any JSON, [X list, {X map, @N; struct, P@N; object or list of it,
B@N; object or bool, C@N; object or list of strings.
"""
import json
import os
import re
import sys

ref, here = sys.argv[1], os.path.dirname(os.path.abspath(__file__))
load = lambda name: json.load(open(os.path.join(ref, name)))
proto, openapi, resources = load("protobuf-fields.json"), load("list-types.json"), load("api-resources.json")

META = "k8s.io/apimachinery/pkg/apis/meta/v1."
CRD = "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1."
GO_PRIMITIVE = {"string": "s", "int32": "i", "int64": "l", "bool": "b", "float64": "f"}
GO_NAME = {"s": "string", "i": "int32", "l": "int64", "b": "bool", "f": "float64", "y": "[]uint8",
           "Q": "resource.Quantity", "T": "v1.Time", "M": "v1.MicroTime", "D": "v1.Duration",
           "O": "intstr.IntOrString", "R": "runtime.RawExtension", "V": "v1.FieldsV1", "J": "v1.JSON"}
SPECIAL = {META + "Duration": "D", META + "FieldsV1": "V", "k8s.io/apimachinery/pkg/util/intstr.IntOrString": "O",
           "k8s.io/apimachinery/pkg/runtime.RawExtension": "R", CRD + "JSON": "J",
           CRD + "JSONSchemaPropsOrArray": "P", CRD + "JSONSchemaPropsOrBool": "B",
           CRD + "JSONSchemaPropsOrStringArray": "C"}
TYPE_META = {META + n for n in ("CreateOptions", "UpdateOptions", "PatchOptions", "GetOptions", "ListOptions",
                                "DeleteOptions", "ApplyOptions", "TableOptions", "Status", "List",
                                "PartialObjectMetadata", "PartialObjectMetadataList", "APIGroup", "APIGroupList",
                                "APIResourceList", "APIVersions")}
proto[CRD + "CustomResourceSubresourceStatus"] = []


def package(path):
    return path.rsplit(".", 1)[0]


def openapi_name(path):
    pkg, name = path.rsplit(".", 1)
    return "io." + pkg.replace("k8s.io/", "k8s.", 1).replace("/", ".") + "." + name


def find(pkg, alias, name):
    """The full name of a struct that package `pkg` calls alias.name."""
    if not alias:
        return pkg + "." + name
    if alias in ("metav1",):
        return META + name
    if alias == "runtime":
        return "k8s.io/apimachinery/pkg/runtime." + name
    if alias == "intstr":
        return "k8s.io/apimachinery/pkg/util/intstr." + name
    group = re.sub(r"v\d.*$", "", alias)
    version = alias[len(group):]
    for candidate in [group] if group not in ("", "api", "core") else ["core"]:
        full = "k8s.io/api/%s/%s.%s" % (candidate, version, name)
        if full in proto:
            return full
    full = META + name
    return full if full in proto else None


def go_package(pkg, alias):
    if not alias:
        return pkg.rsplit("/", 1)[1]
    m = re.search(r"v\d.*$", alias)
    return m.group(0) if m else alias


order, index = [], {}


def struct(full):
    if full not in index:
        index[full] = len(order)
        order.append(full)
    return "@%d;" % index[full]


def resolve(pkg, text):
    """(encoded type, Go type) of a Go type as the table writes it."""
    if text == "[]byte":
        return "y", "[]uint8"
    if text.startswith("*"):
        return resolve(pkg, text[1:])
    if text.startswith("[]"):
        t, go = resolve(pkg, text[2:])
        return "[" + t, "[]" + go
    m = re.match(r"map\[([^\]]*)\](.*)$", text)
    if m:
        t, go = resolve(pkg, m.group(2))
        return "{" + t, "map[%s]%s" % (resolve(pkg, m.group(1))[1], go)
    if text in GO_PRIMITIVE:
        return GO_PRIMITIVE[text], text
    alias, _, name = text.rpartition(".")
    go = go_package(pkg, alias) + "." + name
    if name == "Quantity":
        return "Q", "resource.Quantity"
    if name == "Time":
        return "T", "v1.Time"
    if name == "MicroTime":
        return "M", "v1.MicroTime"
    if name == "ResourceList":
        return "{Q", go
    if name in ("ExtraValue", "Verbs"):
        return "[s", go
    if name == "ValidationRules":
        return "[" + resolve(pkg, "ValidationRule")[0], go
    if name == "JSONSchemaDefinitions":
        return "{" + resolve(pkg, "JSONSchemaProps")[0], go
    if name == "JSONSchemaDependencies":
        return "{" + resolve(pkg, "JSONSchemaPropsOrStringArray")[0], go
    full = find(pkg, alias, name)
    if full in SPECIAL:
        code = SPECIAL[full]
        return (code + struct(CRD + "JSONSchemaProps") if code in "PBC" else code), go
    if full in proto:
        return struct(full), go
    return "s", go


def package_of(group, version):
    if group == "apiextensions.k8s.io":
        return CRD[:-1]
    if group == "apiregistration.k8s.io":
        return "k8s.io/kube-aggregator/pkg/apis/apiregistration/" + version
    name = {"": "core", "internal.apiserver.k8s.io": "apiserverinternal"}.get(group, group.split(".")[0])
    return "k8s.io/api/%s/%s" % (name, version)


kinds = {}


def root(group, version, kind):
    full = package_of(group, version) + "." + kind
    if full not in proto:
        return
    kinds[(group, version, kind)] = full
    struct(full)


for r in resources:
    root(r["group"], r["version"], r["kind"])
    root(r["group"], r["version"], r["kind"] + "List")
    for s in r["subresources"]:
        root(s.get("group", r["group"]), s.get("version", r["version"]), s["kind"])
for kind in sorted(n[len(META):] for n in TYPE_META):
    kinds[("meta.k8s.io", "v1", kind)] = META + kind
    struct(META + kind)
for full in (META + "ObjectMeta", META + "LabelSelector", META + "Condition", META + "ManagedFieldsEntry",
             META + "WatchEvent"):
    struct(full)
root("admission.k8s.io", "v1", "AdmissionReview")
root("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList")
root("apiextensions.k8s.io", "v1", "ConversionReview")
TYPE_META |= {"k8s.io/api/admission/v1.AdmissionReview", "k8s.io/api/apidiscovery/v2.APIGroupDiscoveryList", CRD + "ConversionReview"}

# A struct that only ever is inlined has no facts of its own: those of the fields where it ended up are its facts.
inlined_in = {}
for full, fields in proto.items():
    for f in fields:
        if (f.get("inline") or f["json"] is None) and openapi_name(full) in openapi:
            pkg = package(full)
            inlined_in.setdefault(pkg + "." + f["type"].lstrip("[]*"), openapi_name(full))


def facts_of(full):
    if openapi_name(full) not in openapi and full in inlined_in:
        return openapi[inlined_in[full]].get("fields", {})
    return openapi.get(openapi_name(full), {}).get("fields", {})


lines, at = [], 0
while at < len(order):
    full = order[at]
    at += 1
    pkg, name = full.rsplit(".", 1)
    facts = openapi.get(openapi_name(full), {})
    notes = facts_of(full)
    known = [f["json"] for f in proto[full]]
    flags = ""
    if full in TYPE_META or full in kinds.values() or ("kind" in notes and "apiVersion" in notes and "kind" not in known):
        flags += "t"
    if facts.get("x-kubernetes-map-type") == "atomic":
        flags += "a"
    unions = facts.get("x-kubernetes-unions")
    lines.append("\t".join([
        "S", go_package(pkg, "") + "." + name, openapi_name(full), flags, ",".join(facts.get("required", [])),
        json.dumps(unions, separators=(",", ":")) if unions else ""]).rstrip("\t"))
    for f in proto[full]:
        t, go = resolve(pkg, f["type"])
        inline = f.get("inline") or f["json"] is None
        note = notes.get(f["json"], {})

        def usual(t):
            if t[0] == "[":
                return "[]" + usual(t[1:])
            if t[0] == "{":
                return "map[string]" + usual(t[1:])
            if t[0] == "@":
                return None
            return GO_NAME.get(t)

        kind = {"atomic": "a", "set": "s"}.get(note.get("x-kubernetes-list-type"), "")
        if note.get("x-kubernetes-list-type") == "map":
            kind = "m:" + ",".join(note["x-kubernetes-list-map-keys"])
        kind = {"atomic": "A", "granular": "G"}.get(note.get("x-kubernetes-map-type"), kind)
        # A struct's own Go name is known to the loader; only surprises are written down.
        core = t.lstrip("[{")
        if core[0] in "PBC":
            derived = None
        elif core.startswith("@"):
            base = go_package(package(order[int(core[1:-1])]), "") + "." + order[int(core[1:-1])].rsplit(".", 1)[1]
            prefix = t[:len(t) - len(core)]
            derived = "".join("[]" if c == "[" else "map[string]" for c in prefix) + base
        else:
            derived = usual(t)
        lines.append("\t".join([
            "F", "-" if inline else f["json"], str(f["number"]), f["wire"], t,
            ("o" if f.get("omitempty") else "") + ("p" if f.get("pointer") else ""),
            "" if go == derived else go, kind,
            note.get("x-kubernetes-patch-strategy", ""), note.get("x-kubernetes-patch-merge-key", ""),
            json.dumps(note["default"], separators=(",", ":")) if "default" in note else "",
            ",".join(note.get("enum", []))]).rstrip("\t"))
for (group, version, kind), full in sorted(kinds.items()):
    lines.append("\t".join(["K", group, version, kind, str(index[full])]))
open(os.path.join(here, "schema.txt"), "w").write("\n".join(lines) + "\n")

# Resources with their field labels and columns, one JSON line each.
columns = {(c["groupVersion"], c["resource"]): c["columnDefinitions"] for c in load("table-columns.json")}
labels = {(c["groupVersion"], c["resource"]): c for c in load("field-selectors.json")}
with open(os.path.join(here, "resources.jsonl"), "w") as out:
    for r in resources:
        key = ((r["group"] + "/" if r["group"] else "") + r["version"], r["plural"])
        r["columns"] = columns.get(key, [])
        r["fieldLabels"] = labels.get(key, {}).get("labels", [])
        message = labels.get(key, {}).get("unsupportedMessage")
        if message:
            r["unsupportedFieldLabelMessage"] = message
        out.write(json.dumps(r, separators=(",", ":")) + "\n")
