//! Expressions (CEL) in the server's own configuration files: their compilation, and the match conditions of
//! authorization webhooks. Upstream's `authorization/cel`; `authentication/cel` is in `authn::expressions`.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use orlop_api::field::{self, FieldError, Path};
use orlop_api::status::aggregate;
use orlop_cel::{
    Budget, CompileErrors, DeclType, Environment, EnvironmentBuilder, PER_CALL_LIMIT, Program, Type, Val,
    Vars,
};
use orlop_json::{Map, Value, json};

/// Most match conditions of one webhook.
const MAX_CONDITIONS: usize = 64;

/// An environment with one variable of a declared type.
pub fn environment(variable: &str, ty: Type) -> Environment {
    EnvironmentBuilder::kubernetes().variable(variable, ty).build()
}

/// The error about an expression that does not compile: one that is well typed and cannot be made a program is upstream's
/// fault to itself.
pub fn uncompiled(path: &Path, expression: &str, errors: &CompileErrors) -> FieldError {
    match errors.instantiation {
        Some(_) => field::internal(path, errors.detail()),
        None => field::invalid(path, expression, errors.detail()),
    }
}

/// Evaluates with upstream's limit for one expression.
pub fn evaluate<'a>(program: &'a Program, vars: &Vars<'a>) -> Result<Val<'a>, String> {
    program
        .eval(vars, &mut Budget::new(PER_CALL_LIMIT))
        .map_err(|error| format!("expression '{}' resulted in error: {error}", program.text()))
}

/// The declaration of `request`: the `spec` of a `SubjectAccessReview`.
static REQUEST: LazyLock<Arc<DeclType>> = LazyLock::new(|| {
    let text = || DeclType::of(Type::String);
    let texts = |names: &[&'static str]| names.iter().map(|name| (*name, text())).collect::<Vec<_>>();
    let requirement = || {
        let mut fields = texts(&["key", "operator"]);
        fields.push(("values", DeclType::list(text())));
        DeclType::record("kubernetes.SelectorRequirement", fields)
    };
    let selector = |name: &str| {
        DeclType::record(name, [("rawSelector", text()), ("requirements", DeclType::list(requirement()))])
    };
    let mut resource = texts(&["namespace", "verb", "group", "version", "resource", "subresource", "name"]);
    resource.push(("fieldSelector", selector("kubernetes.FieldSelectorAttributes")));
    resource.push(("labelSelector", selector("kubernetes.LabelSelectorAttributes")));
    let mut fields = texts(&["user", "uid"]);
    fields.push(("groups", DeclType::list(text())));
    fields.push(("extra", DeclType::map(DeclType::list(text()))));
    fields.push(("resourceAttributes", DeclType::record("kubernetes.ResourceAttributes", resource)));
    fields.push((
        "nonResourceAttributes",
        DeclType::record("kubernetes.NonResourceAttributes", texts(&["path", "verb"])),
    ));
    DeclType::record("kubernetes.SubjectAccessReviewSpec", fields)
});

/// The conditions that all must hold for an authorization webhook to be asked.
#[derive(Default)]
pub struct MatchConditions {
    programs: Vec<Program>,
    field_selector: bool,
    label_selector: bool,
}

impl MatchConditions {
    /// Compiles the expressions at `path`.
    pub fn compile(path: &Path, expressions: &[String], errs: &mut Vec<FieldError>) -> MatchConditions {
        let mut conditions = MatchConditions::default();
        if expressions.len() > MAX_CONDITIONS {
            errs.push(field::too_many(path, expressions.len(), MAX_CONDITIONS));
            return conditions;
        }
        let environment = environment("request", REQUEST.ty.clone());
        let mut seen = HashSet::new();
        for (at, expression) in expressions.iter().enumerate() {
            let path = path.index(at).child("expression");
            if expression.trim().is_empty() {
                errs.push(field::required(&path, ""));
            } else if !seen.insert(expression) {
                errs.push(field::duplicate(&path, expression.as_str()));
            } else {
                match environment.compile(expression) {
                    Err(errors) => errs.push(uncompiled(&path, expression, &errors)),
                    Ok(program) if program.output_type().same(&Type::Bool) => conditions.add(program),
                    Ok(program) => {
                        let detail = format!("must evaluate to bool but got {}", program.output_type());
                        errs.push(field::invalid(&path, expression.as_str(), detail));
                    }
                }
            }
        }
        conditions
    }

    fn add(&mut self, program: Program) {
        self.field_selector |= program.selects(None, "fieldSelector");
        self.label_selector |= program.selects(None, "labelSelector");
        self.programs.push(program);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Whether all hold of the `spec` of a review. One that is false decides, unless errors of earlier ones are all there
    /// is.
    pub fn hold(&self, spec: &Value) -> Result<bool, String> {
        let request = self.request(spec);
        let value = Val::from_declared(&request, &REQUEST).map_err(|error| error.to_string())?;
        let vars = Vars(vec![("request", value)]);
        let mut errors = Vec::new();
        for program in &self.programs {
            match evaluate(program, &vars) {
                Ok(Val::Bool(true)) => {}
                Ok(_) => return Ok(false),
                Err(error) => errors.push(format!("cel evaluation error: {error}")),
            }
        }
        if errors.is_empty() { Ok(true) } else { Err(aggregate(errors)) }
    }

    /// The review's `spec` with every field of text, also the empty ones, and of the selectors only those that are read.
    fn request(&self, spec: &Value) -> Value {
        let texts = |object: &Value, names: &[&str]| -> Map {
            names.iter().map(|name| ((*name).into(), json!(object[*name].as_str().unwrap_or("")))).collect()
        };
        let mut request = texts(spec, &["user", "uid"]);
        for (name, empty) in [("groups", json!([])), ("extra", json!({}))] {
            request.insert(name.into(), spec.get(name).cloned().unwrap_or(empty));
        }
        if let Some(given) = spec.get("resourceAttributes") {
            let names = ["namespace", "verb", "group", "version", "resource", "subresource", "name"];
            let mut resource = texts(given, &names);
            for (name, read) in
                [("fieldSelector", self.field_selector), ("labelSelector", self.label_selector)]
            {
                if let Some(selector) = given.get(name).filter(|_| read) {
                    let mut selector = selector.clone();
                    for requirement in selector["requirements"].as_array_mut().into_iter().flatten() {
                        requirement.as_object_mut().map(|r| r.entry("values").or_insert(json!([])));
                    }
                    resource.insert(name.into(), selector);
                }
            }
            request.insert("resourceAttributes".into(), Value::Object(resource));
        }
        if let Some(given) = spec.get("nonResourceAttributes") {
            let path = texts(given, &["path", "verb"]);
            request.insert("nonResourceAttributes".into(), Value::Object(path));
        }
        Value::Object(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(expressions: &[&str]) -> (MatchConditions, Vec<String>) {
        let mut errs = Vec::new();
        let texts: Vec<String> = expressions.iter().map(|text| (*text).to_string()).collect();
        let conditions = MatchConditions::compile(&Path::new("matchConditions"), &texts, &mut errs);
        (conditions, errs.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn refused() {
        let check = |expression: &str, expected: &str| {
            let (_, errs) = compile(&[expression]);
            assert_eq!(errs, [expected], "{expression}");
        };
        check(" ", "matchConditions[0].expression: Required value");
        check("1", "matchConditions[0].expression: Invalid value: \"1\": must evaluate to bool but got int");
        check(
            "request.uid2 == ''",
            "matchConditions[0].expression: Invalid value: \"request.uid2 == ''\": compilation failed: ERROR: <input>:1:8: undefined field 'uid2'\n | request.uid2 == ''\n | .......^",
        );
        check(
            "object.x",
            "matchConditions[0].expression: Invalid value: \"object.x\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'object' (in container '')\n | object.x\n | ^",
        );
        assert_eq!(
            compile(&["true", "true"]).1,
            ["matchConditions[1].expression: Duplicate value: \"true\""]
        );
        assert_eq!(
            compile(&vec!["true"; 65]).1,
            ["matchConditions: Too many: 65: must have at most 64 items"]
        );
    }

    #[test]
    fn questions() {
        let spec = json!({"user": "jane", "groups": ["a"], "resourceAttributes": {"verb": "list", "resource": "pods",
            "namespace": "n", "labelSelector": {"requirements": [{"key": "k", "operator": "Exists"}]}}});
        let check = |expressions: &[&str], expected: Result<bool, &str>| {
            let (conditions, errs) = compile(expressions);
            assert_eq!(errs, Vec::<String>::new());
            assert_eq!(conditions.hold(&spec), expected.map_err(String::from), "{expressions:?}");
        };
        check(&["request.user == 'jane'", "'a' in request.groups"], Ok(true));
        check(&["request.uid == ''", "request.extra.size() == 0"], Ok(true));
        check(&["has(request.resourceAttributes) && request.resourceAttributes.namespace == 'n'"], Ok(true));
        check(&["has(request.nonResourceAttributes)"], Ok(false));
        check(
            &["request.resourceAttributes.?labelSelector.requirements[0].key.orValue('') == 'k'"],
            Ok(true),
        );
        check(&["request.resourceAttributes.labelSelector.requirements.exists(r, r.values == [])"], Ok(true));
        check(&["has(request.resourceAttributes.fieldSelector)"], Ok(false));
        check(
            &["request.nonResourceAttributes.path == '/'", "true"],
            Err(
                "cel evaluation error: expression 'request.nonResourceAttributes.path == '/'' resulted in error: no such key: nonResourceAttributes",
            ),
        );
        check(&["request.nonResourceAttributes.path == '/'", "false"], Ok(false));
    }
}
