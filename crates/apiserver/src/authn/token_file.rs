//! Static bearer tokens (`--token-auth-file`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::UserInfo;

/// Bearer tokens of a `--token-auth-file`: lines of `token,user,uid,"group,group"`.
#[derive(Default)]
pub struct TokenFile(HashMap<String, UserInfo>);

impl TokenFile {
    /// Reads the file.
    pub fn load(path: &Path) -> std::io::Result<TokenFile> {
        Ok(TokenFile::parse(&std::fs::read_to_string(path)?))
    }

    /// Reads the text of such a file; lines without three columns are left out.
    pub fn parse(text: &str) -> TokenFile {
        TokenFile(
            text.lines()
                .filter_map(|line| {
                    let columns = csv_columns(line);
                    let [token, name, uid, rest @ ..] = columns.as_slice() else { return None };
                    let groups = rest.first().map(String::as_str).unwrap_or("");
                    let user = UserInfo {
                        name: name.clone(),
                        uid: uid.clone(),
                        groups: groups
                            .split(',')
                            .map(str::trim)
                            .filter(|g| !g.is_empty())
                            .map(String::from)
                            .collect(),
                        extra: BTreeMap::new(),
                    };
                    (!token.is_empty()).then(|| (token.clone(), user))
                })
                .collect(),
        )
    }

    /// Whose token it is.
    pub fn find(&self, token: &str) -> Option<&UserInfo> {
        self.0.get(token)
    }
}

/// Splits one line of comma-separated values; double quotes protect commas.
fn csv_columns(line: &str) -> Vec<String> {
    let mut columns = vec![String::new()];
    let mut quoted = false;
    for c in line.trim().chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => columns.push(String::new()),
            c => {
                if let Some(column) = columns.last_mut() {
                    column.push(c);
                }
            }
        }
    }
    columns.into_iter().map(|c| c.trim().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let file = TokenFile::parse("t1,alice,u1,\"a,b\"\nt2,bob,u2\nbroken\n");
        assert_eq!(file.0["t1"].groups, ["a", "b"]);
        assert!(file.0["t2"].groups.is_empty());
        assert_eq!(file.0.len(), 2);
    }
}
