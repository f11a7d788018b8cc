//! Certificate signing requests: kubelets' are approved, approved ones are signed, old ones are removed. Answers to
//! upstream's `certificatesigningrequest-approving-controller`, `-signing-controller` and `-cleaner-controller`.

mod cleaner;
mod der;
mod request;
mod sign;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, PostParams};
use orlop_client::{Informer, InformerEvent, WorkQueue, run_workers};

pub(crate) use cleaner::run as clean;
pub use sign::Signing;

use crate::error::{Error, unless_gone};
use crate::objects::Meta;
use crate::shell::Shell;
use request::{Parsed, Recognised};

fn condition<'a>(
    request: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref()?.conditions.iter().flatten();
    conditions.into_iter().find(|condition| condition.type_ == kind && condition.status == "True")
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    let certificate = request.status.as_ref().and_then(|status| status.certificate.as_ref());
    certificate.is_some_and(|certificate| !certificate.0.is_empty())
}

fn told(kind: &str, reason: &str, message: &str) -> CertificateSigningRequestCondition {
    let now = Some(Time(Timestamp::now()));
    CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: now.clone(),
        last_transition_time: now,
    }
}

/// Feeds a queue with the names of requests that `wanted` picks.
fn queue(
    requests: &Informer<CertificateSigningRequest>,
    wanted: impl Fn(&CertificateSigningRequest) -> bool + Send + Sync + 'static,
) -> WorkQueue<String> {
    let queue = WorkQueue::named("certificate");
    let own = queue.clone();
    requests.subscribe(move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) && wanted(event.object()) {
            own.add(event.object().name().to_owned());
        }
    });
    queue
}

/// Approves what kubelets ask for, when RBAC says that they may have it.
pub(crate) async fn approve(shell: Shell) -> Result<(), Error> {
    let requests: Informer<CertificateSigningRequest> = shell.informers.informer();
    requests.synced().await;
    let undecided = |request: &CertificateSigningRequest| {
        !is_issued(request) && ["Approved", "Denied"].iter().all(|kind| condition(request, kind).is_none())
    };
    let queue = queue(&requests, undecided);
    let (requests, client) = (&requests, &shell.client);
    let name = "certificatesigningrequest-approving-controller";
    run_workers(name, queue, 5, shell.shutdown, |name: String| async move {
        let Some(request) = requests.get("", &name).filter(|request| undecided(request)) else {
            return Ok(None);
        };
        let parsed = Parsed::read(&request.spec.request.0)
            .map_err(|why| Error::Object(format!("unable to parse csr \"{name}\": {why}")))?;
        let recognised = request::recognise(&request.spec, &parsed);
        for recognised in recognised.iter() {
            if !may_have(client, &request.spec, recognised).await? {
                continue;
            }
            let mut changed = (*request).clone();
            let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
            conditions.push(told("Approved", "AutoApproved", recognised.message));
            let api = Api::<CertificateSigningRequest>::all(client.clone());
            unless_gone(api.replace_subresource("approval", &name, &PostParams::default(), &changed).await)?;
            return Ok(None);
        }
        match recognised.first() {
            Some(_) => {
                let text = "but subject access review was not approved";
                Err(Error::Object(format!("recognized csr \"{name}\" {text}")))
            }
            None => Ok(None::<Duration>),
        }
    })
    .await;
    Ok(())
}

/// Whether RBAC lets the asker have a certificate of this kind.
async fn may_have(
    client: &kube::Client,
    spec: &CertificateSigningRequestSpec,
    recognised: &Recognised,
) -> Result<bool, Error> {
    let attributes = ResourceAttributes {
        group: Some("certificates.k8s.io".to_owned()),
        resource: Some("certificatesigningrequests".to_owned()),
        verb: Some("create".to_owned()),
        subresource: Some(recognised.subresource.to_owned()),
        version: Some("*".to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer =
        Api::<SubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Signs approved requests of the signers that Kubernetes itself has.
pub(crate) async fn sign(shell: Shell) -> Result<(), Error> {
    let Some(signing) = shell.options.signing.clone() else {
        // Without a key nothing is signed, now or later.
        shell.shutdown.cancelled().await;
        return Ok(());
    };
    let requests: Informer<CertificateSigningRequest> = shell.informers.informer();
    requests.synced().await;
    let open = |request: &CertificateSigningRequest| {
        !is_issued(request)
            && condition(request, "Approved").is_some()
            && ["Denied", "Failed"].iter().all(|kind| condition(request, kind).is_none())
            && sign::SIGNERS.contains(&request.spec.signer_name.as_str())
    };
    let queue = queue(&requests, open);
    let (requests, client, signing) = (&requests, &shell.client, &signing);
    let name = "certificatesigningrequest-signing-controller";
    run_workers(name, queue, 5, shell.shutdown, |name: String| async move {
        let Some(request) = requests.get("", &name).filter(|request| open(request)) else { return Ok(None) };
        let mut changed = (*request).clone();
        let status = changed.status.get_or_insert_default();
        match sign::certificate(&request.spec, signing, Timestamp::now()) {
            Ok(pem) => status.certificate = Some(k8s_openapi::ByteString(pem.into_bytes())),
            Err(sign::Refusal::Invalid(why)) => {
                let failed = told("Failed", "SignerValidationFailure", &why);
                status.conditions.get_or_insert_default().push(failed);
            }
            Err(sign::Refusal::Signing(why)) => {
                return Err(Error::Object(format!("error auto signing csr: {why}")));
            }
        }
        let api = Api::<CertificateSigningRequest>::all(client.clone());
        unless_gone(api.replace_status(&name, &PostParams::default(), &changed).await)?;
        Ok(None::<Duration>)
    })
    .await;
    Ok(())
}
