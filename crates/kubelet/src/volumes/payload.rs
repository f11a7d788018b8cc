//! What goes into the files of configMap, secret, downwardAPI and projected volumes. Answers to upstream's plugins of
//! those names.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume};

use super::Sources;
use super::atomic_writer::{File, Payload};
use crate::fields::{self, FieldContext};
use crate::pod::PodExt;

/// A payload and the time at which it must be made again (token renewal).
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub files: Payload,
    pub again_at: Option<Timestamp>,
}

/// Names of the ConfigMaps and Secrets a volume reads.
pub(crate) fn references(
    volume: &Volume,
    config_maps: &mut BTreeSet<String>,
    secrets: &mut BTreeSet<String>,
) {
    config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
    secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
    for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        config_maps.extend(source.config_map.iter().map(|s| s.name.clone()));
        secrets.extend(source.secret.iter().map(|s| s.name.clone()));
    }
}

/// The files of a volume; `Ok(None)` when its kind has no payload.
pub(crate) async fn make(
    pod: &Pod,
    volume: &Volume,
    sources: &Sources,
    fields: &FieldContext,
) -> Result<Option<Made>, String> {
    let mut made = Made::default();
    let namespace = pod.namespace();
    if let Some(source) = &volume.config_map {
        let data = sources.config_map(namespace, &source.name, source.optional).await?;
        let name = format!("configmap \"{}\"", source.name);
        pick(
            &mut made.files,
            data,
            source.items.as_deref(),
            mode(source.default_mode),
            source.optional,
            &name,
        )?;
    } else if let Some(source) = &volume.secret {
        let secret = source.secret_name.as_deref().unwrap_or_default();
        let data = sources.secret(namespace, secret, source.optional).await?;
        let name = format!("secret \"{secret}\"");
        pick(
            &mut made.files,
            data,
            source.items.as_deref(),
            mode(source.default_mode),
            source.optional,
            &name,
        )?;
    } else if let Some(source) = &volume.downward_api {
        downward(&mut made.files, pod, source.items.as_deref(), mode(source.default_mode), fields)?;
    } else if let Some(projected) = &volume.projected {
        let default_mode = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                let data = sources.config_map(namespace, &source.name, source.optional).await?;
                let name = format!("configmap \"{}\"", source.name);
                pick(&mut made.files, data, source.items.as_deref(), default_mode, source.optional, &name)?;
            } else if let Some(source) = &source.secret {
                let data = sources.secret(namespace, &source.name, source.optional).await?;
                let name = format!("secret \"{}\"", source.name);
                pick(&mut made.files, data, source.items.as_deref(), default_mode, source.optional, &name)?;
            } else if let Some(source) = &source.downward_api {
                downward(&mut made.files, pod, source.items.as_deref(), default_mode, fields)?;
            } else if let Some(source) = &source.service_account_token {
                let (token, again) = sources.tokens.token(pod, source).await?;
                made.again_at = Some(made.again_at.map_or(again, |at| at.min(again)));
                let owner = common_user(pod);
                let private = owner.is_some()
                    || pod.pod_spec().security_context.as_ref().is_some_and(|c| c.fs_group.is_some());
                let mode = if private { 0o600 } else { default_mode };
                made.files.insert(source.path.clone(), File { data: token.into_bytes(), mode, uid: owner });
            } else if source.cluster_trust_bundle.is_some() {
                return Err(
                    "projected volume source clusterTrustBundle is not supported by this kubelet".to_owned()
                );
            } else if source.pod_certificate.is_some() {
                return Err(
                    "projected volume source podCertificate is not supported by this kubelet".to_owned()
                );
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(made))
}

fn mode(bits: Option<i32>) -> u32 {
    bits.map_or(0o644, |bits| u32::try_from(bits).unwrap_or(0o644))
}

/// All keys of an object as files, or the listed ones under their paths.
fn pick(
    files: &mut Payload,
    data: Vec<(String, Vec<u8>)>,
    items: Option<&[KeyToPath]>,
    default_mode: u32,
    optional: Option<bool>,
    what: &str,
) -> Result<(), String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        files.extend(data.into_iter().map(|(key, data)| (key, File { data, mode: default_mode, uid: None })));
        return Ok(());
    };
    for item in items {
        match data.iter().find(|(key, _)| *key == item.key) {
            Some((_, bytes)) => {
                let mode = item.mode.map_or(default_mode, |bits| mode(Some(bits)));
                files.insert(item.path.clone(), File { data: bytes.clone(), mode, uid: None });
            }
            None if optional == Some(true) => {}
            None => {
                // Upstream names only the kind here.
                let kind = what.split(' ').next().unwrap_or(what);
                return Err(format!("{kind} references non-existent {kind} key: {}", item.key));
            }
        }
    }
    Ok(())
}

fn downward(
    files: &mut Payload,
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    default_mode: u32,
    context: &FieldContext,
) -> Result<(), String> {
    for item in items.unwrap_or_default() {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => fields::field_value(pod, field, context)?,
            (None, Some(resource)) => fields::resource_value(pod, resource, None, context)?,
            (None, None) => continue,
        };
        let mode = item.mode.map_or(default_mode, |bits| mode(Some(bits)));
        files.insert(item.path.clone(), File { data: value.into_bytes(), mode, uid: None });
    }
    Ok(())
}

/// The user all containers run as, when the pod says so for every one of them: tokens then belong to that user.
fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.pod_spec();
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = pod
        .init_containers()
        .iter()
        .chain(&spec.containers)
        .map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next().flatten()?;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}
