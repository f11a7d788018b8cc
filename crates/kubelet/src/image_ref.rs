//! Image names: what is a valid reference and what it means in full. Answers to the distribution project's reference
//! grammar, which upstream applies before it asks a runtime to pull.

/// An image name with the default tag applied (`:latest` when neither tag nor digest is given), or why it is none.
pub(crate) fn with_default_tag(image: &str) -> Result<String, String> {
    let wrong = |why: &str| format!("couldn't parse image name \"{image}\": {why}");
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    if let Some(digest) = digest
        && !is_digest(digest)
    {
        return Err(wrong("invalid reference format"));
    }
    // A colon after the last slash begins a tag; one before belongs to a registry's port.
    let (name, tag) = match rest.rfind(':') {
        Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(&rest[colon + 1..])),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(wrong("invalid reference format"));
    }
    let (domain, path) = match name.split_once('/') {
        Some((first, path))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (Some(first), path)
        }
        _ => (None, name),
    };
    if domain.is_some_and(|domain| !is_domain(domain)) {
        return Err(wrong("invalid reference format"));
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) && is_path(&path.to_ascii_lowercase()) {
        let full =
            if domain.is_none() && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        return Err(wrong(&format!("invalid reference format: repository name ({full}) must be lowercase")));
    }
    if !is_path(path) || name.len() > 255 {
        return Err(wrong("invalid reference format"));
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

/// The tag of a reference that [`with_default_tag`] accepted; `None` when it has a digest only.
pub(crate) fn tag(image: &str) -> Option<&str> {
    let rest = image.split_once('@').map_or(image, |(rest, _)| rest);
    let colon = rest.rfind(':')?;
    (!rest[colon..].contains('/')).then(|| &rest[colon + 1..])
}

/// The registry host a reference points to; `docker.io` when none is named. For looking up credentials.
pub(crate) fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    algorithm.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b))
        && hex.len() >= 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = domain.split_once(':').map_or((domain, None), |(host, port)| (host, Some(port)));
    port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
        && host.split('.').all(|part| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_path_component)
}

/// Lower-case words joined by one dot, one or two underscores, or any number of hyphens.
fn is_path_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(|b| word(*b)) || !bytes.last().is_some_and(|b| word(*b)) {
        return false;
    }
    let mut separator = String::new();
    for b in component.chars() {
        if b.is_ascii_lowercase() || b.is_ascii_digit() {
            if !separator.is_empty()
                && !matches!(separator.as_str(), "." | "_" | "__")
                && separator.chars().any(|c| c != '-')
            {
                return false;
            }
            separator.clear();
        } else if matches!(b, '.' | '_' | '-') {
            separator.push(b);
        } else {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_get_their_default_tag() {
        let digest = format!("busybox@sha256:{}", "a".repeat(64));
        for (image, expected) in [
            ("busybox", "busybox:latest"),
            ("busybox:1.36", "busybox:1.36"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("registry.example.com/team/app:v1-2.3", "registry.example.com/team/app:v1-2.3"),
            ("a/b__c/d---e", "a/b__c/d---e:latest"),
            (&digest, &digest),
        ] {
            assert_eq!(with_default_tag(image).as_deref(), Ok(expected), "{image}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_upstream_words() {
        let plain = |image: &str| format!("couldn't parse image name \"{image}\": invalid reference format");
        for image in
            ["", ":", "a b", "busybox:", "busybox@sha256:12", "-a", "a//b", "a:tag with space", "a/_b"]
        {
            assert_eq!(with_default_tag(image), Err(plain(image)), "{image}");
        }
        let upper = "couldn't parse image name \"BusyBox\": invalid reference format: repository name (library/BusyBox) must be lowercase";
        assert_eq!(with_default_tag("BusyBox"), Err(upper.to_owned()));
    }

    #[test]
    fn tags_and_registries() {
        for (image, want_tag, want_registry) in [
            ("busybox:1", Some("1"), "docker.io"),
            ("localhost:5000/a", None, "localhost:5000"),
            ("quay.io/x/y:latest", Some("latest"), "quay.io"),
            ("library/busybox@sha256:00", None, "docker.io"),
        ] {
            assert_eq!((tag(image), registry(image)), (want_tag, want_registry), "{image}");
        }
    }
}
