//! What to do with one object, from what its owners are like now.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::graph::{FOREGROUND, ORPHAN};

/// What a live look at an owner said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It is there, so the object stays.
    Solid,
    /// It is gone, or another object has its name now.
    Absent,
    /// It waits for its dependents to be deleted.
    Waiting,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    Keep,
    /// Some owners are gone but one stays: the object keeps these references only.
    Release(Vec<OwnerReference>),
    /// No owner stays.
    Delete(Policy),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Orphan,
    Foreground,
    Background,
}

/// `owners` are the object's references with what they point at; `has_dependents` whether others name it as owner.
pub(crate) fn judge(meta: &ObjectMeta, owners: &[(OwnerReference, Owner)], has_dependents: bool) -> Verdict {
    let any = |kind: Owner| owners.iter().any(|(_, state)| *state == kind);
    if owners.is_empty() {
        return Verdict::Keep;
    }
    if any(Owner::Solid) {
        if !any(Owner::Absent) && !any(Owner::Waiting) {
            return Verdict::Keep;
        }
        let solid = owners.iter().filter(|(_, state)| *state == Owner::Solid);
        return Verdict::Release(solid.map(|(reference, _)| reference.clone()).collect());
    }
    if any(Owner::Waiting) && has_dependents {
        // The chain ends from its end: first what depends on this one.
        return Verdict::Delete(Policy::Foreground);
    }
    let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|present| present == finalizer);
    // A policy somebody asked for earlier stays.
    Verdict::Delete(if has(ORPHAN) {
        Policy::Orphan
    } else if has(FOREGROUND) {
        Policy::Foreground
    } else {
        Policy::Background
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Owner::{Absent, Solid, Waiting};

    #[test]
    fn judges() {
        let owner = |uid: usize| OwnerReference { uid: uid.to_string(), ..OwnerReference::default() };
        let check = |finalizers: &[&str], states: &[Owner], has_dependents: bool, expected: Verdict| {
            let finalizers = finalizers.iter().map(|name| (*name).to_owned()).collect();
            let meta = ObjectMeta { finalizers: Some(finalizers), ..ObjectMeta::default() };
            let owners: Vec<_> =
                states.iter().enumerate().map(|(index, state)| (owner(index), *state)).collect();
            assert_eq!(judge(&meta, &owners, has_dependents), expected, "{states:?} {meta:?}");
        };
        check(&[], &[], false, Verdict::Keep);
        check(&[], &[Solid], false, Verdict::Keep);
        check(&[], &[Absent], false, Verdict::Delete(Policy::Background));
        check(&[ORPHAN], &[Absent], false, Verdict::Delete(Policy::Orphan));
        check(&[FOREGROUND], &[Absent], false, Verdict::Delete(Policy::Foreground));
        check(&[], &[Absent, Solid], false, Verdict::Release(vec![owner(1)]));
        check(&[], &[Solid, Waiting], true, Verdict::Release(vec![owner(0)]));
        check(&[], &[Waiting], true, Verdict::Delete(Policy::Foreground));
        check(&[], &[Waiting], false, Verdict::Delete(Policy::Background));
    }
}
