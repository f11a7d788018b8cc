use orlop_json::json;

use super::show;
use crate::{
    AccessDecision, AccessRequest, Authorizer, Bindings, Budget, EnvironmentBuilder, EvalError, ObjectType,
    Program, Res, ResourceAttributes, Type, Val, Vars, request_resource,
};

struct Only(&'static str);

impl Authorizer for Only {
    fn check(&self, request: &AccessRequest) -> AccessDecision {
        AccessDecision { allowed: request.verb == self.0, reason: format!("{request:?}"), error: None }
    }
}

fn is_shared<T: Send + Sync>() {}

#[test]
fn programs_are_shared_between_threads() {
    is_shared::<Program>();
    is_shared::<Val<'static>>();
}

#[test]
fn authorizer() {
    let environment = EnvironmentBuilder::kubernetes().authorizer(true).build();
    let authorizer = Only("get");
    let attributes = ResourceAttributes { resource: "pods".to_owned(), ..Default::default() };
    let vars = Vars(vec![
        ("authorizer", Val::authorizer(&authorizer)),
        ("authorizer.requestResource", request_resource(&authorizer, attributes)),
    ]);
    let cases = [
        (
            "authorizer.group('').resource('secrets').namespace('nowhere').check('frob').allowed() == false",
            "true",
            350_006,
        ),
        ("authorizer.path('/healthz').check('get').allowed()", "true", 350_003),
        ("authorizer.requestResource.check('get').allowed()", "true", 350_002),
        ("authorizer.requestResource.check('get').reason().contains('\\\"pods\\\"')", "true", 0),
        (
            "authorizer.serviceAccount('ns', 'sa').group('apps').resource('x').check('get').reason().contains('sa')",
            "true",
            0,
        ),
        (
            "authorizer.group('').resource('x').fieldSelector('a=b').labelSelector('!!').check('get').errored()",
            "false",
            0,
        ),
        ("authorizer.path('').check('get').allowed()", "error: path must not be empty", 0),
    ];
    for (expression, want, cost) in cases {
        let program = environment.compile(expression).unwrap();
        let mut budget = Budget::new(10_000_000);
        let got = program.eval(&vars, &mut budget);
        let got = got.map_or_else(|error| format!("error: {error}"), |value| show(&value));
        assert_eq!(got, want, "{expression}");
        assert!(cost == 0 || budget.last_cost() == cost, "{expression} {}", budget.last_cost());
    }
    let three = "authorizer.path('/').check('a').allowed() || authorizer.path('/').check('b').allowed() || authorizer.path('/').check('c').allowed()";
    let program = environment.compile(three).unwrap();
    assert_eq!(program.eval(&vars, &mut Budget::new(10_000_000)).unwrap_err(), EvalError::CostLimitExceeded);
}

#[test]
fn mutations() {
    let environment = EnvironmentBuilder::kubernetes().mutation().variable("object", Type::Dyn).build();
    let object = json!({"metadata": {"name": "a"}});
    let vars = Vars(vec![("object", Val::from_json(&object))]);
    let cases = [
        ("Object{}", "Object", "{}"),
        (
            "Object{metadata: Object.metadata{labels: {\"added\": \"yes\"}}}",
            "Object",
            "{\"metadata\":{\"labels\":{\"added\":\"yes\"}}}",
        ),
        (
            "[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('x/y~'), value: object.metadata.name}]",
            "list(JSONPatch)",
            "[{\"op\":\"add\",\"path\":\"/a/x~1y~0\",\"value\":\"a\"}]",
        ),
        (
            "Object{spec: Object.spec{?x: optional.none(), replicas: 2}}",
            "Object",
            "{\"spec\":{\"replicas\":2}}",
        ),
    ];
    for (expression, ty, want) in cases {
        let program = environment.compile(expression).unwrap();
        assert_eq!(program.output_type().to_string(), ty);
        let value = program.eval(&vars, &mut Budget::new(10_000_000)).unwrap();
        assert_eq!(show(&value), want, "{expression}");
        assert_eq!(value.check_type_names(), Ok(()));
    }
    let program = environment.compile("Object{metadata: Object.spec{}}").unwrap();
    let value = program.eval(&vars, &mut Budget::new(10_000_000)).unwrap();
    assert_eq!(
        value.check_type_names().unwrap_err(),
        "unexpected type name \"Object.spec\", expected \"Object.metadata\", which matches field name path from root Object type"
    );
    let error = environment.compile("JSONPatch{nope: 1}").unwrap_err().to_string();
    assert!(error.starts_with("ERROR: <input>:1:15: undefined field 'nope'"), "{error}");
    let error = environment.compile("Foo{}").unwrap_err().to_string();
    assert!(
        error.starts_with("ERROR: <input>:1:4: undeclared reference to 'Foo' (in container '')"),
        "{error}"
    );
}

struct Composed;

impl<'a> Bindings<'a> for Composed {
    fn variable(&self, _name: &str) -> Option<Res<'a>> {
        None
    }

    fn field(&self, variable: &str, field: &str) -> Option<Res<'a>> {
        (variable == "variables" && field == "n").then_some(Ok(Val::Int(5)))
    }
}

#[test]
fn lazy_variables() {
    let variables =
        Type::Object(ObjectType::new("kubernetes.variables", [("n", Type::Int), ("m", Type::Int)]));
    let environment = EnvironmentBuilder::kubernetes().variable("variables", variables).build();
    let program = environment.compile("variables.n + 1").unwrap();
    assert!(program.references("variables"));
    let mut budget = Budget::new(100);
    assert_eq!(program.eval(&Composed, &mut budget).unwrap(), Val::Int(6));
    assert_eq!(budget.last_cost(), 3);
    assert!(environment.compile("variables.x").unwrap_err().to_string().contains("undefined field 'x'"));
}
