//! The syntax tree. Every node has an id; its place in the text is kept apart, by id.

use std::sync::Arc;

/// A node.
#[derive(Clone, Debug)]
pub struct Expr {
    /// Its number, from 1.
    pub id: u32,
    /// What it is.
    pub kind: ExprKind,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum ExprKind {
    /// A constant.
    Literal(Literal),
    /// A name.
    Ident(Arc<str>),
    /// `operand.field`, or `has(operand.field)`.
    Select { operand: Box<Expr>, field: Arc<str>, test: bool },
    /// A call, with the receiver if it has one. Operators are calls (`_+_`).
    Call { function: Arc<str>, target: Option<Box<Expr>>, args: Vec<Expr> },
    /// `[a, ?b]`; the flags say which elements are optional.
    List { elements: Vec<Expr>, optional: Vec<bool> },
    /// `{k: v}`.
    Map(Vec<Entry>),
    /// `Name{field: value}`.
    Struct { name: Arc<str>, fields: Vec<FieldInit> },
    /// What macros become.
    Comprehension(Box<Comprehension>),
}

/// An entry of a map literal.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: Expr,
    /// The value.
    pub value: Expr,
    /// Whether the entry is left out where the value is an empty optional.
    pub optional: bool,
}

/// A field of a struct literal.
#[derive(Clone, Debug)]
pub struct FieldInit {
    /// The field.
    pub name: Arc<str>,
    /// The value.
    pub value: Expr,
    /// Whether the field is left out where the value is an empty optional.
    pub optional: bool,
    /// The initialiser's own id.
    pub id: u32,
}

/// A loop over a list or a map.
#[derive(Clone, Debug)]
pub struct Comprehension {
    /// What is iterated.
    pub range: Expr,
    /// The element (of a map: the key; with a second variable: the index or the key).
    pub var: Arc<str>,
    /// The second variable: the element or the map's value.
    pub var2: Option<Arc<str>>,
    /// The accumulator.
    pub accu: Arc<str>,
    /// Its first value.
    pub init: Expr,
    /// Goes on while this is not false.
    pub condition: Expr,
    /// The accumulator's next value.
    pub step: Expr,
    /// The value of the whole.
    pub result: Expr,
}

/// A constant.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

/// The name macros give their accumulator.
pub const ACCUMULATOR: &str = "@result";

/// The names of the operators' functions.
pub mod op {
    #![allow(missing_docs)]
    pub const CONDITIONAL: &str = "_?_:_";
    pub const AND: &str = "_&&_";
    pub const OR: &str = "_||_";
    pub const NOT: &str = "!_";
    pub const NEGATE: &str = "-_";
    pub const EQ: &str = "_==_";
    pub const NE: &str = "_!=_";
    pub const ADD: &str = "_+_";
    pub const INDEX: &str = "_[_]";
    pub const OPT_INDEX: &str = "_[?_]";
    pub const OPT_SELECT: &str = "_?._";
    pub const NOT_STRICTLY_FALSE: &str = "@not_strictly_false";
    pub const MAP_INSERT: &str = "cel.@mapInsert";
}

impl Expr {
    /// The dotted name this spells: `a.b.c`.
    pub fn qualified_name(&self) -> Option<String> {
        match &self.kind {
            ExprKind::Ident(name) => Some(name.to_string()),
            ExprKind::Select { operand, field, test: false } => {
                let prefix = operand.qualified_name()?;
                Some(format!("{prefix}.{field}"))
            }
            _ => None,
        }
    }

    /// The name, where this is one.
    pub fn ident(&self) -> Option<&Arc<str>> {
        match &self.kind {
            ExprKind::Ident(name) => Some(name),
            _ => None,
        }
    }

    /// Whether a node of this tree is as `is` says.
    pub fn any(&self, mut is: impl FnMut(&Expr) -> bool) -> bool {
        let mut open = vec![self];
        while let Some(expr) = open.pop() {
            if is(expr) {
                return true;
            }
            match &expr.kind {
                ExprKind::Literal(_) | ExprKind::Ident(_) => {}
                ExprKind::Select { operand, .. } => open.push(operand),
                ExprKind::Call { target, args, .. } => {
                    open.extend(target.as_deref());
                    open.extend(args);
                }
                ExprKind::List { elements, .. } => open.extend(elements),
                ExprKind::Map(entries) => {
                    open.extend(entries.iter().flat_map(|entry| [&entry.key, &entry.value]));
                }
                ExprKind::Struct { fields, .. } => open.extend(fields.iter().map(|field| &field.value)),
                ExprKind::Comprehension(fold) => {
                    open.extend([&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result]);
                }
            }
        }
        false
    }

    /// Whether this is what `cel.bind` and `optMap` become: no loop, only a named value.
    pub fn is_bind(&self) -> bool {
        let ExprKind::Comprehension(fold) = &self.kind else { return false };
        matches!(&fold.range.kind, ExprKind::List { elements, .. } if elements.is_empty())
            && matches!(fold.condition.kind, ExprKind::Literal(Literal::Bool(false)))
            && &*fold.accu != ACCUMULATOR
    }
}
