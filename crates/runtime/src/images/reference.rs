//! Image names, completed as container tools do: `busybox` is `docker.io/library/busybox:latest`.

use oci_client::Reference;

use crate::error::{Result, RuntimeError};

/// Parses and completes a name.
pub(crate) fn parse(name: &str) -> Result<Reference> {
    name.parse::<Reference>()
        .map_err(|error| RuntimeError::Invalid(format!("failed to parse image reference {name:?}: {error}")))
}

/// `registry/repository` without tag and digest.
pub(crate) fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// `registry/repository:tag`, when it has a tag.
pub(crate) fn tagged(reference: &Reference) -> Option<String> {
    reference.tag().map(|tag| format!("{}:{tag}", repository(reference)))
}

/// `registry/repository@digest`, when it has a digest.
pub(crate) fn digested(reference: &Reference) -> Option<String> {
    reference.digest().map(|digest| format!("{}@{digest}", repository(reference)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_completed() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(
                parse(name).ok().and_then(|reference| tagged(&reference)).as_deref(),
                expected,
                "{name}"
            );
        };
        check("busybox", Some("docker.io/library/busybox:latest"));
        check("busybox:1.36", Some("docker.io/library/busybox:1.36"));
        check("user/app", Some("docker.io/user/app:latest"));
        check("localhost/hello:1", Some("localhost/hello:1"));
        check("registry.k8s.io/pause:3.10", Some("registry.k8s.io/pause:3.10"));
        check("host:5000/a/b", Some("host:5000/a/b:latest"));
        check("index.docker.io/library/x", Some("docker.io/library/x:latest"));
        check("UPPER", None);
        check("a b", None);
        check("", None);
        let digest = format!("app@sha256:{}", "a".repeat(64));
        check(&digest, None);
        assert_eq!(digested(&parse(&digest).unwrap()).unwrap(), format!("docker.io/library/{digest}"));
    }
}
