//! The static estimate: the least and the most an expression can cost, from the bounds of the declared variables.
//! Answers to cel-go's `checker/cost.go`.

use std::collections::HashMap;
use std::sync::Arc;

use super::functions;
use super::{CostEstimate, REGEX_FACTOR, STRING_FACTOR, SizeEstimate};
use crate::ast::{ACCUMULATOR, Comprehension, Expr, ExprKind, Literal};
use crate::check::Checked;
use crate::decl::DeclType;
use crate::types::{Kind, Type};

/// Where a variable's declaration is found.
pub type Declared<'f, 'd> = &'f dyn Fn(&str) -> Option<&'d DeclType>;

/// Estimates an expression.
pub fn estimate(checked: &Checked, declared: Declared<'_, '_>) -> CostEstimate {
    let mut coster = Coster {
        checked,
        declared,
        paths: HashMap::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
        locals: Vec::new(),
    };
    coster.cost(&checked.expr)
}

type Path = Vec<Arc<str>>;

/// The sizes of a container's keys (or indexes) and values.
#[derive(Clone, Copy)]
pub struct EntrySize {
    kind: Kind,
    key: SizeEstimate,
    val: SizeEstimate,
}

impl EntrySize {
    fn union(self, other: Option<EntrySize>) -> Option<EntrySize> {
        let other = other?;
        Some(EntrySize { kind: self.kind, key: self.key.union(other.key), val: self.val.union(other.val) })
    }
}

struct Local {
    name: Arc<str>,
    path: Path,
    size: Option<SizeEstimate>,
    entry: Option<EntrySize>,
}

struct Coster<'c, 'f, 'd> {
    checked: &'c Checked,
    declared: Declared<'f, 'd>,
    paths: HashMap<u32, Path>,
    sizes: HashMap<u32, SizeEstimate>,
    entries: HashMap<u32, EntrySize>,
    locals: Vec<Local>,
}

/// An argument as estimators of functions see it.
pub struct ArgNode<'c> {
    pub path: Path,
    pub ty: &'c Type,
    pub computed: Option<SizeEstimate>,
    pub literal: Option<&'c Literal>,
}

/// What a call costs and how large its result is.
#[derive(Clone, Copy)]
pub struct CallEstimate {
    pub cost: CostEstimate,
    pub result: Option<SizeEstimate>,
}

/// The size the declaration at a path allows.
pub fn declared_size(declared: Declared<'_, '_>, path: &[Arc<str>]) -> Option<SizeEstimate> {
    let (variable, rest) = path.split_first()?;
    let root = declared(variable)?;
    let max = match rest.split_last() {
        Some((last, container)) if **last == *"@keys" => root.at(container)?.max_key_size,
        _ => root.at(rest)?.max_elements,
    };
    Some(SizeEstimate { min: 0, max })
}

impl<'c> Coster<'c, '_, '_> {
    fn ty(&self, expr: &Expr) -> &'c Type {
        &self.checked.types[expr.id as usize]
    }

    fn cost(&mut self, expr: &'c Expr) -> CostEstimate {
        match &expr.kind {
            ExprKind::Literal(_) => CostEstimate::default(),
            ExprKind::Ident(name) => {
                let path = match self.local(name) {
                    Some(local) => local.path.clone(),
                    None => vec![name.clone()],
                };
                self.paths.insert(expr.id, path);
                CostEstimate::fixed(1)
            }
            ExprKind::Select { operand, field, test } => {
                let sum = self.cost(operand);
                if *test {
                    return sum;
                }
                let charged = matches!(self.ty(operand).kind(), Kind::Map | Kind::Struct | Kind::Param);
                let mut path = self.path(operand);
                if !path.is_empty() {
                    path.push(field.clone());
                } else {
                    path = vec![field.clone()];
                }
                self.paths.insert(expr.id, path);
                if charged { sum.add(CostEstimate::fixed(1)) } else { sum }
            }
            ExprKind::Call { .. } => self.call(expr),
            ExprKind::List { elements, .. } => {
                let mut sum = CostEstimate::fixed(10);
                let mut val = start(elements.is_empty());
                for element in elements {
                    sum = sum.add(self.cost(element));
                    val = val.union(self.size_or_unknown(element));
                }
                let entry = EntrySize { kind: Kind::List, key: SizeEstimate::fixed(1), val };
                self.entries.insert(expr.id, entry);
                sum
            }
            ExprKind::Map(entries) => {
                let mut sum = CostEstimate::fixed(30);
                let (mut key, mut val) = (start(entries.is_empty()), start(entries.is_empty()));
                for entry in entries {
                    sum = sum.add(self.cost(&entry.key)).add(self.cost(&entry.value));
                    key = key.union(self.size_or_unknown(&entry.key));
                    val = val.union(self.size_or_unknown(&entry.value));
                }
                self.entries.insert(expr.id, EntrySize { kind: Kind::Map, key, val });
                sum
            }
            ExprKind::Struct { fields, .. } => {
                fields.iter().fold(CostEstimate::fixed(40), |sum, field| sum.add(self.cost(&field.value)))
            }
            ExprKind::Comprehension(fold) if expr.is_bind() => self.bind(expr, fold),
            ExprKind::Comprehension(fold) => self.fold(expr, fold),
        }
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|local| *local.name == *name)
    }

    fn path(&self, expr: &Expr) -> Path {
        if let ExprKind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&expr.id).cloned().unwrap_or_default()
    }

    fn arg(&mut self, expr: &'c Expr) -> ArgNode<'c> {
        let mut path = self.path(expr);
        if path.first().is_some_and(|first| **first == *ACCUMULATOR) {
            path.clear();
        }
        let literal = match &expr.kind {
            ExprKind::Literal(literal) => Some(literal),
            _ => None,
        };
        ArgNode { path, ty: self.ty(expr), computed: self.size(expr), literal }
    }

    fn size_or_unknown(&mut self, expr: &'c Expr) -> SizeEstimate {
        self.size(expr).unwrap_or(SizeEstimate::UNKNOWN)
    }

    fn size(&mut self, expr: &'c Expr) -> Option<SizeEstimate> {
        if let Some(size) = self.sizes.get(&expr.id) {
            return Some(*size);
        }
        let own = match &expr.kind {
            ExprKind::Literal(Literal::String(text)) => Some(text.chars().count()),
            ExprKind::Literal(Literal::Bytes(bytes)) => Some(bytes.len()),
            ExprKind::Literal(_) => Some(1),
            ExprKind::List { elements, .. } => Some(elements.len()),
            ExprKind::Map(entries) => Some(entries.len()),
            _ => None,
        };
        if let Some(own) = own {
            return Some(SizeEstimate::fixed(own as u64));
        }
        if let Some(size) = declared_size(self.declared, &self.path(expr)) {
            self.sizes.insert(expr.id, size);
            return Some(size);
        }
        if is_scalar(self.ty(expr)) {
            return Some(SizeEstimate::fixed(1));
        }
        match &expr.kind {
            ExprKind::Ident(name) => self.local(name).and_then(|local| local.size),
            _ => None,
        }
    }

    fn entry(&self, expr: &Expr) -> Option<EntrySize> {
        if let Some(entry) = self.entries.get(&expr.id) {
            return Some(*entry);
        }
        match &expr.kind {
            ExprKind::Ident(name) => self.local(name).and_then(|local| local.entry),
            _ => None,
        }
    }

    fn set_size(&mut self, expr: &Expr, size: Option<SizeEstimate>) {
        if let Some(size) = size {
            self.sizes.insert(expr.id, size);
        }
    }

    fn copy_sizes(&mut self, to: &Expr, from: &'c Expr) {
        let size = self.size(from);
        self.set_size(to, size);
        if let Some(entry) = self.entry(from) {
            self.entries.insert(to.id, entry);
        }
    }

    fn call(&mut self, expr: &'c Expr) -> CostEstimate {
        let ExprKind::Call { function, target, args } = &expr.kind else { return CostEstimate::default() };
        if &**function == "dyn" && args.len() == 1 {
            let cost = self.cost(&args[0]);
            self.copy_sizes(expr, &args[0]);
            return cost.add(CostEstimate::fixed(1));
        }
        let mut arg_costs = Vec::with_capacity(args.len());
        let mut nodes = Vec::with_capacity(args.len());
        for arg in args {
            arg_costs.push(self.cost(arg));
            nodes.push(self.arg(arg));
        }
        let overloads = &self.checked.overloads[expr.id as usize];
        if overloads.is_empty() {
            return CostEstimate::default();
        }
        let mut sum = CostEstimate::default();
        let receiver = match target {
            Some(target) => {
                sum = self.cost(target);
                Some(self.arg(target))
            }
            None => None,
        };
        let mut cost = CostEstimate { min: u64::MAX, max: 0 };
        let mut result: Option<SizeEstimate> = None;
        for overload in overloads {
            let call = self.function(expr, function, overload, receiver.as_ref(), &nodes, args, &arg_costs);
            cost = cost.union(call.cost);
            if let Some(size) = call.result {
                result = Some(result.map_or(size, |known| known.union(size)));
            }
            let below = match *overload {
                "index_list" => Some("@items"),
                "index_map" => Some("@values"),
                _ => None,
            };
            if let Some(below) = below {
                result = self.entry(&args[0]).map(|entry| entry.val);
                let mut path = self.path(&args[0]);
                path.push(Arc::from(below));
                self.paths.insert(expr.id, path);
            }
            if result.is_none() {
                result = self.size(expr);
            }
        }
        self.set_size(expr, result);
        sum.add(cost)
    }

    #[allow(clippy::too_many_arguments)]
    fn function(
        &mut self,
        expr: &Expr,
        function: &str,
        overload: &str,
        target: Option<&ArgNode<'c>>,
        nodes: &[ArgNode<'c>],
        args: &'c [Expr],
        arg_costs: &[CostEstimate],
    ) -> CallEstimate {
        let arg_sum = arg_costs.iter().fold(CostEstimate::default(), |sum, cost| sum.add(*cost));
        if let Some(call) = functions::estimate(self.declared, function, overload, target, nodes) {
            return CallEstimate { cost: call.cost.add(arg_sum), result: call.result };
        }
        let size =
            |index: usize| nodes.get(index).and_then(|node| node.computed).unwrap_or(SizeEstimate::UNKNOWN);
        let target_size = target.map(|target| target.computed.unwrap_or(SizeEstimate::UNKNOWN));
        let plain = |cost: CostEstimate| CallEstimate { cost: cost.add(arg_sum), result: None };
        match (overload, target_size) {
            ("string_format", Some(target)) => plain(target.factor(STRING_FACTOR)),
            ("string_to_bytes", _) => {
                let sz = size(0);
                let result = SizeEstimate { min: sz.min, max: sz.max.wrapping_mul(4) };
                CallEstimate { result: Some(result), ..plain(sz.factor(STRING_FACTOR)) }
            }
            ("bytes_to_string", _) => {
                let sz = size(0);
                let result = SizeEstimate { min: sz.min / 4, max: sz.max };
                CallEstimate { result: Some(result), ..plain(sz.factor(STRING_FACTOR)) }
            }
            ("strings_quote", _) => {
                let sz = size(0);
                let result =
                    SizeEstimate { min: sz.min.wrapping_add(2), max: sz.max.wrapping_mul(2).wrapping_add(2) };
                CallEstimate { result: Some(result), ..plain(sz.factor(STRING_FACTOR)) }
            }
            ("starts_with_string" | "ends_with_string", _) => plain(size(0).factor(STRING_FACTOR)),
            ("in_list", _) => plain(size(1).factor(1.0)),
            ("matches_string", Some(target)) => {
                let text = target.add(SizeEstimate::fixed(1)).factor(STRING_FACTOR);
                plain(text.multiply(size(0).factor(REGEX_FACTOR)))
            }
            ("contains_string", Some(target)) => {
                plain(target.factor(STRING_FACTOR).multiply(size(0).factor(STRING_FACTOR)))
            }
            ("logical_or" | "logical_and", _) => {
                let (left, right) = (arg_costs[0], arg_costs[1]);
                let cost = CostEstimate { min: left.min, max: left.add(right).max };
                CallEstimate { cost, result: None }
            }
            ("conditional", _) => {
                let result = size(1).union(size(2));
                if let Some(entry) = self.entry(&args[1]).and_then(|entry| entry.union(self.entry(&args[2])))
                {
                    self.entries.insert(expr.id, entry);
                }
                let cost = arg_costs[0].add(arg_costs[1].union(arg_costs[2]));
                CallEstimate { cost, result: Some(result) }
            }
            ("add_string" | "add_bytes" | "add_list", _) => {
                let result = size(0).add(size(1));
                if let Some(entry) = self.entry(&args[0]).and_then(|entry| entry.union(self.entry(&args[1])))
                {
                    self.entries.insert(expr.id, entry);
                }
                let cost = match overload {
                    "add_list" => CostEstimate::fixed(1),
                    _ => result.factor(STRING_FACTOR),
                };
                CallEstimate { result: Some(result), ..plain(cost) }
            }
            (
                "less_string"
                | "greater_string"
                | "less_equals_string"
                | "greater_equals_string"
                | "less_bytes"
                | "greater_bytes"
                | "less_equals_bytes"
                | "greater_equals_bytes"
                | "equals"
                | "not_equals",
                _,
            ) => {
                let max = size(0).max.min(size(1).max);
                plain(CostEstimate { min: u64::from(max > 0), max }.factor(STRING_FACTOR))
            }
            _ => plain(CostEstimate::fixed(1)),
        }
    }

    fn push(&mut self, name: &Arc<str>, path: Path, size: Option<SizeEstimate>, entry: Option<EntrySize>) {
        self.locals.push(Local { name: name.clone(), path, size, entry });
    }

    fn push_value(&mut self, name: &Arc<str>, expr: &'c Expr) {
        let (path, size, entry) = (self.path(expr), self.size(expr), self.entry(expr));
        self.push(name, path, size, entry);
    }

    fn fold(&mut self, expr: &'c Expr, fold: &'c Comprehension) -> CostEstimate {
        let mut sum = self.cost(&fold.range).add(self.cost(&fold.init));
        let outer = self.locals.len();
        self.push_value(&fold.accu, &fold.init);
        let entry = self.entry(&fold.range);
        let kind = entry.map_or_else(|| self.ty(&fold.range).kind(), |entry| entry.kind);
        let path = self.path(&fold.range);
        let below = |name: &str| {
            let mut path = path.clone();
            path.push(Arc::from(name));
            path
        };
        let (key_size, val_size) = (entry.map(|entry| entry.key), entry.map(|entry| entry.val));
        let list = kind == Kind::List;
        match &fold.var2 {
            Some(var2) => {
                self.push(&fold.var, below(if list { "@indices" } else { "@keys" }), key_size, None);
                self.push(var2, below(if list { "@items" } else { "@values" }), val_size, None);
            }
            None if list => self.push(&fold.var, below("@items"), val_size, None),
            None => self.push(&fold.var, below("@keys"), key_size, None),
        }
        let condition = self.cost(&fold.condition);
        let step = self.cost(&fold.step);
        self.locals.truncate(outer + 1);
        sum = sum.add(self.cost(&fold.result));
        self.locals.truncate(outer);
        let count = self.size_or_unknown(&fold.range);
        sum = sum.add(count.cost(step.add(condition)));
        match &fold.init.kind {
            ExprKind::Literal(_) => {
                let size = self.size(&fold.init);
                self.set_size(expr, size);
            }
            ExprKind::List { .. } | ExprKind::Map(_) => {
                self.set_size(expr, Some(count));
                if let Some(entry) = self.entry(&fold.step) {
                    self.entries.insert(expr.id, entry);
                }
            }
            _ => {}
        }
        sum
    }

    fn bind(&mut self, expr: &'c Expr, fold: &'c Comprehension) -> CostEstimate {
        let mut sum = self.cost(&fold.range).add(self.cost(&fold.init));
        self.push_value(&fold.accu, &fold.init);
        sum = sum.add(self.cost(&fold.result));
        self.locals.pop();
        self.copy_sizes(expr, &fold.result);
        sum
    }
}

/// The union's beginning: nothing for an empty literal, else what the first element replaces.
fn start(empty: bool) -> SizeEstimate {
    SizeEstimate { min: if empty { 0 } else { u64::MAX }, max: 0 }
}

fn is_scalar(ty: &Type) -> bool {
    match ty {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        Type::Optional(inner) => is_scalar(inner),
        _ => false,
    }
}
