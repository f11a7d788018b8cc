//! Acting as somebody else (`Impersonate-*` headers): who may become whom, for which requests (KEP-5284).
//!
//! Upstream tries several modes in turn. A constrained mode needs two rights: to be such an identity
//! (`impersonate:MODE`) and to do the request at hand so (`impersonate-on:MODE:VERB`). The last one is the old way:
//! one right (`impersonate`), and then everything that the other may do.

use http::HeaderMap;
use orlop_api::status::ApiError;

use super::{Attributes, Authorizer};
use crate::authn::{ANONYMOUS, AUTHENTICATED, MASTERS, UNAUTHENTICATED, UserInfo};

const GROUP: &str = "authentication.k8s.io";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// From so many groups on a right on all groups is looked for first.
const MANY_GROUPS: usize = 3;

/// Somebody else.
#[derive(Debug, PartialEq, Eq)]
pub struct Impersonated {
    /// Who.
    pub user: UserInfo,
    /// The verb of the constrained mode that allowed it; empty for the old way.
    pub constraint: String,
}

/// Whom the headers ask to be; `None` when there are none.
pub fn wanted(headers: &HeaderMap) -> Result<Option<UserInfo>, ApiError> {
    if !headers.keys().any(|key| key.as_str().starts_with("impersonate-")) {
        return Ok(None);
    }
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut user = UserInfo {
        name: headers.get("impersonate-user").map(text).unwrap_or_default(),
        uid: headers.get("impersonate-uid").map(text).unwrap_or_default(),
        groups: headers.get_all("impersonate-group").iter().map(text).collect(),
        ..UserInfo::default()
    };
    for (key, value) in headers {
        if let Some(key) = key.as_str().strip_prefix("impersonate-extra-") {
            let key = crate::request_info::percent_decode(key, false);
            user.extra.entry(key).or_default().push(text(value));
        }
    }
    if !user.name.is_empty() {
        return Ok(Some(user));
    }
    if user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty() {
        return Ok(None);
    }
    Err(ApiError::internal(format!("requested {} without impersonating a user name", go_print(&user))))
}

/// A user as Go prints its structure.
fn go_print(user: &UserInfo) -> String {
    let quote = |text: &String| orlop_api::field::go_quote(text);
    let list = |items: &[String]| items.iter().map(quote).collect::<Vec<_>>().join(", ");
    let groups = match user.groups.is_empty() {
        true => "[]string(nil)".to_string(),
        false => format!("[]string{{{}}}", list(&user.groups)),
    };
    let extra = match user.extra.is_empty() {
        true => "map[string][]string(nil)".to_string(),
        false => {
            let entries: Vec<String> = user
                .extra
                .iter()
                .map(|(key, values)| format!("{}:[]string{{{}}}", quote(key), list(values)))
                .collect();
            format!("map[string][]string{{{}}}", entries.join(", "))
        }
    };
    format!(
        "&user.DefaultInfo{{Name:{}, UID:{}, Groups:{groups}, Extra:{extra}}}",
        quote(&user.name),
        quote(&user.uid)
    )
}

fn node_of(name: &str) -> Option<&str> {
    name.strip_prefix("system:node:").filter(|node| orlop_api::names::is_dns1123_subdomain(node).is_empty())
}

fn account_of(name: &str) -> Option<(&str, &str)> {
    let (namespace, name) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let plain = orlop_api::names::is_dns1123_label(namespace).is_empty()
        && orlop_api::names::is_dns1123_subdomain(name).is_empty();
    plain.then_some((namespace, name))
}

/// A way to become somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The node that the asking pod runs on.
    AssociatedNode,
    /// Any node.
    ArbitraryNode,
    /// A service account.
    ServiceAccount,
    /// Everybody else.
    UserInfo,
    /// The old way.
    Legacy,
}

const MODES: [Mode; 5] =
    [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "",
        }
    }

    /// Whether the mode is about such a user.
    fn fits(self, wanted: &UserInfo, asking: &UserInfo) -> bool {
        let only_name = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        match self {
            Mode::AssociatedNode => {
                let one = |key: &str| match asking.extra.get(key).map(Vec::as_slice) {
                    Some([one]) => one.as_str(),
                    _ => "",
                };
                only_name
                    && account_of(&asking.name).is_some()
                    && !one(POD_NAME).is_empty()
                    && node_of(&wanted.name).is_some_and(|node| node == one(NODE_NAME))
            }
            Mode::ArbitraryNode => only_name && node_of(&wanted.name).is_some(),
            Mode::ServiceAccount => only_name && account_of(&wanted.name).is_some(),
            Mode::UserInfo => node_of(&wanted.name).is_none() && account_of(&wanted.name).is_none(),
            Mode::Legacy => true,
        }
    }
}

impl Authorizer {
    /// Becomes `wanted`, if who asks may, for this request.
    pub async fn impersonate(
        &self,
        wanted: UserInfo,
        request: &Attributes<'_>,
    ) -> Result<Impersonated, ApiError> {
        let mut refusal = None;
        for mode in MODES {
            if !mode.fits(&wanted, request.user) {
                continue;
            }
            match self.impersonate_by(mode, &wanted, request).await {
                Ok(impersonated) => return Ok(impersonated),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        Err(refusal.unwrap_or_else(|| ApiError::internal("all impersonation modes failed")))
    }

    async fn impersonate_by(
        &self,
        mode: Mode,
        wanted: &UserInfo,
        request: &Attributes<'_>,
    ) -> Result<Impersonated, ApiError> {
        let constrained = mode != Mode::Legacy;
        let asking = request.user;
        if constrained {
            let verb = format!("impersonate-on:{}:{}", mode.name(), request.verb);
            self.check(&Attributes { verb: &verb, ..request.clone() }).await?;
        }
        let (verb, group) = match constrained {
            true => (format!("impersonate:{}", mode.name()), GROUP),
            false => ("impersonate".to_string(), ""),
        };
        let mut user = wanted.clone();
        let mut identity = Attributes {
            name: &wanted.name,
            version: "v1",
            ..Attributes::resource(asking, &verb, group, "users")
        };
        if let Some((namespace, name)) = account_of(&wanted.name) {
            identity = Attributes { resource: "serviceaccounts", namespace, name, ..identity };
            if wanted.groups.is_empty() {
                user.groups =
                    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
            }
        } else if let Some(node) = node_of(&wanted.name).filter(|_| constrained) {
            // The own node needs no name: rights cannot be given node by node to the pods of a DaemonSet.
            let name = if mode == Mode::AssociatedNode { "*" } else { node };
            identity = Attributes { resource: "nodes", name, ..identity };
            user.groups = vec!["system:nodes".into()];
        }
        self.check(&identity).await?;
        if !wanted.uid.is_empty() {
            let uid = Attributes { name: &wanted.uid, ..Attributes::resource(asking, &verb, GROUP, "uids") };
            self.check(&uid).await?;
        }
        self.groups(mode, wanted, &Attributes::resource(asking, &verb, group, "groups")).await?;
        for (key, values) in &wanted.extra {
            for value in values {
                let extra = Attributes {
                    subresource: key,
                    name: value,
                    ..Attributes::resource(asking, &verb, GROUP, "userextras")
                };
                self.check(&extra).await?;
            }
        }
        if user.name == ANONYMOUS {
            if !user.in_group(UNAUTHENTICATED) {
                user.groups.push(UNAUTHENTICATED.into());
            }
        } else if !user.in_group(AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.into());
        }
        Ok(Impersonated { user, constraint: if constrained { verb } else { String::new() } })
    }

    async fn groups(&self, mode: Mode, wanted: &UserInfo, base: &Attributes<'_>) -> Result<(), ApiError> {
        let constrained = mode != Mode::Legacy;
        if constrained && wanted.in_group(MASTERS) {
            return Err(super::forbidden(
                &Attributes { name: MASTERS, ..base.clone() },
                "impersonating the system:masters group is not allowed",
            ));
        }
        if constrained && wanted.groups.len() > MANY_GROUPS {
            let all = Attributes { name: "*", ..base.clone() };
            if self.check(&all).await.is_ok() {
                return Ok(());
            }
        }
        for group in &wanted.groups {
            self.check(&Attributes { name: group, ..base.clone() }).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn modes() {
        let mut agent = UserInfo::service_account("kube-system", "agent");
        agent.extra.insert(NODE_NAME.into(), vec!["n1".into()]);
        agent.extra.insert(POD_NAME.into(), vec!["agent-x".into()]);
        let check = |name: &str, expected: &[Mode]| {
            let wanted = UserInfo { name: name.into(), ..UserInfo::default() };
            let fitting: Vec<Mode> = MODES.into_iter().filter(|mode| mode.fits(&wanted, &agent)).collect();
            assert_eq!(fitting, expected, "{name}");
        };
        check("system:node:n1", &[Mode::AssociatedNode, Mode::ArbitraryNode, Mode::Legacy]);
        check("system:node:n2", &[Mode::ArbitraryNode, Mode::Legacy]);
        check("system:serviceaccount:a:b", &[Mode::ServiceAccount, Mode::Legacy]);
        check("jane", &[Mode::UserInfo, Mode::Legacy]);
    }

    #[test]
    fn headers() {
        let headers = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (key, value) in pairs {
                headers.append(*key, value.parse().unwrap());
            }
            headers
        };
        assert_eq!(wanted(&headers(&[("accept", "x")])).unwrap(), None);
        let jane = wanted(&headers(&[
            ("impersonate-user", "jane"),
            ("impersonate-group", "a"),
            ("impersonate-group", "b"),
            ("impersonate-extra-acme.com%2fp", "v"),
        ]));
        let jane = jane.unwrap().unwrap();
        assert_eq!((jane.groups.len(), jane.extra["acme.com/p"][0].as_str()), (2, "v"));
        let error = wanted(&headers(&[("impersonate-group", "a")])).unwrap_err();
        assert_eq!(
            error.status().message,
            "Internal error occurred: requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"a\"}, Extra:map[string][]string(nil)} without impersonating a user name"
        );
    }
}
