//! The plan: the checked tree with names resolved to slots and functions, selections gathered into attributes, constant
//! parts computed. It has the shape of cel-go's interpretables because the runtime cost follows that shape.

use std::sync::Arc;

use regex::Regex;

use crate::ast::{Comprehension, Expr, ExprKind, Literal, op};
use crate::check::Checked;
use crate::library::{self, Implementation};
use crate::types::{ObjectType, Type};
use crate::val::{OwnedMap, Str, Val};

/// A step of a plan.
#[derive(Debug)]
pub enum Node {
    Const(Val<'static>),
    Attribute(Box<Attribute>),
    /// `has(…)`: the last qualifier is the test.
    Has(Box<Attribute>),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    NotStrictlyFalse(Box<Node>),
    Equal {
        args: Box<[Node; 2]>,
        negate: bool,
    },
    /// `x in [constants]`: costs nothing of its own.
    InSet {
        arg: Box<Node>,
        set: Box<OwnedMap<'static>>,
    },
    /// A function of a string and a constant pattern.
    Pattern {
        function: &'static str,
        args: Vec<Node>,
        regex: Box<Regex>,
        overload: &'static str,
    },
    Call(Box<Call>),
    List {
        elements: Vec<Node>,
        optional: Vec<bool>,
    },
    Map(Vec<(Node, Node, bool)>),
    Struct {
        ty: Arc<ObjectType>,
        fields: Vec<(Arc<str>, Node, bool)>,
    },
    Fold(Box<Fold>),
    /// `accumulator + [element]`: the accumulator of this slot grows in place.
    Append {
        slot: usize,
        element: Box<Node>,
    },
    /// `cel.@mapInsert(accumulator, …)`: likewise.
    Insert {
        slot: usize,
        args: Vec<Node>,
    },
}

/// A call of a function.
#[derive(Debug)]
pub struct Call {
    pub function: Arc<str>,
    pub implementation: Implementation,
    /// The overload, where only one is possible.
    pub overload: &'static str,
    pub args: Vec<Node>,
}

/// A variable or a value, and what is selected from it.
#[derive(Debug)]
pub struct Attribute {
    pub base: Base,
    pub qualifiers: Vec<Qualifier>,
}

#[derive(Debug)]
pub enum Base {
    Variable(Arc<str>),
    Slot(usize),
    /// `c ? a : b`
    Conditional(Box<(Node, Attribute, Attribute)>),
    Value(Node),
}

#[derive(Debug)]
pub struct Qualifier {
    pub key: QualifierKey,
    pub optional: bool,
    pub test: bool,
}

#[derive(Debug)]
pub enum QualifierKey {
    Field(Arc<str>),
    Const(Val<'static>),
    Attribute(Attribute),
}

/// A loop.
#[derive(Debug)]
pub struct Fold {
    pub range: Node,
    /// The slot of the accumulator; the iteration variables have the next ones.
    pub slot: usize,
    pub two: bool,
    pub init: Node,
    pub condition: Node,
    pub step: Node,
    pub result: Node,
}

/// Plans a checked expression. The error is why a constant part has no value.
pub fn plan(checked: &Checked) -> Result<Node, String> {
    Planner { checked, scope: Vec::new() }.node(&checked.expr)
}

struct Planner<'c> {
    checked: &'c Checked,
    scope: Vec<Arc<str>>,
}

impl Planner<'_> {
    fn node(&mut self, expr: &Expr) -> Result<Node, String> {
        match &expr.kind {
            ExprKind::Literal(literal) => Ok(Node::Const(constant(literal))),
            ExprKind::Ident(name) => Ok(self.ident(expr.id, name)),
            ExprKind::Select { operand, field, test } => {
                let mut attribute = self.attribute(operand)?;
                let key = QualifierKey::Field(field.clone());
                attribute.qualifiers.push(Qualifier { key, optional: false, test: *test });
                let attribute = Box::new(attribute);
                Ok(if *test { Node::Has(attribute) } else { Node::Attribute(attribute) })
            }
            ExprKind::Call { function, target, args } => {
                self.call(expr.id, function, target.as_deref(), args)
            }
            ExprKind::List { elements, optional } => self.list(elements, optional),
            ExprKind::Map(entries) => {
                let mut planned = Vec::with_capacity(entries.len());
                for entry in entries {
                    planned.push((self.node(&entry.key)?, self.node(&entry.value)?, entry.optional));
                }
                Ok(fold_map(planned))
            }
            ExprKind::Struct { fields, .. } => {
                let Type::Object(ty) = &self.checked.types[expr.id as usize] else {
                    return Err("unknown type".to_owned());
                };
                let mut planned = Vec::with_capacity(fields.len());
                for field in fields {
                    planned.push((field.name.clone(), self.node(&field.value)?, field.optional));
                }
                Ok(Node::Struct { ty: ty.clone(), fields: planned })
            }
            ExprKind::Comprehension(fold) => self.fold(fold),
        }
    }

    fn ident(&self, id: u32, name: &Arc<str>) -> Node {
        if let Some(slot) = self.scope.iter().rposition(|known| known == name) {
            return Node::Attribute(Box::new(Attribute { base: Base::Slot(slot), qualifiers: Vec::new() }));
        }
        if let Type::TypeType(inner) = &self.checked.types[id as usize]
            && let Some(inner) = inner
        {
            return Node::Const(Val::Type((**inner).clone()));
        }
        Node::Attribute(Box::new(Attribute { base: Base::Variable(name.clone()), qualifiers: Vec::new() }))
    }

    /// An expression as something to select from.
    fn attribute(&mut self, expr: &Expr) -> Result<Attribute, String> {
        Ok(as_attribute(self.node(expr)?))
    }

    fn list(&mut self, elements: &[Expr], optional: &[bool]) -> Result<Node, String> {
        let mut planned = Vec::with_capacity(elements.len());
        for element in elements {
            planned.push(self.node(element)?);
        }
        if planned.iter().all(|node| matches!(node, Node::Const(_))) && !optional.contains(&true) {
            let values = planned.into_iter().filter_map(|node| match node {
                Node::Const(val) => Some(val),
                _ => None,
            });
            return Ok(Node::Const(Val::list(values.collect())));
        }
        Ok(Node::List { elements: planned, optional: optional.to_vec() })
    }

    fn call(
        &mut self,
        id: u32,
        function: &Arc<str>,
        target: Option<&Expr>,
        args: &[Expr],
    ) -> Result<Node, String> {
        match &**function {
            op::INDEX | op::OPT_INDEX | op::OPT_SELECT => return self.index(function, args),
            op::CONDITIONAL => {
                let [condition, yes, no] = args else { return Err("bad conditional".to_owned()) };
                let condition = self.node(condition)?;
                let base =
                    Base::Conditional(Box::new((condition, self.attribute(yes)?, self.attribute(no)?)));
                return Ok(Node::Attribute(Box::new(Attribute { base, qualifiers: Vec::new() })));
            }
            _ => {}
        }
        let mut planned = Vec::with_capacity(args.len() + 1);
        for arg in target.into_iter().chain(args) {
            planned.push(self.node(arg)?);
        }
        let overload = match self.checked.overloads[id as usize].as_slice() {
            [only] => only,
            _ => "",
        };
        match (&**function, planned.len()) {
            (op::AND, 2) => return pair(planned).map(Node::And),
            (op::OR, 2) => return pair(planned).map(Node::Or),
            (op::EQ | op::NE, 2) => {
                let negate = &**function == op::NE;
                return pair(planned).map(|args| Node::Equal { args, negate });
            }
            (op::NOT_STRICTLY_FALSE, 1) => {
                return planned
                    .pop()
                    .map(|arg| Node::NotStrictlyFalse(Box::new(arg)))
                    .ok_or_else(String::new);
            }
            _ => {}
        }
        if overload == "in_list"
            && let Some(node) = in_set(&mut planned)
        {
            return Ok(node);
        }
        let conversion = matches!(
            &**function,
            "bool"
                | "bytes"
                | "double"
                | "duration"
                | "dyn"
                | "int"
                | "string"
                | "timestamp"
                | "type"
                | "uint"
        );
        let implementation = library::implementation(function);
        if conversion && let [Node::Const(arg)] = planned.as_slice() {
            let value =
                implementation(function, std::slice::from_ref(arg)).map_err(|error| error.to_string())?;
            return Ok(Node::Const(value));
        }
        if let Some(pattern) = match &**function {
            "matches" => Some("matches"),
            "find" => Some("find"),
            "findAll" => Some("findAll"),
            _ => None,
        } && let Some(Node::Const(Val::String(text))) = planned.get(1)
        {
            let regex = library::compile_pattern(text.as_str()).map_err(|error| error.to_string())?;
            return Ok(Node::Pattern { function: pattern, args: planned, regex: Box::new(regex), overload });
        }
        Ok(Node::Call(Box::new(Call { function: function.clone(), implementation, overload, args: planned })))
    }

    fn index(&mut self, function: &str, args: &[Expr]) -> Result<Node, String> {
        let [operand, key] = args else { return Err("bad index".to_owned()) };
        let mut attribute = self.attribute(operand)?;
        let key = match self.node(key)? {
            Node::Const(val) => match val.as_str() {
                Some(text) => QualifierKey::Field(Arc::from(text)),
                None => QualifierKey::Const(val),
            },
            other => QualifierKey::Attribute(as_attribute(other)),
        };
        attribute.qualifiers.push(Qualifier { key, optional: function != op::INDEX, test: false });
        Ok(Node::Attribute(Box::new(attribute)))
    }

    fn fold(&mut self, fold: &Comprehension) -> Result<Node, String> {
        let range = self.node(&fold.range)?;
        let init = self.node(&fold.init)?;
        let slot = self.scope.len();
        self.scope.push(fold.accu.clone());
        self.scope.push(fold.var.clone());
        self.scope.extend(fold.var2.clone());
        let condition = self.node(&fold.condition)?;
        let step = self.node(&fold.step)?;
        self.scope.truncate(slot + 1);
        let result = self.node(&fold.result)?;
        self.scope.truncate(slot);
        let step = in_place(step, slot);
        Ok(Node::Fold(Box::new(Fold {
            range,
            slot,
            two: fold.var2.is_some(),
            init,
            condition,
            step,
            result,
        })))
    }
}

fn constant(literal: &Literal) -> Val<'static> {
    match literal {
        Literal::Null => Val::Null,
        Literal::Bool(b) => Val::Bool(*b),
        Literal::Int(i) => Val::Int(*i),
        Literal::Uint(u) => Val::Uint(*u),
        Literal::Double(f) => Val::Double(*f),
        Literal::String(text) => Val::String(Str::Owned(text.clone())),
        Literal::Bytes(bytes) => Val::Bytes(bytes.clone()),
    }
}

fn as_attribute(node: Node) -> Attribute {
    match node {
        Node::Attribute(attribute) => *attribute,
        other => Attribute { base: Base::Value(other), qualifiers: Vec::new() },
    }
}

fn pair(mut nodes: Vec<Node>) -> Result<Box<[Node; 2]>, String> {
    match (nodes.pop(), nodes.pop()) {
        (Some(second), Some(first)) => Ok(Box::new([first, second])),
        _ => Err("two operands expected".to_owned()),
    }
}

/// A map literal; a constant where all of it is.
fn fold_map(planned: Vec<(Node, Node, bool)>) -> Node {
    let mut map = OwnedMap::default();
    for (key, value, optional) in &planned {
        let (Node::Const(key), Node::Const(value), false) = (key, value, optional) else {
            return Node::Map(planned);
        };
        if map.insert(key.clone(), value.clone()).is_err() {
            return Node::Map(planned);
        }
    }
    Node::Const(Val::map(map))
}

/// `x in [constants of primitive types]` as a look-up.
fn in_set(args: &mut Vec<Node>) -> Option<Node> {
    let Some(Node::Const(Val::List(list))) = args.get(1) else { return None };
    if list.is_empty() {
        return Some(Node::Const(Val::Bool(false)));
    }
    let mut set = OwnedMap::default();
    for element in list.iter() {
        set.insert(element.ok()?, Val::Bool(true)).ok()?;
    }
    let arg = Box::new(args.swap_remove(0));
    Some(Node::InSet { arg, set: Box::new(set) })
}

/// The step of a loop with `accumulator + [x]` and insertions made to work in place.
fn in_place(step: Node, slot: usize) -> Node {
    let is_accu = |node: &Node| matches!(node, Node::Attribute(a) if a.qualifiers.is_empty() && matches!(a.base, Base::Slot(s) if s == slot));
    match step {
        Node::Call(mut call) if &*call.function == op::ADD && call.overload == "add_list" => {
            match call.args.as_mut_slice() {
                [accu, Node::List { elements, optional }]
                    if is_accu(accu) && elements.len() == 1 && optional.as_slice() == [false] =>
                {
                    match elements.pop() {
                        Some(element) => Node::Append { slot, element: Box::new(element) },
                        None => Node::Call(call),
                    }
                }
                _ => Node::Call(call),
            }
        }
        Node::Call(mut call)
            if &*call.function == op::MAP_INSERT && call.args.first().is_some_and(is_accu) =>
        {
            call.args.remove(0);
            Node::Insert { slot, args: call.args }
        }
        Node::Attribute(attribute) => {
            let attribute = *attribute;
            match attribute.base {
                Base::Conditional(parts) => {
                    let (condition, yes, no) = *parts;
                    let yes = match (yes.qualifiers.is_empty(), yes.base) {
                        (true, Base::Value(node)) => {
                            Attribute { base: Base::Value(in_place(node, slot)), qualifiers: Vec::new() }
                        }
                        (_, base) => Attribute { base, qualifiers: yes.qualifiers },
                    };
                    let base = Base::Conditional(Box::new((condition, yes, no)));
                    Node::Attribute(Box::new(Attribute { base, qualifiers: attribute.qualifiers }))
                }
                base => Node::Attribute(Box::new(Attribute { base, qualifiers: attribute.qualifiers })),
            }
        }
        other => other,
    }
}
