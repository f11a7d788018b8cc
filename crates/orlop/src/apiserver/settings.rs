//! From flags to the API server's options, with upstream's checks of what does not go together.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use orlop_apiserver::Options;
use orlop_apiserver::admission::default_plugins;
use orlop_apiserver::http::cors::Cors;
use orlop_apiserver::options::{
    AuthorizationMode, OidcOptions, RequestHeaderOptions, SniCertificate, WebhookOptions,
};
use orlop_apiserver::pki::Leaf;
use orlop_apiserver::runtime_config::RuntimeConfig;

use super::flags::Flags;
use super::{audit, features, operations};

/// The options that flags ask for.
pub fn options(flags: &Flags) -> anyhow::Result<Options> {
    let gates = flags.bool_map("feature-gates")?;
    features::check(gates.iter())?;
    let data_dir = PathBuf::from(flags.text("data-dir"));
    let named = flags.path("cert-dir").filter(|_| flags.has("cert-dir"));
    let cert_dir = named.or_else(|| Some(data_dir.join("pki")));
    let base = Options {
        feature_gates: gates,
        cert_dir,
        flags: flags.shown(),
        runtime_config: runtime_config(flags)?,
        admission_control_config_file: flags.path("admission-control-config-file"),
        encryption_provider_config: flags.path("encryption-provider-config"),
        encryption_automatic_reload: flags.bool("encryption-provider-config-automatic-reload")?,
        compaction_interval: flags.duration("etcd-compaction-interval")?.as_secs(),
        event_ttl: flags.duration("event-ttl")?.as_secs(),
        store_check_timeouts: [
            flags.duration("etcd-healthcheck-timeout")?,
            flags.duration("etcd-readycheck-timeout")?,
        ],
        audit: audit::options(flags)?,
        ..Options::default()
    };
    if base.encryption_automatic_reload {
        ensure!(
            base.encryption_provider_config.is_some(),
            "--encryption-provider-config-automatic-reload must be set with --encryption-provider-config"
        );
    }
    let options = operations::options(flags, generic(flags, base)?)?;
    let options = admission(flags, options)?;
    let options = serving(flags, options)?;
    let options = authentication(flags, options)?;
    let options = service_accounts(flags, options)?;
    let options = authorization(flags, options)?;
    network(flags, options)
}

fn runtime_config(flags: &Flags) -> anyhow::Result<BTreeMap<String, bool>> {
    let set = flags.bool_map("runtime-config")?;
    RuntimeConfig::parse(&set).map_err(anyhow::Error::msg)?;
    Ok(set)
}

fn admission(flags: &Flags, options: Options) -> anyhow::Result<Options> {
    let (mut enabled, mut disabled) =
        (flags.list("enable-admission-plugins"), flags.list("disable-admission-plugins"));
    // The old flag names all plugins: what is on by default and not among them is off.
    let all = flags.list("admission-control");
    if !all.is_empty() {
        ensure!(
            enabled.is_empty() && disabled.is_empty(),
            "admission-control and enable-admission-plugins/disable-admission-plugins flags are mutually exclusive"
        );
        disabled =
            default_plugins().filter(|name| !all.iter().any(|n| n == name)).map(String::from).collect();
        enabled = all;
    }
    Ok(Options {
        enable_admission_plugins: enabled,
        disable_admission_plugins: disabled,
        allow_privileged: flags.bool("allow-privileged")?,
        default_not_ready_toleration_seconds: flags.number("default-not-ready-toleration-seconds")?,
        default_unreachable_toleration_seconds: flags.number("default-unreachable-toleration-seconds")?,
        ..options
    })
}

fn address(flags: &Flags, name: &str) -> anyhow::Result<Option<IpAddr>> {
    let Some(text) = flags.optional(name) else { return Ok(None) };
    let address = IpAddr::from_str(&text).with_context(|| {
        format!("invalid argument {text:?} for \"--{name}\" flag: failed to parse IP: {text:?}")
    })?;
    Ok(Some(address))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn generic(flags: &Flags, options: Options) -> anyhow::Result<Options> {
    let goaway_chance: f64 = flags.number("goaway-chance")?;
    ensure!(
        (0.0..=0.02).contains(&goaway_chance),
        "--goaway-chance can not be less than 0 or greater than 0.02"
    );
    let shutdown_delay = flags.duration("shutdown-delay-duration")?;
    let cors_allowed_origins = flags.list("cors-allowed-origins");
    Cors::new(&cors_allowed_origins).map_err(anyhow::Error::msg)?;
    Ok(Options {
        cors_allowed_origins,
        shutdown_watch_grace: flags.duration("shutdown-watch-termination-grace-period")?,
        advertise_address: address(flags, "advertise-address")?,
        external_hostname: flags.optional("external-hostname"),
        strict_transport_security: flags.list("strict-transport-security-directives"),
        max_requests_inflight: flags.number("max-requests-inflight")?,
        max_mutating_requests_inflight: flags.number("max-mutating-requests-inflight")?,
        priority_and_fairness: flags.bool("enable-priority-and-fairness")?,
        request_timeout: flags.duration("request-timeout")?,
        min_request_timeout: flags.number("min-request-timeout")?,
        goaway_chance,
        shutdown_delay,
        shutdown_send_retry_after: flags.bool("shutdown-send-retry-after")?,
        ..options
    })
}

fn serving(flags: &Flags, options: Options) -> anyhow::Result<Options> {
    let address = address(flags, "bind-address")?.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let port: u16 = flags.number("secure-port")?;
    ensure!(
        port != 0,
        "--secure-port 0 must be between 1 and 65535, inclusive. It cannot be turned off with 0"
    );
    let serving_cert = match (flags.path("tls-cert-file"), flags.path("tls-private-key-file")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => bail!("--tls-cert-file and --tls-private-key-file go together"),
    };
    let tls13_only = match flags.text("tls-min-version").as_str() {
        "" | "VersionTLS12" => false,
        "VersionTLS13" => true,
        old @ ("VersionTLS10" | "VersionTLS11") => {
            bail!("--tls-min-version {old}: TLS before 1.2 is not built, it is broken")
        }
        other => bail!(
            "unknown tls version {other:?}, must be one of: VersionTLS10, VersionTLS11, VersionTLS12, VersionTLS13"
        ),
    };
    Ok(Options {
        bind_address: (address, port).into(),
        serving_cert,
        tls13_only,
        tls_cipher_suites: flags.list("tls-cipher-suites"),
        sni_certificates: flags
            .list("tls-sni-cert-key")
            .iter()
            .map(|text| sni(text))
            .collect::<Result<_, _>>()?,
        tls_curves: flags
            .list("tls-curve-preferences")
            .iter()
            .map(|text| {
                text.parse().with_context(|| {
                    format!("invalid argument {text:?} for \"--tls-curve-preferences\" flag")
                })
            })
            .collect::<Result<_, _>>()?,
        http1_only: flags.bool("disable-http2-serving")?,
        http2_max_streams: flags.number("http2-max-streams-per-connection")?,
        ..options
    })
}

/// `certificate,key` or `certificate,key:name,name`.
fn sni(text: &str) -> anyhow::Result<SniCertificate> {
    let (files, names) = text.split_once(':').unwrap_or((text, ""));
    let Some((certificate, key)) = files.split_once(',').filter(|(_, key)| !key.contains(',')) else {
        bail!("--tls-sni-cert-key {text:?}: expected comma separated certificate and key file paths");
    };
    Ok(SniCertificate {
        certificate: certificate.trim().into(),
        key: key.trim().into(),
        names: names.split(',').map(|name| name.trim().to_string()).filter(|name| !name.is_empty()).collect(),
    })
}

fn authentication(flags: &Flags, options: Options) -> anyhow::Result<Options> {
    let authentication_config = flags.path("authentication-config");
    let oidc = flags.optional("oidc-issuer-url");
    if authentication_config.is_some() {
        ensure!(
            !flags.given_with_prefix("oidc-"),
            "authentication-config file and oidc-* flags are mutually exclusive"
        );
    }
    ensure!(
        oidc.is_some() == flags.optional("oidc-client-id").is_some(),
        "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set"
    );
    let oidc = oidc
        .map(|issuer_url| {
            anyhow::Ok(OidcOptions {
                issuer_url,
                client_id: flags.text("oidc-client-id"),
                ca_file: flags.path("oidc-ca-file"),
                username_claim: flags.text("oidc-username-claim"),
                username_prefix: flags.text("oidc-username-prefix"),
                groups_claim: flags.text("oidc-groups-claim"),
                groups_prefix: flags.text("oidc-groups-prefix"),
                signing_algs: flags.list("oidc-signing-algs"),
                required_claims: flags.map("oidc-required-claim")?,
            })
        })
        .transpose()?;
    if oidc.is_none() {
        // Asked for even when nothing comes of them.
        for name in [
            "oidc-ca-file",
            "oidc-username-claim",
            "oidc-username-prefix",
            "oidc-groups-claim",
            "oidc-groups-prefix",
        ] {
            flags.text(name);
        }
        flags.list("oidc-signing-algs");
        flags.map("oidc-required-claim")?;
    }
    let ttl = flags.duration("authentication-token-webhook-cache-ttl")?;
    let version = version(flags, "authentication-token-webhook-version")?;
    let token_webhook = flags.path("authentication-token-webhook-config-file").map(|config_file| {
        WebhookOptions { config_file, version, authorized_ttl: ttl, unauthorized_ttl: ttl }
    });
    let request_header = RequestHeaderOptions {
        client_ca_pem: flags.file("requestheader-client-ca-file")?.unwrap_or_default(),
        allowed_names: flags.list("requestheader-allowed-names"),
        username_headers: flags.list("requestheader-username-headers"),
        uid_headers: flags.list("requestheader-uid-headers"),
        group_headers: flags.list("requestheader-group-headers"),
        extra_header_prefixes: flags.list("requestheader-extra-headers-prefix"),
    };
    let proxies = !request_header.client_ca_pem.is_empty();
    if proxies && request_header.username_headers.is_empty() {
        bail!("--requestheader-client-ca-file needs --requestheader-username-headers, such as X-Remote-User");
    }
    Ok(Options {
        client_ca_pem: flags.file("client-ca-file")?,
        token_auth_file: flags.path("token-auth-file"),
        anonymous_auth: flags.bool("anonymous-auth")?,
        bootstrap_token_auth: flags.bool("enable-bootstrap-token-auth")?,
        authentication_config,
        oidc,
        token_webhook,
        request_header: proxies.then_some(request_header),
        ..options
    })
}

fn version(flags: &Flags, name: &str) -> anyhow::Result<String> {
    match flags.text(name) {
        known if matches!(known.as_str(), "v1" | "v1beta1") => Ok(known),
        other => bail!("--{name}: unsupported version {other:?}: use v1 or v1beta1"),
    }
}

fn service_accounts(flags: &Flags, options: Options) -> anyhow::Result<Options> {
    let mut issuers = flags.list("service-account-issuer");
    if issuers.is_empty() {
        issuers.push(options.service_account_issuer.clone());
    }
    for (at, issuer) in issuers.iter().enumerate() {
        ensure!(!issuers[..at].contains(issuer), "service-account-issuer {issuer:?} is already specified");
    }
    let mut keys = Vec::new();
    for path in flags.list("service-account-key-file") {
        keys.push(read(Path::new(&path)).context("--service-account-key-file")?);
    }
    let signing = flags.file("service-account-signing-key-file")?;
    ensure!(
        signing.is_some() || keys.is_empty(),
        "--service-account-key-file needs --service-account-signing-key-file beside it"
    );
    // The public half is found among the keys, or made from the private one.
    let signing = signing.map(|key_pem| Leaf { cert_pem: String::new(), key_pem });
    let jwks = flags.optional("service-account-jwks-uri");
    if let Some(uri) = &jwks {
        ensure!(
            uri.starts_with("https://"),
            "service-account-jwks-uri requires https scheme, parsed as: {uri}"
        );
    }
    let issuer = issuers.remove(0);
    let audiences = match flags.list("api-audiences") {
        named if named.is_empty() => vec![issuer.clone()],
        named => named,
    };
    let longest = flags.duration("service-account-max-token-expiration")?;
    if !longest.is_zero() {
        let hour = Duration::from_secs(3600);
        ensure!(
            longest >= hour && longest.as_secs() <= 1 << 32,
            "the service-account-max-token-expiration must be between 1 hour and 2^32 seconds"
        );
    }
    Ok(Options {
        service_account_issuer: issuer,
        further_service_account_issuers: issuers,
        service_account_keys: keys,
        service_account_signing_key: signing,
        service_account_jwks_uri: jwks,
        service_account_lookup: flags.bool("service-account-lookup")?,
        service_account_extend_token_expiration: flags.bool("service-account-extend-token-expiration")?,
        service_account_max_token_expiration: i64::try_from(longest.as_secs())?,
        api_audiences: audiences,
        ..options
    })
}

fn authorization(flags: &Flags, options: Options) -> anyhow::Result<Options> {
    let authorization_config = flags.path("authorization-config");
    if authorization_config.is_some() {
        ensure!(
            !flags.has("authorization-mode") && !flags.given_with_prefix("authorization-webhook-"),
            "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined"
        );
    }
    let mut modes = Vec::new();
    for name in flags.list("authorization-mode") {
        let mode = match name.as_str() {
            "AlwaysAllow" => AuthorizationMode::AlwaysAllow,
            "AlwaysDeny" => AuthorizationMode::AlwaysDeny,
            "ABAC" => AuthorizationMode::Abac,
            "Webhook" => AuthorizationMode::Webhook,
            "RBAC" => AuthorizationMode::Rbac,
            "Node" => AuthorizationMode::Node,
            other => bail!("authorization-mode {other:?} is not a valid mode"),
        };
        ensure!(
            !modes.contains(&mode),
            "authorization-mode {:?} has mode specified more than once",
            modes_text(flags)
        );
        modes.push(mode);
    }
    let version = version(flags, "authorization-webhook-version")?;
    let authorized_ttl = flags.duration("authorization-webhook-cache-authorized-ttl")?;
    let unauthorized_ttl = flags.duration("authorization-webhook-cache-unauthorized-ttl")?;
    let webhook = flags.path("authorization-webhook-config-file").map(|config_file| WebhookOptions {
        config_file,
        version,
        authorized_ttl,
        unauthorized_ttl,
    });
    ensure!(
        webhook.is_some() == modes.contains(&AuthorizationMode::Webhook) || authorization_config.is_some(),
        "authorization-mode Webhook and --authorization-webhook-config-file go together"
    );
    let policy = flags.path("authorization-policy-file");
    ensure!(
        policy.is_some() == modes.contains(&AuthorizationMode::Abac),
        "authorization-mode ABAC and --authorization-policy-file go together"
    );
    Ok(Options {
        authorization_modes: modes,
        authorization_config,
        authorization_webhook: webhook,
        authorization_policy_file: policy,
        ..options
    })
}

fn modes_text(flags: &Flags) -> Vec<String> {
    flags.list("authorization-mode")
}

fn network(flags: &Flags, options: Options) -> anyhow::Result<Options> {
    let ports = flags.text("service-node-port-range");
    let pair = |name: &str, certificate: &str, key: &str| -> anyhow::Result<Option<Leaf>> {
        match (flags.file(certificate)?, flags.file(key)?) {
            (Some(cert_pem), Some(key_pem)) => Ok(Some(Leaf { cert_pem, key_pem })),
            (None, None) => Ok(None),
            _ => bail!("{name}: --{certificate} and --{key} go together"),
        }
    };
    Ok(Options {
        service_cidrs: service_ranges(flags)?,
        kubelet_address_types: flags.list("kubelet-preferred-address-types"),
        kubelet_port: flags.number("kubelet-port")?,
        kubernetes_node_port: kubernetes_node_port(flags, &ports)?,
        service_node_port_range: port_range(&ports)
            .with_context(|| format!("invalid argument {ports:?} for \"--service-node-port-range\" flag"))?,
        kubelet_ca_pem: flags.file("kubelet-certificate-authority")?,
        kubelet_client: pair("kubelet client", "kubelet-client-certificate", "kubelet-client-key")?,
        proxy_client: pair("proxy client", "proxy-client-cert-file", "proxy-client-key-file")?,
        ..options
    })
}

/// The ranges of Services: one, or one of each family.
fn service_ranges(flags: &Flags) -> anyhow::Result<Vec<(IpAddr, u8)>> {
    /// Bits of the addresses of a range, as upstream bounds them.
    const MAX_BITS: u8 = 20;
    /// What upstream takes when it is told nothing.
    const UNSAID: &str = "10.0.0.0/24";
    let mut ranges = Vec::new();
    let mut named = flags.list("service-cluster-ip-range");
    if named.is_empty() {
        named.push(UNSAID.to_owned());
    }
    for text in named {
        let range: ipnet::IpNet = text
            .parse()
            .with_context(|| format!("--service-cluster-ip-range {text}: invalid CIDR address"))?;
        let smallest = range.max_prefix_len() - MAX_BITS;
        // Of IPv6, upstream uses as much of a larger range as it can.
        ensure!(
            range.prefix_len() >= smallest || range.addr().is_ipv6() && range.prefix_len() >= 64,
            "specified --service-cluster-ip-range is too large; for {}-bit addresses, the mask must be >= {}",
            range.max_prefix_len(),
            smallest
        );
        ranges.push((range.network(), range.prefix_len()));
    }
    match ranges.as_slice() {
        [] | [_] => {}
        [(first, _), (second, _)] => ensure!(
            first.is_ipv4() != second.is_ipv4(),
            "--service-cluster-ip-range[0] and --service-cluster-ip-range[1] must be of different IP family"
        ),
        _ => bail!("--service-cluster-ip-range must not contain more than two entries"),
    }
    Ok(ranges)
}

/// Port of the `kubernetes` Service at the nodes, which must be one of the node ports.
fn kubernetes_node_port(flags: &Flags, range: &str) -> anyhow::Result<u16> {
    let port: u16 = flags.number("kubernetes-service-node-port")?;
    let fits = |(low, high): (u16, u16)| (low..=high).contains(&port);
    ensure!(
        port == 0 || port_range(range).is_ok_and(fits),
        "kubernetes service port range {range} doesn't contain {port}"
    );
    Ok(port)
}

/// `first-last`, `first+count` or one port; both ends included.
fn port_range(text: &str) -> anyhow::Result<(u16, u16)> {
    let parse = |part: &str| part.trim().parse::<u16>().with_context(|| format!("{part:?} is no port"));
    let (low, high) = if let Some((low, high)) = text.split_once('-') {
        (parse(low)?, parse(high)?)
    } else if let Some((low, more)) = text.split_once('+') {
        let low = parse(low)?;
        (low, low.checked_add(parse(more)?).context("the range ends above 65535")?)
    } else {
        (parse(text)?, parse(text)?)
    };
    ensure!(low <= high, "the range ends before it begins");
    Ok((low, high))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_honoured_flag_is_read() {
        let flags = Flags::of(&[]).unwrap();
        options(&flags).unwrap();
        super::super::Storage::of(&flags).unwrap();
        super::super::sharing(&flags).unwrap();
        let forgotten: Vec<_> =
            flags.forgotten().into_iter().filter(|name| *name != "write-kubeconfig").collect();
        assert!(forgotten.is_empty(), "{forgotten:?}");
    }

    #[test]
    fn refusals() {
        let check = |arguments: &[&str], expected: &str| {
            let flags = Flags::of(arguments).unwrap();
            let error = options(&flags).map(|_| ()).and_then(|()| flags.settle()).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{arguments:?}: {error:#}");
        };
        check(
            &["--egress-selector-config-file=/does/not/exist"],
            "--egress-selector-config-file /does/not/exist",
        );
        check(
            &["--etcd-servers-overrides=/events#http://a"],
            "--etcd-servers-overrides is not built: it would keep some resources in other etcd servers; here all are in --etcd-servers",
        );
        check(&["--runtime-config=nope/v1=true"], "unknown api groups nope");
        check(&["--runtime-config=api/all=false"], "invalid key with only api/all=false");
        check(&["--cors-allowed-origins=a"], "does not pin to start/end of host");
        check(&["--service-cluster-ip-range=10.0.0.0/16,10.1.0.0/16"], "must be of different IP family");
        check(&["--service-cluster-ip-range=10.0.0.0/8"], "for 32-bit addresses, the mask must be >= 12");
        check(&["--service-cluster-ip-range=a,b,c"], "invalid CIDR address");
        check(&["--kubernetes-service-node-port=80"], "range 30000-32767 doesn't contain 80");
        check(&["--admission-control=A", "--enable-admission-plugins=B"], "flags are mutually exclusive");
        check(&["--goaway-chance=0.5"], "can not be less than 0 or greater than 0.02");
        check(&["--feature-gates=Nope=true"], "unrecognized feature gate: Nope");
        check(&["--authorization-mode=RBAC,Foo"], "authorization-mode \"Foo\" is not a valid mode");
        check(&["--authorization-mode=Webhook"], "go together");
        check(&["--tls-cert-file=a"], "go together");
        check(&["--event-ttl=1x"], "unknown unit");
        check(&["--oidc-issuer-url=https://a"], "oidc-issuer-url and oidc-client-id");
        check(
            &["--service-account-issuer=https://a", "--service-account-issuer=https://a"],
            "already specified",
        );
        check(&["--audit-log-mode=never"], "allowed modes are");
        check(&["--service-node-port-range=9-3"], "ends before it begins");
        check(&["--tls-min-version=VersionTLS11"], "not built");
    }

    #[test]
    fn values() {
        let check = |arguments: &[&str], test: fn(&Options) -> bool| {
            let flags = Flags::of(arguments).unwrap();
            let options = options(&flags).unwrap();
            flags.settle().unwrap();
            assert!(test(&options), "{arguments:?}");
        };
        check(&["--anonymous-auth=false"], |o| !o.anonymous_auth);
        check(&["--secure-port", "7000", "--bind-address=127.0.0.1"], |o| {
            o.bind_address.to_string() == "127.0.0.1:7000"
        });
        check(&["--service-account-issuer=https://a", "--service-account-issuer=https://b"], |o| {
            o.service_account_issuer == "https://a"
                && o.further_service_account_issuers == ["https://b"]
                && o.api_audiences == ["https://a"]
        });
        check(&["--enable-admission-plugins=A,B", "--enable-admission-plugins=C"], |o| {
            o.enable_admission_plugins == ["A", "B", "C"]
        });
        check(&["--runtime-config=api/all=true,batch/v1=false"], |o| o.runtime_config.len() == 2);
        check(&[], |o| !o.allow_privileged && o.kubelet_address_types[0] == "Hostname");
        check(&["--allow-privileged"], |o| o.allow_privileged);
        check(&["--service-cluster-ip-range=10.96.0.0/16,fd00::/108"], |o| {
            o.service_cidrs.len() == 2 && o.service_cidrs[1].0.is_ipv6()
        });
        check(&["--service-cluster-ip-range="], |o| {
            o.service_cidrs == [(Ipv4Addr::new(10, 0, 0, 0).into(), 24)]
        });
        check(&["--admission-control=NamespaceLifecycle"], |o| {
            o.enable_admission_plugins == ["NamespaceLifecycle"]
                && o.disable_admission_plugins.iter().any(|name| name == "LimitRanger")
                && o.disable_admission_plugins.iter().all(|name| name != "NamespaceLifecycle")
        });
        check(&["--tls-curve-preferences=29,23"], |o| o.tls_curves == [29, 23]);
        check(&["--service-node-port-range=100+50"], |o| o.service_node_port_range == (100, 150));
        check(&["--storage-backend=etcd3", "--v=4", "--watch-cache"], |_| true);
        check(&["--tls-sni-cert-key=a.crt,a.key:x.example,*.y.example"], |o| {
            o.sni_certificates[0].names == ["x.example", "*.y.example"]
        });
        check(&["--authorization-mode=AlwaysAllow"], |o| {
            o.authorization_modes == [AuthorizationMode::AlwaysAllow]
        });
    }
}
