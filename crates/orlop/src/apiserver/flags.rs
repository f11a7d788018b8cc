//! The command line of `orlop apiserver`.

/// The flags of kube-apiserver.
pub type Flags = crate::flags::Flags<super::table::Apiserver>;
