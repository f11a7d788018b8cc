//! Who a container's process is: names resolved in the image's own `/etc/passwd` and `/etc/group`.

use std::path::Path;

use orlop_cri::{LinuxSecurityContext, RunAsUser};

use crate::error::{Result, RuntimeError};
use crate::images::rooted::Rooted;

/// Longest user database that is read, bytes.
const MAX_DATABASE: u64 = 4 << 20;

/// uid, gid and all groups (the primary one included), as the kernel wants them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// The identity for `security` in the image root `rootfs`; `image_user` is the image's `User` (`name`, `uid`, with an
/// optional `:group`).
pub(crate) fn resolve(rootfs: &Path, image_user: &str, security: &LinuxSecurityContext) -> Result<Identity> {
    let root = Rooted::open(rootfs)?;
    let passwd = root.read_to_string(Path::new("etc/passwd"), MAX_DATABASE).unwrap_or_default();
    let group = root.read_to_string(Path::new("etc/group"), MAX_DATABASE).unwrap_or_default();
    resolve_in(&passwd, &group, image_user, security)
}

fn resolve_in(
    passwd: &str,
    group: &str,
    image_user: &str,
    security: &LinuxSecurityContext,
) -> Result<Identity> {
    let users = parse_passwd(passwd);
    let groups = parse_group(group);
    let (user, image_group) = match &security.run_as_user {
        Some(RunAsUser::Uid(uid)) => (uid.to_string(), None),
        Some(RunAsUser::Name(name)) => (name.clone(), None),
        None => match image_user.split_once(':') {
            Some((user, group)) => (user.to_owned(), Some(group)),
            None => (image_user.to_owned(), None),
        },
    };
    let entry = find_user(&users, &user);
    let uid = match (&entry, user.as_str()) {
        (Some(entry), _) => entry.uid,
        (None, "") => 0,
        (None, text) => text.parse().map_err(|_| unable("user", text, "passwd"))?,
    };
    let gid = match (security.run_as_group, image_group) {
        (Some(gid), _) => {
            u32::try_from(gid).map_err(|_| RuntimeError::Invalid(format!("invalid group id {gid}")))?
        }
        (None, Some(name)) => find_group(&groups, name)?,
        (None, None) => entry.map_or(0, |entry| entry.gid),
    };
    let mut all = vec![gid];
    if let Some(entry) = entry {
        all.extend(groups.iter().filter(|group| group.members.contains(&entry.name)).map(|group| group.gid));
    }
    for gid in &security.supplemental_groups {
        all.push(
            u32::try_from(*gid)
                .map_err(|_| RuntimeError::Invalid(format!("invalid supplemental group {gid}")))?,
        );
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|gid| seen.insert(*gid));
    Ok(Identity { uid, gid, groups: all })
}

fn unable(what: &str, name: &str, file: &str) -> RuntimeError {
    RuntimeError::Invalid(format!("unable to find {what} {name}: no matching entries in {file} file"))
}

fn find_user<'a>(users: &'a [Passwd], text: &str) -> Option<&'a Passwd> {
    let by_name = users.iter().find(|user| user.name == text);
    by_name.or_else(|| {
        let uid = if text.is_empty() { 0 } else { text.parse().ok()? };
        users.iter().find(|user| user.uid == uid)
    })
}

fn find_group(groups: &[Group], text: &str) -> Result<u32> {
    match groups.iter().find(|group| group.name == text) {
        Some(group) => Ok(group.gid),
        None => text.parse().map_err(|_| unable("group", text, "group")),
    }
}

fn parse_passwd(text: &str) -> Vec<Passwd> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next()?.to_owned();
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Passwd { name, uid, gid })
        })
        .collect()
}

fn parse_group(text: &str) -> Vec<Group> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next()?.to_owned();
            let gid = fields.nth(1)?.parse().ok()?;
            let members = fields.next().unwrap_or_default();
            Some(Group {
                name,
                gid,
                members: members.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/var/www:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlogs:x:50:web,other\n";

    fn check(image: &str, security: LinuxSecurityContext, expected: Result<(u32, u32, Vec<u32>), &str>) {
        let got = resolve_in(PASSWD, GROUP, image, &security)
            .map(|identity| (identity.uid, identity.gid, identity.groups))
            .map_err(|error| error.to_string());
        assert_eq!(got, expected.map_err(str::to_owned), "{image} {security:?}");
    }

    #[test]
    fn users_and_groups() {
        let none = LinuxSecurityContext::default;
        check("", none(), Ok((0, 0, vec![0])));
        check("web", none(), Ok((33, 34, vec![34, 50])));
        check("33", none(), Ok((33, 34, vec![34, 50])));
        check("web:logs", none(), Ok((33, 50, vec![50])));
        check("1000", none(), Ok((1000, 0, vec![0])));
        check("1000:2000", none(), Ok((1000, 2000, vec![2000])));
        check("nobody", none(), Err("unable to find user nobody: no matching entries in passwd file"));
        check("web:nogroup", none(), Err("unable to find group nogroup: no matching entries in group file"));
        let as_user = |uid, gid, groups: &[i64]| LinuxSecurityContext {
            run_as_user: Some(RunAsUser::Uid(uid)),
            run_as_group: gid,
            supplemental_groups: groups.to_vec(),
            ..LinuxSecurityContext::default()
        };
        check("web", as_user(1001, None, &[]), Ok((1001, 0, vec![0])));
        check("web", as_user(1001, Some(7), &[8, 7, 9]), Ok((1001, 7, vec![7, 8, 9])));
        check("", as_user(33, None, &[]), Ok((33, 34, vec![34, 50])));
    }
}
