//! Walking a plan. Each step adds what cel-go's cost observer adds for it.

use std::sync::Arc;

use super::Bindings;
use super::compare;
use super::plan::{Call, Fold, Node};
use crate::cost::call_cost;
use crate::error::EvalError;
use crate::library;
use crate::val::{List, Map, OwnedMap, Res, Struct, Val};

const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;
const STRUCT_COST: u64 = 40;
/// How many list elements may be copied by concatenations, which upstream does lazily and nearly for free.
const COPY_LIMIT: u64 = 20_000_000;

/// A variable of a comprehension.
enum Slot<'a> {
    /// The accumulator before its first use.
    Pending(&'a Node),
    Ready(Res<'a>),
}

/// The state of an evaluation.
pub struct Frame<'a, 'v> {
    pub(super) vars: &'v dyn Bindings<'a>,
    slots: Vec<Slot<'a>>,
    cost: u64,
    limit: u64,
    copied: u64,
}

impl<'a, 'v> Frame<'a, 'v> {
    pub fn new(vars: &'v dyn Bindings<'a>, limit: u64) -> Frame<'a, 'v> {
        Frame { vars, slots: Vec::new(), cost: 0, limit, copied: 0 }
    }

    pub fn cost(&self) -> u64 {
        self.cost
    }

    pub(super) fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(EvalError::CostLimitExceeded) } else { Ok(()) }
    }

    pub fn eval(&mut self, node: &'a Node) -> Res<'a> {
        match node {
            Node::Const(val) => Ok(val.clone()),
            Node::Attribute(attribute) => self.attribute(attribute),
            Node::Has(attribute) => self.has(attribute),
            Node::And(terms) => self.logical(terms, false),
            Node::Or(terms) => self.logical(terms, true),
            Node::NotStrictlyFalse(arg) => {
                let arg = self.eval(arg);
                self.charge(1)?;
                match arg {
                    Err(EvalError::CostLimitExceeded) => Err(EvalError::CostLimitExceeded),
                    Ok(Val::Bool(b)) => Ok(Val::Bool(b)),
                    _ => Ok(Val::Bool(true)),
                }
            }
            Node::Equal { args, negate } => self.equal(args, *negate),
            Node::InSet { arg, set } => {
                let arg = self.eval(arg)?;
                Ok(Val::Bool(set.get(&arg).is_some()))
            }
            Node::Pattern { function, args, regex, overload } => {
                self.pattern(function, args, regex, overload)
            }
            Node::Call(call) => self.call(call),
            Node::List { elements, optional } => self.list(elements, optional),
            Node::Map(entries) => self.map(entries),
            Node::Struct { ty, fields } => {
                let mut values = Vec::with_capacity(fields.len());
                for (name, node, optional) in fields {
                    let value = self.eval(node)?;
                    match (optional, value) {
                        (true, Val::Optional(None)) => {}
                        (true, Val::Optional(Some(value))) => values.push((name.clone(), (*value).clone())),
                        (true, other) => return Err(not_optional(&other)),
                        (false, value) => values.push((name.clone(), value)),
                    }
                }
                self.charge(STRUCT_COST)?;
                Ok(Val::Struct(Arc::new(Struct { ty: ty.clone(), fields: values })))
            }
            Node::Fold(fold) => self.fold(fold),
            Node::Append { slot, element } => self.append(*slot, element),
            Node::Insert { slot, args } => self.insert(*slot, args),
        }
    }

    /// `&&` (deciding value `false`) and `||` (deciding value `true`): an error counts only where no side decides.
    fn logical(&mut self, terms: &'a [Node; 2], decides: bool) -> Res<'a> {
        let mut error = None;
        for term in terms {
            match self.eval(term) {
                Ok(Val::Bool(b)) if b == decides => return Ok(Val::Bool(decides)),
                Ok(Val::Bool(_)) => {}
                Ok(_) => error = error.or(Some(EvalError::no_such_overload())),
                Err(EvalError::CostLimitExceeded) => return Err(EvalError::CostLimitExceeded),
                Err(problem) => error = error.or(Some(problem)),
            }
        }
        match error {
            Some(error) => Err(error),
            None => Ok(Val::Bool(!decides)),
        }
    }

    fn equal(&mut self, args: &'a [Node; 2], negate: bool) -> Res<'a> {
        let (left, right) = (self.operand(&args[0])?, self.operand(&args[1])?);
        let size = |side: &Res<'a>| side.as_ref().map_or(1, Val::cost_size);
        let cost = size(&left).min(size(&right)) as f64 * 0.1;
        self.charge(cost.ceil() as u64)?;
        let (left, right) = (left?, right?);
        let equal = compare::equal(&left, &right)?;
        Ok(Val::Bool(equal != negate))
    }

    /// An operand of a strict function; all operands are evaluated before the first error counts.
    fn operand(&mut self, node: &'a Node) -> Result<Res<'a>, EvalError> {
        match self.eval(node) {
            Err(EvalError::CostLimitExceeded) => Err(EvalError::CostLimitExceeded),
            other => Ok(other),
        }
    }

    fn arguments(&mut self, nodes: &'a [Node]) -> Result<(Vec<Val<'a>>, Option<EvalError>), EvalError> {
        let mut args = Vec::with_capacity(nodes.len());
        let mut error = None;
        for node in nodes {
            match self.operand(node)? {
                Ok(val) => args.push(val),
                Err(problem) => {
                    error = error.or(Some(problem));
                    // Functions of one or two arguments evaluate all of them, others stop here.
                    if nodes.len() > 2 {
                        break;
                    }
                }
            }
        }
        Ok((args, error))
    }

    fn call(&mut self, call: &'a Call) -> Res<'a> {
        let (args, error) = self.arguments(&call.args)?;
        if let Some(error) = error {
            if call.args.len() <= 2 {
                self.charge(1)?;
            }
            return Err(error);
        }
        if let (Some(Val::List(left)), Some(Val::List(right))) = (args.first(), args.get(1)) {
            self.copied += (left.len() + right.len()) as u64;
            if self.copied > COPY_LIMIT {
                return Err(EvalError::CostLimitExceeded);
            }
        }
        let result = (call.implementation)(&call.function, &args);
        if result == Err(EvalError::CostLimitExceeded) {
            return result;
        }
        self.charge(call_cost(&call.function, call.overload, &args, result.as_ref().ok()))?;
        result
    }

    fn pattern(
        &mut self,
        function: &'static str,
        nodes: &'a [Node],
        regex: &regex::Regex,
        overload: &str,
    ) -> Res<'a> {
        let (args, error) = self.arguments(nodes)?;
        if let Some(error) = error {
            self.charge(1)?;
            return Err(error);
        }
        let result = library::match_pattern(function, regex, &args);
        self.charge(call_cost(function, overload, &args, result.as_ref().ok()))?;
        result
    }

    fn list(&mut self, elements: &'a [Node], optional: &[bool]) -> Res<'a> {
        let mut values = Vec::with_capacity(elements.len());
        for (node, optional) in elements.iter().zip(optional) {
            let value = self.eval(node)?;
            match (optional, value) {
                (true, Val::Optional(None)) => {}
                (true, Val::Optional(Some(value))) => values.push((*value).clone()),
                (true, other) => return Err(not_optional(&other)),
                (false, value) => values.push(value),
            }
        }
        self.charge(LIST_COST)?;
        Ok(Val::list(values))
    }

    fn map(&mut self, entries: &'a [(Node, Node, bool)]) -> Res<'a> {
        let mut map = OwnedMap::default();
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            let value = self.eval(value)?;
            match (optional, value) {
                (true, Val::Optional(None)) => {}
                (true, Val::Optional(Some(value))) => {
                    map.insert(key, (*value).clone())?;
                }
                (true, other) => return Err(not_optional(&other)),
                (false, value) => {
                    map.insert(key, value)?;
                }
            }
        }
        self.charge(MAP_COST)?;
        Ok(Val::map(map))
    }

    fn fold(&mut self, fold: &'a Fold) -> Res<'a> {
        let range = self.eval(&fold.range)?;
        debug_assert_eq!(self.slots.len(), fold.slot);
        self.slots.truncate(fold.slot);
        self.slots.push(Slot::Pending(&fold.init));
        let outcome = self.iterate(fold, &range);
        self.slots.truncate(fold.slot + 1);
        let result = match outcome {
            Ok(()) => self.eval(&fold.result),
            Err(error) => Err(error),
        };
        self.slots.truncate(fold.slot);
        result
    }

    fn iterate(&mut self, fold: &'a Fold, range: &Val<'a>) -> Result<(), EvalError> {
        match range {
            Val::List(list) => {
                for index in 0..list.len() {
                    let Some(element) = list.get(index) else { break };
                    let (first, second) = match fold.two {
                        true => (Ok(Val::Int(index as i64)), Some(element)),
                        false => (element, None),
                    };
                    if !self.iteration(fold, first, second)? {
                        break;
                    }
                }
                Ok(())
            }
            Val::Map(map) => {
                for key in map.keys() {
                    let second = match fold.two {
                        true => Some(map.get(&key).unwrap_or_else(|| Err(EvalError::no_such_overload()))),
                        false => None,
                    };
                    if !self.iteration(fold, Ok(key), second)? {
                        break;
                    }
                }
                Ok(())
            }
            _ => Err(EvalError::no_such_overload()),
        }
    }

    /// One round; whether there may be another.
    fn iteration(
        &mut self,
        fold: &'a Fold,
        first: Res<'a>,
        second: Option<Res<'a>>,
    ) -> Result<bool, EvalError> {
        self.slots.truncate(fold.slot + 1);
        self.slots.push(Slot::Ready(first));
        self.slots.extend(second.map(Slot::Ready));
        if let Val::Bool(false) = self.eval(&fold.condition)? {
            return Ok(false);
        }
        let next = self.eval(&fold.step);
        if next == Err(EvalError::CostLimitExceeded) {
            return Err(EvalError::CostLimitExceeded);
        }
        self.slots[fold.slot] = Slot::Ready(next);
        Ok(true)
    }

    /// The value of a comprehension's variable.
    pub(super) fn slot(&mut self, slot: usize) -> Res<'a> {
        if let Some(Slot::Pending(init)) = self.slots.get(slot) {
            let init = *init;
            // Inner variables are not visible to it, but their slots must not be disturbed.
            let inner: Vec<Slot<'a>> = self.slots.drain(slot..).collect();
            let value = self.eval(init);
            self.slots.truncate(slot);
            self.slots.extend(inner);
            if value == Err(EvalError::CostLimitExceeded) {
                return value;
            }
            self.slots[slot] = Slot::Ready(value);
        }
        match self.slots.get(slot) {
            Some(Slot::Ready(value)) => value.clone(),
            _ => Err(EvalError::text("no such attribute")),
        }
    }

    /// Takes the accumulator out of its slot, for changing it in place.
    fn take_slot(&mut self, slot: usize) -> Res<'a> {
        let value = self.slot(slot);
        self.slots[slot] = Slot::Ready(Err(EvalError::no_such_overload()));
        value
    }

    fn append(&mut self, slot: usize, element: &'a Node) -> Res<'a> {
        // The accumulator's mention, the list of one, the addition.
        self.charge(1)?;
        let element = self.operand(element)?;
        self.charge(LIST_COST + 1)?;
        let accu = self.take_slot(slot)?;
        let element = element?;
        match accu {
            Val::List(List::Owned(mut items)) => {
                Arc::make_mut(&mut items).push(element);
                Ok(Val::List(List::Owned(items)))
            }
            other => library::append(&other, &Val::list(vec![element])),
        }
    }

    fn insert(&mut self, slot: usize, nodes: &'a [Node]) -> Res<'a> {
        self.charge(1)?;
        let (args, error) = self.arguments(nodes)?;
        self.charge(1)?;
        let accu = self.take_slot(slot)?;
        if let Some(error) = error {
            return Err(error);
        }
        let Val::Map(Map::Owned(mut map)) = accu else { return Err(EvalError::no_such_overload()) };
        let target = Arc::make_mut(&mut map);
        match args.as_slice() {
            [key, value] => insert_new(target, key.clone(), value.clone())?,
            [Val::Map(update)] => {
                for key in update.keys() {
                    let Some(value) = update.get(&key) else { continue };
                    insert_new(target, key, value?)?;
                }
            }
            _ => return Err(EvalError::no_such_overload()),
        }
        Ok(Val::Map(Map::Owned(map)))
    }
}

/// Adds a key that must not be there.
pub fn insert_new<'a>(map: &mut OwnedMap<'a>, key: Val<'a>, value: Val<'a>) -> Result<(), EvalError> {
    if map.get(&key).is_some() {
        let key = crate::library::format::plain(&key);
        return Err(EvalError::text(format!("insert failed: key {key} already exists")));
    }
    map.insert(key, value).map(|_| ())
}

fn not_optional(val: &Val<'_>) -> EvalError {
    EvalError::text(format!("cannot initialize optional entry from non-optional value {}", val.type_name()))
}
