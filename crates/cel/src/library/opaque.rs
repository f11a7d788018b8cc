//! Values of Kubernetes' own libraries.

use std::net::IpAddr;
use std::sync::Arc;

use orlop_api::Quantity;

use crate::library::authz::{AccessDecision, AuthorizerVal, GroupCheck, PathCheck, ResourceCheck};
use crate::library::named_format::NamedFormat;
use crate::library::semver::Version;
use crate::library::url::Url;
use crate::types::Type;

/// A value of a library.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Opaque<'a> {
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(Cidr),
    Url(Arc<Url>),
    Semver(Arc<Version>),
    Format(&'static NamedFormat),
    Authorizer(AuthorizerVal<'a>),
    PathCheck(Arc<PathCheck<'a>>),
    GroupCheck(Arc<GroupCheck<'a>>),
    ResourceCheck(Arc<ResourceCheck<'a>>),
    Decision(Arc<AccessDecision>),
}

/// An address with a prefix length; host bits may be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The address.
    pub addr: IpAddr,
    /// The number of leading bits.
    pub bits: u8,
}

impl Opaque<'_> {
    /// The library type.
    pub fn ty(&self) -> Type {
        match self {
            Opaque::Ip(_) => Type::opaque("net.IP"),
            Opaque::Cidr(_) => Type::opaque("net.CIDR"),
            other => Type::object(match other {
                Opaque::Quantity(_) => "kubernetes.Quantity",
                Opaque::Url(_) => "kubernetes.URL",
                Opaque::Semver(_) => "kubernetes.Semver",
                Opaque::Format(_) => "kubernetes.NamedFormat",
                Opaque::Authorizer(_) => "kubernetes.authorization.Authorizer",
                Opaque::PathCheck(_) => "kubernetes.authorization.PathCheck",
                Opaque::GroupCheck(_) => "kubernetes.authorization.GroupCheck",
                Opaque::ResourceCheck(_) => "kubernetes.authorization.ResourceCheck",
                _ => "kubernetes.authorization.Decision",
            }),
        }
    }

    /// What counts as its size in costs.
    pub fn size(&self) -> Option<i64> {
        match self {
            Opaque::Ip(IpAddr::V4(_)) => Some(4),
            Opaque::Ip(IpAddr::V6(_)) => Some(16),
            Opaque::Cidr(cidr) => Some(i64::from(cidr.bits.div_ceil(8))),
            _ => None,
        }
    }

    /// `==` between library values; `None` for different types.
    pub fn equal(&self, other: &Opaque<'_>) -> Option<bool> {
        Some(match (self, other) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => a == b,
            (Opaque::Ip(a), Opaque::Ip(b)) => a == b,
            (Opaque::Cidr(a), Opaque::Cidr(b)) => a == b,
            (Opaque::Url(a), Opaque::Url(b)) => a.text == b.text,
            (Opaque::Semver(a), Opaque::Semver(b)) => a.compare(b).is_eq(),
            (Opaque::Format(a), Opaque::Format(b)) => a.name == b.name,
            (Opaque::Decision(a), Opaque::Decision(b)) => a == b,
            (Opaque::ResourceCheck(a), Opaque::ResourceCheck(b)) => a.same(b),
            (Opaque::PathCheck(a), Opaque::PathCheck(b)) => a.path == b.path,
            (Opaque::GroupCheck(a), Opaque::GroupCheck(b)) => a.group == b.group,
            (Opaque::Authorizer(_), Opaque::Authorizer(_)) => true,
            _ => return None,
        })
    }
}
