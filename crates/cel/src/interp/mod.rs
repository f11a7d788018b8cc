//! Evaluation: a checked expression becomes a [`plan`], which [`eval`] walks while counting upstream's runtime cost.

pub mod attribute;
pub mod compare;
mod eval;
pub use eval::insert_new;
mod plan;

use crate::ast::{Expr, ExprKind, Literal, op};
use crate::check::Checked;
use crate::cost::{self, CostEstimate};
use crate::decl::DeclType;
use crate::error::{CompileErrors, EvalError};
use crate::types::Type;
use crate::val::{Res, Val};
use plan::Node;

/// The variables of an evaluation.
pub trait Bindings<'a> {
    /// The value of a variable; `None` where it has none.
    fn variable(&self, name: &str) -> Option<Res<'a>>;

    /// The value of one field of a variable whose fields are computed when they are asked for (`variables.x`). It is
    /// asked only where `variable` gives nothing.
    fn field(&self, _variable: &str, _field: &str) -> Option<Res<'a>> {
        None
    }
}

/// Variables in a list of pairs.
#[derive(Debug, Default)]
pub struct Vars<'a>(pub Vec<(&'static str, Val<'a>)>);

impl<'a> Bindings<'a> for Vars<'a> {
    fn variable(&self, name: &str) -> Option<Res<'a>> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, val)| Ok(val.clone()))
    }
}

/// The runtime cost that is left. One evaluation may use [`crate::PER_CALL_LIMIT`] at most, whatever is left.
#[derive(Clone, Debug)]
pub struct Budget {
    total: u64,
    used: u64,
    last: u64,
}

impl Budget {
    /// A budget for several evaluations.
    pub fn new(total: u64) -> Budget {
        Budget { total, used: 0, last: 0 }
    }

    /// What is left.
    pub fn remaining(&self) -> u64 {
        self.total.saturating_sub(self.used)
    }

    /// Whether more was used than there was.
    pub fn exceeded(&self) -> bool {
        self.used > self.total
    }

    /// The cost of the last evaluation.
    pub fn last_cost(&self) -> u64 {
        self.last
    }

    fn charge(&mut self, cost: u64) {
        self.last = cost;
        self.used = self.used.saturating_add(cost);
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    checked: Checked,
    node: Node,
    output: Type,
}

impl Program {
    pub(crate) fn plan(checked: Checked) -> Result<Program, CompileErrors> {
        let output = checked.types[checked.expr.id as usize].clone();
        match plan::plan(&checked) {
            Ok(node) => Ok(Program { checked, node, output }),
            Err(problem) => Err(CompileErrors::instantiation(problem, checked.source)),
        }
    }

    /// The type of its value.
    pub fn output_type(&self) -> &Type {
        &self.output
    }

    /// The text it was compiled from.
    pub fn text(&self) -> &str {
        self.checked.source.text()
    }

    /// Whether it refers to a variable (also in the dotted form, `authorizer.requestResource`).
    pub fn references(&self, variable: &str) -> bool {
        self.checked.expr.any(|expr| {
            expr.ident().is_some_and(|name| {
                **name == *variable || name.strip_prefix(variable).is_some_and(|rest| rest.starts_with('.'))
            })
        })
    }

    /// Whether it selects a field (`x.field`, `x.?field`, `has(x.field)`): of this variable, or with `None` of anything.
    pub fn selects(&self, variable: Option<&str>, field: &str) -> bool {
        let of_it =
            |operand: &Expr| variable.is_none_or(|name| operand.ident().is_some_and(|id| **id == *name));
        self.checked.expr.any(|expr| match &expr.kind {
            ExprKind::Select { operand, field: selected, .. } => **selected == *field && of_it(operand),
            ExprKind::Call { function, target: None, args } if **function == *op::OPT_SELECT => {
                matches!(args.as_slice(), [operand, Expr { kind: ExprKind::Literal(Literal::String(name)), .. }]
                    if **name == *field && of_it(operand))
            }
            _ => false,
        })
    }

    /// Upstream's static cost estimate. `size_of` is asked for the declaration of a variable (`self`, `oldSelf`), whose
    /// bounds limit the estimate; without one, sizes are unbounded.
    pub fn estimate_cost<'d>(&self, declared: impl Fn(&str) -> Option<&'d DeclType>) -> CostEstimate {
        cost::estimate(&self.checked, &declared)
    }

    /// Evaluates it. The cost is charged to the budget in any case.
    pub fn eval<'a>(&'a self, vars: &dyn Bindings<'a>, budget: &mut Budget) -> Res<'a> {
        let mut frame = eval::Frame::new(vars, crate::PER_CALL_LIMIT);
        let result = frame.eval(&self.node);
        budget.charge(frame.cost());
        // Going over the limit at the very end is going over the limit.
        if frame.cost() > crate::PER_CALL_LIMIT { Err(EvalError::CostLimitExceeded) } else { result }
    }
}
