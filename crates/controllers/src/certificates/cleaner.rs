//! Removes requests whose time is over.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, DeleteParams};
use orlop_client::{Informer, run_workers};
use x509_parser::pem::parse_x509_pem;

use super::{condition, is_issued, queue};
use crate::error::{Error, unless_gone};
use crate::objects::Meta;
use crate::shell::Shell;

/// A request that was decided is of no use for longer.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
/// One that nobody decided, or signed, may still be.
const PENDING: SignedDuration = SignedDuration::from_hours(24);

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let requests: Informer<CertificateSigningRequest> = shell.informers.informer();
    requests.synced().await;
    let queue = queue(&requests, |_| true);
    let (requests, client) = (&requests, &shell.client);
    let name = "certificatesigningrequest-cleaner-controller";
    run_workers(name, queue, 1, shell.shutdown, |name: String| async move {
        let Some(request) = requests.get("", &name) else { return Ok(None) };
        let left = ends(&request).duration_since(Timestamp::now());
        if let Some(left) = Duration::try_from(left).ok().filter(|left| !left.is_zero()) {
            return Ok(Some(left));
        }
        let api = Api::<CertificateSigningRequest>::all(client.clone());
        unless_gone(api.delete(&name, &DeleteParams::default()).await)?;
        Ok::<_, Error>(None)
    })
    .await;
    Ok(())
}

/// When a request's time is over.
fn ends(request: &CertificateSigningRequest) -> Timestamp {
    let decided = |kind: &str| {
        let condition = condition(request, kind)?;
        let since = condition.last_update_time.as_ref().map_or(request.created(), |time| time.0);
        // Who decides says when, and may say the last moment there is.
        Some(since.checked_add(DECIDED).unwrap_or(Timestamp::MAX))
    };
    let issued = is_issued(request).then(|| decided("Approved")).flatten();
    let certificate = request.status.as_ref().and_then(|status| status.certificate.as_ref());
    let expired = certificate.and_then(|certificate| expires(&certificate.0));
    let ends = [issued, decided("Denied"), decided("Failed"), expired];
    ends.into_iter().flatten().min().unwrap_or_else(|| request.created() + PENDING)
}

fn expires(pem: &[u8]) -> Option<Timestamp> {
    let (_, block) = parse_x509_pem(pem).ok()?;
    Timestamp::from_second(block.parse_x509().ok()?.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::{at, object};
    use serde_json::{Value, json};

    #[test]
    fn times() {
        let check = |what: &str, status: Value, expected: &str| {
            let request =
                object(json!({"metadata": {"name": "r", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"request": "", "signerName": "x"}, "status": status}));
            assert_eq!(ends(&request), at(expected), "{what}");
        };
        let decided =
            |kind: &str| json!([{"type": kind, "status": "True", "lastUpdateTime": "2026-01-01T10:00:00Z"}]);
        check("pending", json!({}), "2026-01-02T00:00:00Z");
        check("denied", json!({"conditions": decided("Denied")}), "2026-01-01T11:00:00Z");
        check("failed", json!({"conditions": decided("Failed")}), "2026-01-01T11:00:00Z");
        check("approved", json!({"conditions": decided("Approved")}), "2026-01-02T00:00:00Z");
        check(
            "issued",
            json!({"conditions": decided("Approved"), "certificate": "eA=="}),
            "2026-01-01T11:00:00Z",
        );
    }
}
