//! Query parameters and bodies that say how a request is to be done: dry run, field manager, validation, deletion.

use orlop_api::decode::FieldValidation;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use crate::request_info::Query;

/// Options of a write.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// `dryRun=All`
    pub dry_run: bool,
    /// `fieldManager`; may be empty.
    pub field_manager: String,
    /// `fieldValidation`
    pub field_validation: FieldValidation,
    /// Whether the client said so itself.
    pub field_validation_given: bool,
    /// `force` of an apply.
    pub force: bool,
}

fn dry_run(values: &[&str], errors: &mut ErrorList) -> bool {
    match values {
        [] | ["All"] => {}
        other => errors.push(field::not_supported(&Path::new("dryRun"), json!(other), &["All"])),
    }
    !values.is_empty()
}

fn field_manager(name: &str, errors: &mut ErrorList) {
    let path = Path::new("fieldManager");
    if name.len() > 128 {
        errors.push(field::too_long(&path, 128));
    }
    if let Some((at, c)) = name.chars().enumerate().find(|(_, c)| c.is_control()) {
        errors.push(field::invalid(
            &path,
            name,
            format!("invalid character U+{:04X} (at position {at})", c as u32),
        ));
    }
}

impl WriteOptions {
    /// Reads and checks them. `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    pub fn parse(query: &Query, kind: &str, apply: bool) -> Result<WriteOptions, ApiError> {
        let mut errors = ErrorList::new();
        let manager = query.value("fieldManager");
        let force = query.optional_flag("force");
        if kind == "PatchOptions" {
            if apply {
                if manager.is_empty() {
                    errors.push(field::required(&Path::new("fieldManager"), "is required for apply patch"));
                }
            } else if force.is_some() {
                errors
                    .push(field::forbidden(&Path::new("force"), "may not be specified for non-apply patch"));
            }
        }
        field_manager(manager, &mut errors);
        let values: Vec<&str> = query.all("dryRun").collect();
        let dry_run = dry_run(&values, &mut errors);
        let validation = query.value("fieldValidation");
        let field_validation = FieldValidation::parse(validation).unwrap_or_else(|| {
            errors.push(field::not_supported(
                &Path::new("fieldValidation"),
                validation,
                &["", "Ignore", "Strict", "Warn"],
            ));
            FieldValidation::Warn
        });
        if !errors.is_empty() {
            return Err(ApiError::invalid("meta.k8s.io", kind, "", errors));
        }
        Ok(WriteOptions {
            dry_run,
            field_manager: manager.to_string(),
            field_validation,
            field_validation_given: !validation.is_empty(),
            force: force.unwrap_or(false),
        })
    }
}

/// Options of a deletion.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// `dryRun=All`
    pub dry_run: bool,
    /// Seconds until the object may be removed.
    pub grace_period_seconds: Option<i64>,
    /// `Foreground`, `Background` or `Orphan`.
    pub propagation_policy: Option<String>,
    /// The older way to say `Orphan`.
    pub orphan_dependents: Option<bool>,
    /// The uid the object must have.
    pub uid: Option<String>,
    /// The resource version the object must have.
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Reads them from a body (a `DeleteOptions` object, or `null`) or, when there is none, from the query.
    pub fn parse(body: Option<&Value>, query: &Query) -> Result<DeleteOptions, ApiError> {
        let mut options = DeleteOptions::default();
        let mut errors = ErrorList::new();
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(String::from);
        match body {
            Some(body) => {
                let runs: Vec<&str> = body
                    .get("dryRun")
                    .and_then(Value::as_array)
                    .map(|list| list.iter().filter_map(Value::as_str).collect())
                    .unwrap_or_default();
                options.dry_run = dry_run(&runs, &mut errors);
                options.grace_period_seconds = body.get("gracePeriodSeconds").and_then(Value::as_i64);
                options.propagation_policy = text(body.get("propagationPolicy"));
                options.orphan_dependents = body.get("orphanDependents").and_then(Value::as_bool);
                options.uid = text(body.pointer("/preconditions/uid"));
                options.resource_version = text(body.pointer("/preconditions/resourceVersion"));
            }
            None => {
                let runs: Vec<&str> = query.all("dryRun").collect();
                options.dry_run = dry_run(&runs, &mut errors);
                options.grace_period_seconds = query.integer("gracePeriodSeconds")?;
                options.propagation_policy = query.get("propagationPolicy").map(String::from);
                options.orphan_dependents = query.optional_flag("orphanDependents");
            }
        }
        if let Some(policy) = &options.propagation_policy {
            if options.orphan_dependents.is_some() {
                errors.push(field::invalid(
                    &Path::new("propagationPolicy"),
                    policy.as_str(),
                    "orphanDependents and deletionPropagation cannot be both set",
                ));
            }
            if !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan") {
                errors.push(field::not_supported(
                    &Path::new("propagationPolicy"),
                    policy.as_str(),
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
            }
        }
        if errors.is_empty() {
            Ok(options)
        } else {
            Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", errors))
        }
    }
}
