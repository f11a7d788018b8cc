//! Lists: which snapshot, which objects of it, in which pages.
//!
//! A page is cut from a snapshot of the cache; the continue token names the snapshot's revision, and later pages see
//! exactly that state again because the cache can undo its recent events.

use std::sync::Arc;

use base64::Engine as _;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::status::ApiError;
use serde::{Deserialize, Serialize};

use super::selection::Selection;
use crate::cache::{Cache, Entry, from};
use crate::request_info::Query;

/// Parameters of a list or watch.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Most objects of a page; 0 means all.
    pub limit: usize,
    /// Token of the next page; may be empty.
    pub continue_token: String,
    /// `resourceVersion`; may be empty.
    pub resource_version: String,
    /// `resourceVersionMatch`; may be empty.
    pub version_match: String,
    /// `sendInitialEvents`
    pub send_initial_events: Option<bool>,
    /// `allowWatchBookmarks`
    pub bookmarks: bool,
    /// `timeoutSeconds`
    pub timeout_seconds: Option<u64>,
}

impl ListOptions {
    /// Reads and checks them.
    pub fn parse(query: &Query, watch: bool) -> Result<ListOptions, ApiError> {
        let timeout_seconds = query.integer("timeoutSeconds")?;
        let options = ListOptions {
            // A negative limit is none.
            limit: query.integer("limit")?.and_then(|limit| limit.try_into().ok()).unwrap_or(0),
            continue_token: query.value("continue").to_string(),
            resource_version: query.value("resourceVersion").to_string(),
            version_match: query.value("resourceVersionMatch").to_string(),
            send_initial_events: query.optional_flag("sendInitialEvents"),
            bookmarks: query.flag("allowWatchBookmarks"),
            timeout_seconds: timeout_seconds.and_then(|seconds| seconds.try_into().ok()),
        };
        let errors = if watch { options.watch_errors() } else { options.list_errors() };
        if errors.is_empty() {
            Ok(options)
        } else {
            Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", errors))
        }
    }

    fn list_errors(&self) -> ErrorList {
        let mut errors = ErrorList::new();
        let path = Path::new("resourceVersionMatch");
        if !self.version_match.is_empty() {
            if self.resource_version.is_empty() {
                errors.push(field::forbidden(
                    &path,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !self.continue_token.is_empty() {
                errors.push(field::forbidden(
                    &path,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if !matches!(self.version_match.as_str(), "Exact" | "NotOlderThan") {
                errors.push(field::not_supported(
                    &path,
                    self.version_match.as_str(),
                    &["Exact", "NotOlderThan", ""],
                ));
            }
            if self.version_match == "Exact" && self.resource_version == "0" {
                errors.push(field::forbidden(
                    &path,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if self.send_initial_events.is_some() {
            errors.push(field::forbidden(
                &Path::new("sendInitialEvents"),
                "sendInitialEvents is forbidden for list",
            ));
        }
        errors
    }

    fn watch_errors(&self) -> ErrorList {
        let mut errors = ErrorList::new();
        let path = Path::new("resourceVersionMatch");
        if self.send_initial_events.is_some() {
            if self.version_match != "NotOlderThan" {
                errors.push(field::forbidden(
                    &path,
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            if !matches!(self.version_match.as_str(), "" | "NotOlderThan") {
                errors.push(field::not_supported(&path, self.version_match.as_str(), &["NotOlderThan"]));
            }
        } else if !self.version_match.is_empty() {
            errors.push(field::forbidden(
                &path,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        if !self.continue_token.is_empty() {
            errors.push(field::forbidden(&Path::new("continue"), "continue is forbidden for watch"));
        }
        errors
    }

    /// The resource version as a number; `None` when unset.
    pub fn revision(&self) -> Result<Option<u64>, ApiError> {
        parse_revision(&self.resource_version)
    }
}

/// Reads a resource version; upstream answers a bad one with a 500 without a reason.
pub fn parse_revision(text: &str) -> Result<Option<u64>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        ApiError::generic(
            500,
            "",
            format!(
                "resourceVersion: Invalid value: {0}: strconv.ParseUint: parsing {0}: invalid syntax",
                field::go_quote(text)
            ),
        )
    })
}

#[derive(Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: i64,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

fn encode_continue(revision: i64, after: &str) -> String {
    let token = Continue { v: TOKEN_VERSION.into(), rv: revision, start: format!("{after}\0") };
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(orlop_json::to_vec(&token).unwrap_or_default())
}

fn decode_continue(token: &str) -> Result<Continue, ApiError> {
    let bad = |why: String| {
        ApiError::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
    };
    // Go's decoder does not look at the bits that are left over.
    let lenient = base64::engine::GeneralPurpose::new(
        &base64::alphabet::URL_SAFE,
        base64::engine::general_purpose::NO_PAD.with_decode_allow_trailing_bits(true),
    );
    let raw = lenient.decode(token.trim_end_matches('=')).map_err(|error| bad(error.to_string()))?;
    let value: orlop_json::Value = match orlop_json::from_slice(&raw) {
        Ok(value) => value,
        Err(_) => {
            let first = raw.iter().find(|b| !b.is_ascii_whitespace()).copied().unwrap_or(0);
            return Err(bad(format!("invalid character {} looking for beginning of value", go_char(first))));
        }
    };
    let version = value.get("v").and_then(|v| v.as_str()).unwrap_or("");
    if version != TOKEN_VERSION {
        return Err(bad(format!("server does not recognize this encoded version {version}")));
    }
    let token: Continue = orlop_json::from_value(&value).map_err(|error| bad(error.to_string()))?;
    if token.start.is_empty() {
        return Err(bad("encoded start key is empty".to_string()));
    }
    if token.start.contains("..") || token.start.starts_with('/') {
        return Err(bad(token.start));
    }
    Ok(token)
}

/// A byte as Go prints it in a decoder's message.
fn go_char(byte: u8) -> String {
    match byte {
        b'\'' => "'\\''".to_string(),
        0x20..=0x7e => format!("'{}'", byte as char),
        other => format!("'\\u{other:04x}'"),
    }
}

/// One page of a list.
pub struct Page {
    /// Its objects.
    pub entries: Vec<Arc<Entry>>,
    /// `metadata.resourceVersion` of the list.
    pub revision: u64,
    /// Token of the next page; empty at the end.
    pub continue_token: String,
    /// How many objects follow; unknown under selectors.
    pub remaining: Option<usize>,
}

/// The 410 for a revision whose history is gone.
pub fn expired(requested: u64, oldest: u64) -> ApiError {
    ApiError::expired(format!("too old resource version: {requested} ({oldest})"))
}

/// What upstream says when the history behind a continue token is gone.
const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// Waits shortly for a revision that is ahead of this server, then refuses.
async fn wait_for(caches: &crate::cache::Caches, revision: u64) -> Result<(), ApiError> {
    if tokio::time::timeout(std::time::Duration::from_secs(3), caches.wait(revision)).await.is_ok() {
        return Ok(());
    }
    let mut error = ApiError::timeout(
        format!("Too large resource version: {revision}, current: {}", caches.applied()),
        1,
    );
    if let Some(details) = &mut error.0.details {
        details.causes.push(orlop_api::status::StatusCause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            ..Default::default()
        });
    }
    Err(error)
}

/// Lists a namespace (or, when empty, everything) of a kind.
pub async fn page(
    caches: &crate::cache::Caches,
    cache: &Cache,
    namespace: &str,
    options: &ListOptions,
    selection: &Selection,
) -> Result<Page, ApiError> {
    let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    let (snapshot, revision, after) = if options.continue_token.is_empty() {
        match options.revision()? {
            Some(wanted) if wanted > 0 => {
                wait_for(caches, wanted).await?;
                let exact = options.version_match == "Exact"
                    || (options.version_match.is_empty() && options.limit > 0);
                if exact {
                    let snapshot = cache.snapshot_at(wanted).map_err(|e| expired(e.requested, e.oldest))?;
                    (snapshot, wanted, String::new())
                } else {
                    let (snapshot, revision) = cache.snapshot();
                    (snapshot, revision, String::new())
                }
            }
            _ => {
                let (snapshot, revision) = cache.snapshot();
                (snapshot, revision, String::new())
            }
        }
    } else {
        let token = decode_continue(&options.continue_token)?;
        if !options.resource_version.is_empty() && options.resource_version != "0" {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let start = token.start;
        if token.rv < 0 {
            let (snapshot, revision) = cache.snapshot();
            (snapshot, revision, start)
        } else {
            let revision = token.rv as u64;
            let snapshot = cache.snapshot_at(revision).map_err(|_| {
                let mut error = ApiError::expired(CONTINUE_EXPIRED);
                // The token in the answer goes on from the same key in the present state.
                let token = encode_continue(-1, start.trim_end_matches('\0'));
                error.0.metadata.insert("continue".into(), token.into());
                error
            })?;
            (snapshot, revision, start)
        }
    };
    if let Some(name) = selection.exact_name()
        && !prefix.is_empty()
    {
        let found = snapshot
            .get(format!("{prefix}{name}").as_str())
            .filter(|entry| selection.matches(entry))
            .cloned();
        return Ok(Page {
            entries: found.into_iter().collect(),
            revision,
            continue_token: String::new(),
            remaining: None,
        });
    }
    let start = format!("{prefix}{after}");
    let mut entries = Vec::new();
    let mut more = false;
    let mut fetched = 0;
    for (key, entry) in snapshot.range::<_, str>(from(&start)) {
        if !key.starts_with(&prefix) {
            break;
        }
        fetched += 1;
        if !selection.matches(entry) {
            continue;
        }
        if options.limit > 0 && entries.len() == options.limit {
            more = true;
            break;
        }
        entries.push(entry.clone());
    }
    cache.reads.lists.inc();
    cache.reads.fetched.add(fetched);
    cache.reads.returned.add(entries.len() as u64);
    let mut page = Page { entries, revision, continue_token: String::new(), remaining: None };
    if more && let Some(last) = page.entries.last() {
        page.continue_token = encode_continue(revision as i64, &last.key[prefix.len()..]);
        if selection.is_everything() {
            let after = format!("{}\0", last.key);
            page.remaining = Some(
                snapshot
                    .range::<_, str>(from(&after))
                    .take_while(|(key, _)| key.starts_with(&prefix))
                    .count(),
            );
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens() {
        let token = decode_continue(&encode_continue(7, "c02")).unwrap();
        assert_eq!((token.rv, token.start.as_str()), (7, "c02\0"));
        let check = |token: &str, expected: &str| {
            let error = decode_continue(token).err().unwrap();
            assert_eq!(
                error.status().message,
                format!("invalid continue token: continue key is not valid: {expected}")
            );
        };
        check("garbage", "invalid character '\\u0081' looking for beginning of value");
        check("e30", "server does not recognize this encoded version ");
    }
}
