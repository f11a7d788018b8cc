//! FlowSchemas and PriorityLevelConfigurations as they are stored, read into what requests are matched against.

use std::sync::Arc;

use orlop_json::Value;

use super::queueset::Queuing;
use crate::authn::UserInfo;
use crate::request_info::RequestInfo;

/// The flow schema and the priority level that take what nothing else takes.
pub const CATCH_ALL: &str = "catch-all";
/// The flow schema and the priority level of requests that never wait.
pub const EXEMPT: &str = "exempt";

/// A list of names in which `*` is everything.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    Any,
    Of(Box<[Box<str>]>),
}

impl Names {
    fn parse(value: Option<&Value>) -> Names {
        let names: Vec<Box<str>> = value
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(Box::from)
            .collect();
        if names.iter().any(|name| name.as_ref() == "*") { Names::Any } else { Names::Of(names.into()) }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Names::Any => true,
            Names::Of(names) => names.iter().any(|n| n.as_ref() == name),
        }
    }

    /// Whether the list names `resource` or `resource/subresource`.
    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        match self {
            Names::Any => true,
            Names::Of(names) if subresource.is_empty() => names.iter().any(|n| n.as_ref() == resource),
            Names::Of(names) => names.iter().any(|name| {
                name.strip_prefix(resource).and_then(|rest| rest.strip_prefix('/')) == Some(subresource)
            }),
        }
    }

    fn has_path(&self, path: &str) -> bool {
        match self {
            Names::Any => true,
            Names::Of(names) => names.iter().any(|name| match name.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => name.as_ref() == path,
            }),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    User(Box<str>),
    Group(Box<str>),
    ServiceAccount(Box<str>, Box<str>),
}

impl Subject {
    fn parse(value: &Value) -> Option<Subject> {
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or("").into();
        Some(match value["kind"].as_str()? {
            "User" => Subject::User(text("/user/name")),
            "Group" => Subject::Group(text("/group/name")),
            "ServiceAccount" => {
                Subject::ServiceAccount(text("/serviceAccount/namespace"), text("/serviceAccount/name"))
            }
            _ => return None,
        })
    }

    fn matches(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name.as_ref() == "*" || **name == user.name,
            Subject::Group(name) => name.as_ref() == "*" || user.in_group(name),
            Subject::ServiceAccount(namespace, name) => user
                .name
                .strip_prefix("system:serviceaccount:")
                .and_then(|rest| rest.strip_prefix(namespace.as_ref()))
                .and_then(|rest| rest.strip_prefix(':'))
                .is_some_and(|account| name.as_ref() == "*" || account == name.as_ref()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ResourceRule {
    verbs: Names,
    groups: Names,
    resources: Names,
    cluster_scope: bool,
    namespaces: Names,
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        self.verbs.has(&info.verb)
            && self.groups.has(&info.group)
            && self.resources.has_resource(&info.resource, &info.subresource)
            && if info.namespace.is_empty() {
                self.cluster_scope
            } else {
                self.namespaces.has(&info.namespace)
            }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    subjects: Box<[Subject]>,
    resources: Box<[ResourceRule]>,
    /// Verbs and paths.
    paths: Box<[(Names, Names)]>,
}

fn list(value: &Value, name: &str) -> Vec<Value> {
    value[name].as_array().cloned().unwrap_or_default()
}

impl Rule {
    fn parse(value: &Value) -> Rule {
        Rule {
            subjects: list(value, "subjects").iter().filter_map(Subject::parse).collect(),
            resources: list(value, "resourceRules")
                .iter()
                .map(|rule| ResourceRule {
                    verbs: Names::parse(rule.get("verbs")),
                    groups: Names::parse(rule.get("apiGroups")),
                    resources: Names::parse(rule.get("resources")),
                    cluster_scope: rule["clusterScope"].as_bool().unwrap_or(false),
                    namespaces: Names::parse(rule.get("namespaces")),
                })
                .collect(),
            paths: list(value, "nonResourceRules")
                .iter()
                .map(|rule| (Names::parse(rule.get("verbs")), Names::parse(rule.get("nonResourceURLs"))))
                .collect(),
        }
    }

    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.subjects.iter().any(|subject| subject.matches(user))
            && if info.is_resource {
                self.resources.iter().any(|rule| rule.matches(info))
            } else {
                self.paths.iter().any(|(verbs, paths)| verbs.has(&info.verb) && paths.has_path(&info.path))
            }
    }
}

/// What tells the flows of a schema from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distinguisher {
    /// Nothing.
    None,
    /// The user.
    User,
    /// The namespace of the request.
    Namespace,
}

/// A FlowSchema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowSchema {
    /// Its name.
    pub name: Arc<str>,
    /// Its uid; empty while the object does not exist.
    pub uid: String,
    /// Lower ones are asked first.
    pub precedence: i64,
    /// The priority level its requests go to.
    pub level: String,
    /// How flows are told apart.
    pub distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}

impl FlowSchema {
    /// Reads an object.
    pub fn parse(object: &Value) -> FlowSchema {
        let spec = &object["spec"];
        FlowSchema {
            name: text(object, "/metadata/name").into(),
            uid: text(object, "/metadata/uid").to_string(),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            level: text(spec, "/priorityLevelConfiguration/name").to_string(),
            distinguisher: match text(spec, "/distinguisherMethod/type") {
                "ByUser" => Distinguisher::User,
                "ByNamespace" => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: list(spec, "rules").iter().map(Rule::parse).collect(),
        }
    }

    /// Whether a request belongs to it.
    pub fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| rule.matches(user, info))
    }

    /// What its flow is called.
    pub fn flow<'a>(&self, user: &'a UserInfo, info: &'a RequestInfo) -> &'a str {
        match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &user.name,
            Distinguisher::Namespace => &info.namespace,
        }
    }
}

/// A PriorityLevelConfiguration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriorityLevel {
    /// Its name.
    pub name: Arc<str>,
    /// Its uid; empty while the object does not exist.
    pub uid: String,
    /// What happens to requests without a seat.
    pub queuing: Queuing,
    /// `nominalConcurrencyShares`
    pub shares: u32,
    /// `lendablePercent`
    pub lendable_percent: u32,
    /// `borrowingLimitPercent`; without it there is no limit.
    pub borrowing_percent: Option<u32>,
}

impl PriorityLevel {
    /// Reads an object.
    pub fn parse(object: &Value) -> PriorityLevel {
        let spec = &object["spec"];
        let exempt = text(spec, "/type") == "Exempt";
        let part = &spec[if exempt { "exempt" } else { "limited" }];
        let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let response = &part["limitResponse"];
        let queuing = if exempt {
            Queuing::Exempt
        } else if text(response, "/type") == "Queue" {
            let of = |name: &str, default: usize| {
                number(&response["queuing"][name]).map_or(default, |n| n as usize).max(1)
            };
            Queuing::Queue {
                // Validation allows ten million queues; each costs memory, and no host needs so many.
                queues: of("queues", 64).min(4096),
                hand_size: of("handSize", 8),
                length_limit: of("queueLengthLimit", 50),
            }
        } else {
            Queuing::Reject
        };
        PriorityLevel {
            name: text(object, "/metadata/name").into(),
            uid: text(object, "/metadata/uid").to_string(),
            queuing,
            shares: number(&part["nominalConcurrencyShares"]).unwrap_or(if exempt { 0 } else { 30 }),
            lendable_percent: number(&part["lendablePercent"]).unwrap_or(0).min(100),
            borrowing_percent: number(&part["borrowingLimitPercent"]),
        }
    }

    /// The level of requests that never wait, as it must be when its object is not there.
    pub fn exempt() -> PriorityLevel {
        PriorityLevel {
            name: EXEMPT.into(),
            uid: String::new(),
            queuing: Queuing::Exempt,
            shares: 0,
            lendable_percent: 0,
            borrowing_percent: None,
        }
    }

    /// The level of requests that nothing else takes.
    pub fn catch_all() -> PriorityLevel {
        PriorityLevel {
            name: CATCH_ALL.into(),
            queuing: Queuing::Reject,
            shares: 5,
            ..PriorityLevel::exempt()
        }
    }
}

fn everything(subjects: &[&str]) -> Vec<Rule> {
    vec![Rule {
        subjects: subjects.iter().map(|group| Subject::Group((*group).into())).collect(),
        resources: [ResourceRule {
            verbs: Names::Any,
            groups: Names::Any,
            resources: Names::Any,
            cluster_scope: true,
            namespaces: Names::Any,
        }]
        .into(),
        paths: [(Names::Any, Names::Any)].into(),
    }]
}

impl FlowSchema {
    /// The schema of administrators, as it must be when its object is not there.
    pub fn exempt() -> FlowSchema {
        FlowSchema {
            name: EXEMPT.into(),
            uid: String::new(),
            precedence: 1,
            level: EXEMPT.into(),
            distinguisher: Distinguisher::None,
            rules: everything(&[crate::authn::MASTERS]),
        }
    }

    /// The schema of everybody.
    pub fn catch_all() -> FlowSchema {
        FlowSchema {
            name: CATCH_ALL.into(),
            uid: String::new(),
            precedence: 10_000,
            level: CATCH_ALL.into(),
            distinguisher: Distinguisher::User,
            rules: everything(&[crate::authn::UNAUTHENTICATED, crate::authn::AUTHENTICATED]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request_info::Query;
    use orlop_json::json;

    fn schema(subjects: Value, resources: Value, paths: Value) -> FlowSchema {
        FlowSchema::parse(&json!({
            "metadata": {"name": "s", "uid": "u"},
            "spec": {
                "priorityLevelConfiguration": {"name": "l"}, "matchingPrecedence": 5,
                "rules": [{"subjects": subjects, "resourceRules": resources, "nonResourceRules": paths}],
            },
        }))
    }

    fn request(target: &str) -> RequestInfo {
        let (method, target) = target.split_once(' ').unwrap_or(("GET", target));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let method = method.parse().unwrap_or_default();
        RequestInfo::parse(&method, path, &Query::parse(query))
    }

    #[test]
    fn rules() {
        let alice = UserInfo::new("alice", &["team-a"]);
        let account = UserInfo::service_account("kube-system", "deployer");
        let anybody = json!([{"kind": "Group", "group": {"name": "*"}}]);
        let everything = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}]);
        let check = |subjects: &Value,
                     resources: Value,
                     paths: Value,
                     user: &UserInfo,
                     target: &str,
                     expected: bool| {
            let schema = schema(subjects.clone(), resources.clone(), paths.clone());
            assert_eq!(
                schema.matches(user, &request(target)),
                expected,
                "{subjects} {resources} {paths} {target}"
            );
        };
        let subject = |subject: Value, user: &UserInfo, expected: bool| {
            check(&json!([subject]), everything.clone(), json!([]), user, "/api/v1/pods", expected);
        };
        subject(json!({"kind": "User", "user": {"name": "alice"}}), &alice, true);
        subject(json!({"kind": "User", "user": {"name": "*"}}), &alice, true);
        subject(json!({"kind": "User", "user": {"name": "bob"}}), &alice, false);
        subject(json!({"kind": "Group", "group": {"name": "team-a"}}), &alice, true);
        subject(json!({"kind": "Group", "group": {"name": "team-b"}}), &alice, false);
        let sa = |namespace: &str, name: &str| json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}});
        subject(sa("kube-system", "deployer"), &account, true);
        subject(sa("kube-system", "*"), &account, true);
        subject(sa("kube-system", "other"), &account, false);
        subject(sa("kube", "*"), &account, false);
        subject(sa("kube-system", "*"), &alice, false);
        let resource = |verbs: &str,
                        group: &str,
                        resource: &str,
                        cluster: bool,
                        namespaces: Value,
                        target: &str,
                        expected: bool| {
            let rule = json!([{"verbs": [verbs], "apiGroups": [group], "resources": [resource], "clusterScope": cluster, "namespaces": namespaces}]);
            check(&anybody, rule, json!([]), &alice, target, expected);
        };
        resource("list", "", "pods", true, json!([]), "/api/v1/pods", true);
        resource("list", "", "pods", false, json!(["*"]), "/api/v1/pods", false);
        resource("list", "", "pods", false, json!(["*"]), "/api/v1/namespaces/n/pods", true);
        resource("list", "", "pods", true, json!([]), "/api/v1/namespaces/n/pods", false);
        resource("get", "", "pods", false, json!(["n"]), "/api/v1/namespaces/n/pods/p", true);
        resource("get", "", "pods", false, json!(["n"]), "/api/v1/namespaces/n/pods/p/log", false);
        resource("get", "", "pods/log", false, json!(["n"]), "/api/v1/namespaces/n/pods/p/log", true);
        resource("get", "", "pods/log", false, json!(["n"]), "/api/v1/namespaces/n/pods/p", false);
        resource(
            "create",
            "apps",
            "deployments",
            false,
            json!(["n"]),
            "POST /apis/apps/v1/namespaces/n/deployments",
            true,
        );
        resource(
            "create",
            "",
            "deployments",
            false,
            json!(["n"]),
            "POST /apis/apps/v1/namespaces/n/deployments",
            false,
        );
        let path = |verb: &str, path: &str, target: &str, expected: bool| {
            check(
                &anybody,
                json!([]),
                json!([{"verbs": [verb], "nonResourceURLs": [path]}]),
                &alice,
                target,
                expected,
            );
        };
        path("get", "/healthz", "/healthz", true);
        path("get", "/healthz", "/healthz/ping", false);
        path("*", "/healthz/*", "/healthz/ping", true);
        path("get", "*", "/version", true);
        path("post", "*", "/version", false);
        path("get", "/api", "/api/v1/pods", false);
    }
}
