//! Macros: calls that become loops, presence tests and conditionals while parsing. All nodes a macro makes stand at the
//! place of the call.

use std::sync::Arc;

use super::parser::{Parser, call};
use crate::ast::{ACCUMULATOR, Comprehension, Expr, ExprKind, Literal, op};

/// How many nodes there may be before a macro copies more.
const MAX_NODES: usize = 100_000;
const UNUSED: &str = "#unused";
const SORT_INPUT: &str = "@__sortBy_input__";

/// The expansion of a macro call, or the call itself. Nothing where an argument does not fit; the error is recorded.
pub fn expand_or_call(
    parser: &mut Parser<'_>,
    id: u32,
    function: &Arc<str>,
    target: Option<Expr>,
    args: Vec<Expr>,
) -> Option<Expr> {
    let name = &**function;
    let mut make = Maker { parser, id };
    match (target, name, args.len()) {
        (None, "has", 1) => make.has(args),
        (Some(target), "all" | "exists" | "exists_one" | "existsOne", 2) => {
            make.quantifier(name, target, args)
        }
        (Some(target), "all" | "exists" | "exists_one" | "existsOne", 3) => {
            make.quantifier(name, target, args)
        }
        (Some(target), "map", 2 | 3) => make.map(target, args),
        (Some(target), "filter", 2) => make.filter(target, args),
        (Some(target), "transformList", 3 | 4) => make.transform(Transform::List, target, args),
        (Some(target), "transformMap", 3 | 4) => make.transform(Transform::Map, target, args),
        (Some(target), "transformMapEntry", 3 | 4) => make.transform(Transform::Entry, target, args),
        (Some(target), "optMap", 2) => make.opt_map(target, args, false),
        (Some(target), "optFlatMap", 2) => make.opt_map(target, args, true),
        (Some(target), "bind", 3)
            if make.parser.bindings && target.ident().is_some_and(|name| **name == *"cel") =>
        {
            make.cel_bind(args)
        }
        (Some(target), "sortBy", 2) => make.sort_by(target, args),
        (target, _, _) => Some(Expr {
            id,
            kind: ExprKind::Call { function: function.clone(), target: target.map(Box::new), args },
        }),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Transform {
    List,
    Map,
    Entry,
}

struct Maker<'p, 's> {
    parser: &'p mut Parser<'s>,
    id: u32,
}

impl Maker<'_, '_> {
    fn next(&mut self) -> u32 {
        let offset = self.parser.positions[self.id as usize];
        self.parser.id(offset)
    }

    fn node(&mut self, kind: ExprKind) -> Expr {
        Expr { id: self.next(), kind }
    }

    fn literal(&mut self, literal: Literal) -> Expr {
        self.node(ExprKind::Literal(literal))
    }

    fn ident(&mut self, name: &str) -> Expr {
        self.node(ExprKind::Ident(Arc::from(name)))
    }

    fn accu(&mut self) -> Expr {
        self.ident(ACCUMULATOR)
    }

    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        call(self.next(), function, args)
    }

    fn member(&mut self, function: &str, target: Expr, args: Vec<Expr>) -> Expr {
        self.node(ExprKind::Call { function: Arc::from(function), target: Some(Box::new(target)), args })
    }

    fn empty_list(&mut self) -> Expr {
        self.node(ExprKind::List { elements: Vec::new(), optional: Vec::new() })
    }

    fn error<T>(&mut self, id: u32, message: &str) -> Option<T> {
        self.parser.error_at_id(id, message);
        None
    }

    /// The name of an iteration variable.
    fn variable(&mut self, arg: &Expr, message: &str) -> Option<Arc<str>> {
        match arg.ident() {
            Some(name) if **name == *ACCUMULATOR => {
                self.error(arg.id, "iteration variable overwrites accumulator variable")
            }
            Some(name) => Some(name.clone()),
            None => self.error(arg.id, message),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn fold(
        &mut self,
        range: Expr,
        var: Arc<str>,
        var2: Option<Arc<str>>,
        init: Expr,
        condition: Expr,
        step: Expr,
        result: Expr,
    ) -> Expr {
        let accu = Arc::from(ACCUMULATOR);
        let fold = Comprehension { range, var, var2, accu, init, condition, step, result };
        self.node(ExprKind::Comprehension(Box::new(fold)))
    }

    fn has(&mut self, mut args: Vec<Expr>) -> Option<Expr> {
        let arg = args.pop()?;
        match arg.kind {
            ExprKind::Select { operand, field, test: false } => {
                Some(self.node(ExprKind::Select { operand, field, test: true }))
            }
            _ => self.error(arg.id, "invalid argument to has() macro"),
        }
    }

    fn quantifier(&mut self, name: &str, target: Expr, mut args: Vec<Expr>) -> Option<Expr> {
        let predicate = args.pop()?;
        let var = self.variable(&args[0], "argument must be a simple name")?;
        let var2 = match args.get(1) {
            Some(arg) => Some(self.variable(arg, "argument must be a simple name")?),
            None => None,
        };
        if var2.as_ref() == Some(&var) {
            let id = args[1].id;
            return self.error(id, &format!("duplicate variable name: {var}"));
        }
        let (init, condition, step, result) = match name {
            "all" => {
                let init = self.literal(Literal::Bool(true));
                let accu = self.accu();
                let condition = self.call(op::NOT_STRICTLY_FALSE, vec![accu]);
                let accu = self.accu();
                let step = self.call(op::AND, vec![accu, predicate]);
                (init, condition, step, self.accu())
            }
            "exists" => {
                let init = self.literal(Literal::Bool(false));
                let accu = self.accu();
                let not = self.call(op::NOT, vec![accu]);
                let condition = self.call(op::NOT_STRICTLY_FALSE, vec![not]);
                let accu = self.accu();
                let step = self.call(op::OR, vec![accu, predicate]);
                (init, condition, step, self.accu())
            }
            _ => {
                let init = self.literal(Literal::Int(0));
                let condition = self.literal(Literal::Bool(true));
                let (accu, one) = (self.accu(), self.literal(Literal::Int(1)));
                let more = self.call(op::ADD, vec![accu, one]);
                let accu = self.accu();
                let step = self.call(op::CONDITIONAL, vec![predicate, more, accu]);
                let (accu, one) = (self.accu(), self.literal(Literal::Int(1)));
                (init, condition, step, self.call(op::EQ, vec![accu, one]))
            }
        };
        Some(self.fold(target, var, var2, init, condition, step, result))
    }

    fn map(&mut self, target: Expr, mut args: Vec<Expr>) -> Option<Expr> {
        let transform = args.pop()?;
        let filter = if args.len() == 2 { args.pop() } else { None };
        let var = self.variable(&args[0], "argument is not an identifier")?;
        self.collect(target, var, None, filter, transform)
    }

    /// `accu + [transform]` for each element that passes the filter.
    fn collect(
        &mut self,
        target: Expr,
        var: Arc<str>,
        var2: Option<Arc<str>>,
        filter: Option<Expr>,
        transform: Expr,
    ) -> Option<Expr> {
        let init = self.empty_list();
        let condition = self.literal(Literal::Bool(true));
        let accu = self.accu();
        let one = self.node(ExprKind::List { elements: vec![transform], optional: vec![false] });
        let step = self.call(op::ADD, vec![accu, one]);
        let step = self.filtered(filter, step);
        let result = self.accu();
        Some(self.fold(target, var, var2, init, condition, step, result))
    }

    fn filtered(&mut self, filter: Option<Expr>, step: Expr) -> Expr {
        match filter {
            None => step,
            Some(filter) => {
                let accu = self.accu();
                self.call(op::CONDITIONAL, vec![filter, step, accu])
            }
        }
    }

    fn filter(&mut self, target: Expr, mut args: Vec<Expr>) -> Option<Expr> {
        let filter = args.pop()?;
        let var = self.variable(&args[0], "argument is not an identifier")?;
        let element = self.ident(&var);
        self.collect(target, var, None, Some(filter), element)
    }

    fn transform(&mut self, kind: Transform, target: Expr, mut args: Vec<Expr>) -> Option<Expr> {
        let transform = args.pop()?;
        let filter = if args.len() == 3 { args.pop() } else { None };
        let var = self.variable(&args[0], "argument must be a simple name")?;
        let var2 = self.variable(&args[1], "argument must be a simple name")?;
        if var == var2 {
            let id = args[1].id;
            return self.error(id, &format!("duplicate variable name: {var}"));
        }
        if kind == Transform::List {
            return self.collect(target, var, Some(var2), filter, transform);
        }
        let init = self.node(ExprKind::Map(Vec::new()));
        let condition = self.literal(Literal::Bool(true));
        let accu = self.accu();
        let step = match kind {
            Transform::Map => {
                let key = self.ident(&var);
                self.call(op::MAP_INSERT, vec![accu, key, transform])
            }
            _ => self.call(op::MAP_INSERT, vec![accu, transform]),
        };
        let step = self.filtered(filter, step);
        let result = self.accu();
        Some(self.fold(target, var, Some(var2), init, condition, step, result))
    }

    /// A value that is computed once and has a name in `body`.
    fn bind(&mut self, name: Arc<str>, value: Expr, body: Expr) -> Expr {
        let range = self.empty_list();
        let condition = self.literal(Literal::Bool(false));
        let step = self.ident(&name);
        let fold = Comprehension {
            range,
            var: Arc::from(UNUSED),
            var2: None,
            accu: name,
            init: value,
            condition,
            step,
            result: body,
        };
        self.node(ExprKind::Comprehension(Box::new(fold)))
    }

    /// `cel.bind(name, value, body)`.
    fn cel_bind(&mut self, mut args: Vec<Expr>) -> Option<Expr> {
        let (body, value) = (args.pop()?, args.pop()?);
        match args[0].ident().cloned() {
            Some(name) => Some(self.bind(name, value, body)),
            None => self.error(args[0].id, "cel.bind() variable names must be simple identifiers"),
        }
    }

    fn opt_map(&mut self, target: Expr, mut args: Vec<Expr>, flat: bool) -> Option<Expr> {
        let body = args.pop()?;
        let message = if flat {
            "optFlatMap() variable name must be a simple identifier"
        } else {
            "optMap() variable name must be a simple identifier"
        };
        let var = match args[0].ident() {
            Some(name) => name.clone(),
            None => return self.error(args[0].id, message),
        };
        // Each of these macros doubles its target, so chains of them are bounded by what they become.
        if self.parser.positions.len() > MAX_NODES {
            return self.error(target.id, "expression is too large");
        }
        let copy = self.copy(&target);
        let value = self.member("value", copy, Vec::new());
        let bound = self.bind(var, value, body);
        let present = self.member("hasValue", target, Vec::new());
        let some = if flat { bound } else { self.call("optional.of", vec![bound]) };
        let none = self.call("optional.none", Vec::new());
        Some(self.call(op::CONDITIONAL, vec![present, some, none]))
    }

    fn sort_by(&mut self, target: Expr, args: Vec<Expr>) -> Option<Expr> {
        if !matches!(
            target.kind,
            ExprKind::List { .. }
                | ExprKind::Select { .. }
                | ExprKind::Ident(_)
                | ExprKind::Comprehension(_)
                | ExprKind::Call { .. }
        ) {
            return self.error(
                target.id,
                "sortBy can only be applied to a list, identifier, comprehension, call or select expression",
            );
        }
        let input = self.ident(SORT_INPUT);
        let keys = self.map(input, args)?;
        let input = self.ident(SORT_INPUT);
        let sorted = self.member("@sortByAssociatedKeys", input, vec![keys]);
        Some(self.bind(Arc::from(SORT_INPUT), target, sorted))
    }

    /// The same expression with ids of its own.
    fn copy(&mut self, expr: &Expr) -> Expr {
        let offset = self.parser.positions[expr.id as usize];
        let id = self.parser.id(offset);
        let kind = match &expr.kind {
            ExprKind::Select { operand, field, test } => {
                ExprKind::Select { operand: Box::new(self.copy(operand)), field: field.clone(), test: *test }
            }
            ExprKind::Call { function, target, args } => ExprKind::Call {
                function: function.clone(),
                target: target.as_ref().map(|target| Box::new(self.copy(target))),
                args: args.iter().map(|arg| self.copy(arg)).collect(),
            },
            ExprKind::List { elements, optional } => ExprKind::List {
                elements: elements.iter().map(|element| self.copy(element)).collect(),
                optional: optional.clone(),
            },
            ExprKind::Map(entries) => ExprKind::Map(
                entries
                    .iter()
                    .map(|entry| {
                        let (key, value) = (self.copy(&entry.key), self.copy(&entry.value));
                        crate::ast::Entry { key, value, optional: entry.optional }
                    })
                    .collect(),
            ),
            ExprKind::Struct { name, fields } => ExprKind::Struct {
                name: name.clone(),
                fields: fields
                    .iter()
                    .map(|field| {
                        let value = self.copy(&field.value);
                        let id = self.next();
                        crate::ast::FieldInit {
                            name: field.name.clone(),
                            value,
                            optional: field.optional,
                            id,
                        }
                    })
                    .collect(),
            },
            ExprKind::Comprehension(fold) => ExprKind::Comprehension(Box::new(Comprehension {
                range: self.copy(&fold.range),
                var: fold.var.clone(),
                var2: fold.var2.clone(),
                accu: fold.accu.clone(),
                init: self.copy(&fold.init),
                condition: self.copy(&fold.condition),
                step: self.copy(&fold.step),
                result: self.copy(&fold.result),
            })),
            other => other.clone(),
        };
        Expr { id, kind }
    }
}

/// The nesting of a tree.
pub fn depth(expr: &Expr) -> usize {
    let mut deepest = 0;
    let mut open = vec![(expr, 1)];
    while let Some((expr, level)) = open.pop() {
        deepest = deepest.max(level);
        let mut push = |child| open.push((child, level + 1));
        match &expr.kind {
            ExprKind::Select { operand, .. } => push(operand),
            ExprKind::Call { target, args, .. } => target.iter().map(|t| &**t).chain(args).for_each(push),
            ExprKind::List { elements, .. } => elements.iter().for_each(push),
            ExprKind::Map(entries) => entries.iter().flat_map(|e| [&e.key, &e.value]).for_each(push),
            ExprKind::Struct { fields, .. } => fields.iter().map(|f| &f.value).for_each(push),
            ExprKind::Comprehension(fold) => {
                [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result]
                    .into_iter()
                    .for_each(push);
            }
            ExprKind::Literal(_) | ExprKind::Ident(_) => {}
        }
    }
    deepest
}
