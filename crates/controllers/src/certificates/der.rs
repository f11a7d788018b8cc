//! A certificate's encoding (RFC 5280). Subject, key and names of a request go into it byte by byte: what was approved is
//! what is certified.

use jiff::Timestamp;
use rand::RngCore;
use rcgen::{KeyPair, SigningKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::ParsedExtension;
use yasna::models::{GeneralizedTime, ObjectIdentifier, UTCTime};
use yasna::{DERWriter, DERWriterSeq, Tag};

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const AUTHORITY_KEY_IDENTIFIER: &[u64] = &[2, 5, 29, 35];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];

/// Kubernetes' names of key usages, and what each is in a certificate.
enum Usage {
    /// The number of a bit.
    Bit(usize),
    /// The last number of 1.3.6.1.5.5.7.3.x.
    Purpose(u64),
    /// Another identifier.
    Other(&'static [u64]),
}

const USAGES: [(&str, Usage); 22] = [
    ("signing", Usage::Bit(0)),
    ("digital signature", Usage::Bit(0)),
    ("content commitment", Usage::Bit(1)),
    ("key encipherment", Usage::Bit(2)),
    ("data encipherment", Usage::Bit(3)),
    ("key agreement", Usage::Bit(4)),
    ("cert sign", Usage::Bit(5)),
    ("crl sign", Usage::Bit(6)),
    ("encipher only", Usage::Bit(7)),
    ("decipher only", Usage::Bit(8)),
    ("any", Usage::Other(&[2, 5, 29, 37, 0])),
    ("server auth", Usage::Purpose(1)),
    ("client auth", Usage::Purpose(2)),
    ("code signing", Usage::Purpose(3)),
    ("email protection", Usage::Purpose(4)),
    ("s/mime", Usage::Purpose(4)),
    ("ipsec end system", Usage::Purpose(5)),
    ("ipsec tunnel", Usage::Purpose(6)),
    ("ipsec user", Usage::Purpose(7)),
    ("timestamping", Usage::Purpose(8)),
    ("ocsp signing", Usage::Purpose(9)),
    ("microsoft sgc", Usage::Other(&[1, 3, 6, 1, 4, 1, 311, 10, 3, 3])),
];
const NETSCAPE_SGC: &[u64] = &[2, 16, 840, 1, 113_730, 4, 1];

/// What a certificate may be used for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Usages {
    bits: [bool; 9],
    extended: Vec<ObjectIdentifier>,
}

impl Usages {
    /// Reads `spec.usages`.
    pub(super) fn read(names: &[String]) -> Result<Self, String> {
        let mut usages = Self::default();
        let mut unknown = Vec::new();
        for name in names {
            let identifier = match USAGES.iter().find(|(known, _)| known == name).map(|(_, usage)| usage) {
                Some(Usage::Bit(bit)) => {
                    if let Some(bit) = usages.bits.get_mut(*bit) {
                        *bit = true;
                    }
                    continue;
                }
                Some(Usage::Purpose(last)) => ObjectIdentifier::from_slice(&[1, 3, 6, 1, 5, 5, 7, 3, *last]),
                Some(Usage::Other(identifier)) => ObjectIdentifier::from_slice(identifier),
                None if name == "netscape sgc" => ObjectIdentifier::from_slice(NETSCAPE_SGC),
                None => {
                    unknown.push(name);
                    continue;
                }
            };
            if !usages.extended.contains(&identifier) {
                usages.extended.push(identifier);
            }
        }
        usages.extended.sort();
        match unknown.is_empty() {
            true => Ok(usages),
            false => Err(format!("unrecognized usage values: {unknown:?}")),
        }
    }

    /// The bit string without its trailing zeroes, as DER has it.
    fn bit_string(&self) -> Option<(Vec<u8>, usize)> {
        let length = self.bits.iter().rposition(|bit| *bit)? + 1;
        let mut bytes = vec![0_u8; length.div_ceil(8)];
        for (index, _) in self.bits.iter().enumerate().filter(|(_, bit)| **bit) {
            if let Some(byte) = bytes.get_mut(index / 8) {
                *byte |= 0x80 >> (index % 8);
            }
        }
        Some((bytes, length))
    }
}

/// A certificate to be.
pub(super) struct Certificate<'a> {
    pub(super) request: &'a X509CertificationRequest<'a>,
    pub(super) issuer: &'a X509Certificate<'a>,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
    pub(super) usages: Usages,
}

impl Certificate<'_> {
    /// Signs it with the issuer's key and gives it as PEM.
    pub(super) fn sign(&self, key: &KeyPair) -> Result<String, String> {
        let algorithm = algorithm(key)?;
        let body =
            yasna::try_construct_der(|writer| writer.write_sequence(|writer| self.body(writer, &algorithm)))?;
        let signature = key.sign(&body).map_err(|error| error.to_string())?;
        let whole = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_der(&body);
                writer.next().write_der(&algorithm);
                writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
            });
        });
        Ok(pem(whole))
    }

    fn body(&self, writer: &mut DERWriterSeq<'_>, algorithm: &[u8]) -> Result<(), String> {
        let info = &self.request.certification_request_info;
        writer.next().write_tagged(Tag::context(0), |writer| writer.write_u8(2));
        let mut serial = [0_u8; 16];
        rand::rng().fill_bytes(&mut serial);
        writer.next().write_bigint_bytes(&serial, true);
        writer.next().write_der(algorithm);
        writer.next().write_der(self.issuer.subject().as_raw());
        writer.next().write_sequence(|writer| {
            write_time(writer.next(), self.not_before)?;
            write_time(writer.next(), self.not_after)
        })?;
        writer.next().write_der(info.subject.as_raw());
        writer.next().write_der(info.subject_pki.raw);
        writer.next().write_tagged(Tag::context(3), |writer| {
            writer.write_sequence(|writer| self.extensions(writer));
        });
        Ok(())
    }

    fn extensions(&self, writer: &mut DERWriterSeq<'_>) {
        if let Some((bytes, length)) = self.usages.bit_string() {
            let value = yasna::construct_der(|writer| writer.write_bitvec_bytes(&bytes, length));
            extension(writer, KEY_USAGE, true, &value);
        }
        if !self.usages.extended.is_empty() {
            let value = yasna::construct_der(|writer| {
                writer.write_sequence_of(|writer| {
                    self.usages.extended.iter().for_each(|purpose| writer.next().write_oid(purpose));
                });
            });
            extension(writer, EXTENDED_KEY_USAGE, false, &value);
        }
        // No CA, which is what an empty sequence says.
        extension(
            writer,
            BASIC_CONSTRAINTS,
            true,
            &yasna::construct_der(|writer| writer.write_sequence(|_| ())),
        );
        for extension_of_issuer in self.issuer.extensions() {
            if let ParsedExtension::SubjectKeyIdentifier(id) = extension_of_issuer.parsed_extension() {
                let value = yasna::construct_der(|writer| {
                    writer.write_sequence(|writer| {
                        writer
                            .next()
                            .write_tagged_implicit(Tag::context(0), |writer| writer.write_bytes(id.0));
                    });
                });
                extension(writer, AUTHORITY_KEY_IDENTIFIER, false, &value);
            }
        }
        for requested in requested_extensions(self.request) {
            if matches!(requested.parsed_extension(), ParsedExtension::SubjectAlternativeName(_)) {
                // Without a subject the names are all there is.
                let critical = self.request.certification_request_info.subject.iter().next().is_none();
                extension(writer, SUBJECT_ALT_NAME, critical, requested.value);
            }
        }
    }
}

/// The extensions that a request asks for.
pub(super) fn requested_extensions<'a>(
    request: &'a X509CertificationRequest<'a>,
) -> impl Iterator<Item = &'a x509_parser::extensions::X509Extension<'a>> {
    let attributes = request.certification_request_info.iter_attributes();
    attributes.flat_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(requested) => requested.extensions.as_slice(),
        _ => &[],
    })
}

fn extension(writer: &mut DERWriterSeq<'_>, identifier: &[u64], critical: bool, value: &[u8]) {
    writer.next().write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(identifier));
        if critical {
            writer.next().write_bool(true);
        }
        writer.next().write_bytes(value);
    });
}

/// Until 2049 two digits say the year (RFC 5280, 4.1.2.5).
fn write_time(writer: DERWriter<'_>, time: Timestamp) -> Result<(), String> {
    let moment =
        time::OffsetDateTime::from_unix_timestamp(time.as_second()).map_err(|error| error.to_string())?;
    match moment.year() < 2050 {
        true => writer.write_utctime(&UTCTime::from_datetime(moment)),
        false => writer.write_generalized_time(&GeneralizedTime::from_datetime(moment)),
    }
    Ok(())
}

/// The identifier of the signatures a key makes.
fn algorithm(key: &KeyPair) -> Result<Vec<u8>, String> {
    let used = key.algorithm();
    let known: [(&rcgen::SignatureAlgorithm, &[u64], bool); 4] = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, &[1, 2, 840, 10_045, 4, 3, 2], false),
        (&rcgen::PKCS_ECDSA_P384_SHA384, &[1, 2, 840, 10_045, 4, 3, 3], false),
        (&rcgen::PKCS_ED25519, &[1, 3, 101, 112], false),
        (&rcgen::PKCS_RSA_SHA256, &[1, 2, 840, 113_549, 1, 1, 11], true),
    ];
    let found = known.iter().find(|(algorithm, ..)| *algorithm == used);
    let (_, identifier, with_null) = found.ok_or_else(|| format!("its key cannot sign ({used:?})"))?;
    Ok(yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_oid(&ObjectIdentifier::from_slice(identifier));
            if *with_null {
                writer.next().write_null();
            }
        });
    }))
}

fn pem(der: Vec<u8>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der), config)
}
