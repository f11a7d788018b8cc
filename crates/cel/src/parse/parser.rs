//! The grammar, by recursive descent with precedences.

use std::sync::Arc;

use super::issue_at;
use super::lexer::{Tok, Token};
use super::macros;
use crate::ast::{Entry, Expr, ExprKind, FieldInit, Literal, op};
use crate::error::Issue;
use crate::escaping::RESERVED;
use crate::source::Source;

/// How deep an expression may be nested, chains of operators and selections counted.
pub const MAX_DEPTH: usize = 250;

pub fn too_deep() -> String {
    format!("expression recursion limit exceeded: {MAX_DEPTH}")
}

/// What can begin an operand, as the generated parser lists it.
const OPERAND: &[&str] = &[
    "'['",
    "'{'",
    "'('",
    "'.'",
    "'-'",
    "'!'",
    "'true'",
    "'false'",
    "'null'",
    "NUM_FLOAT",
    "NUM_INT",
    "NUM_UINT",
    "STRING",
    "BYTES",
    "IDENTIFIER",
];

/// Binary operators: symbol, function, precedence.
const BINARY: &[(&str, &str, u8)] = &[
    ("==", "_==_", 1),
    ("!=", "_!=_", 1),
    ("<", "_<_", 1),
    ("<=", "_<=_", 1),
    (">", "_>_", 1),
    (">=", "_>=_", 1),
    ("in", "@in", 1),
    ("+", "_+_", 2),
    ("-", "_-_", 2),
    ("*", "_*_", 3),
    ("/", "_/_", 3),
    ("%", "_%_", 3),
];

pub struct Parser<'s> {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    source: &'s Source,
    pub issues: Vec<Issue>,
    pub positions: Vec<usize>,
    /// Whether `cel.bind` is a macro.
    pub bindings: bool,
}

impl<'s> Parser<'s> {
    pub fn new(tokens: Vec<Token>, source: &'s Source, bindings: bool) -> Parser<'s> {
        Parser { tokens, at: 0, depth: 0, source, issues: Vec::new(), positions: vec![0], bindings }
    }

    /// The whole text as one expression.
    pub fn whole(&mut self) -> Option<Expr> {
        let expr = self.expr()?;
        if !matches!(self.peek().tok, Tok::Eof) {
            let last = self.tokens.len() - 2 == self.at;
            let how = if last { "extraneous" } else { "mismatched" };
            let message = format!("Syntax error: {how} input '{}' expecting <EOF>", self.peek().text);
            self.error_here(message);
            return None;
        }
        Some(expr)
    }

    // ---- helpers

    fn peek(&self) -> &Token {
        &self.tokens[self.at]
    }

    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    /// Takes the symbol if it is next; gives its place.
    fn take(&mut self, symbol: &str) -> Option<usize> {
        self.peek().is(symbol).then(|| self.next().offset)
    }

    fn expect(&mut self, symbol: &str) -> Option<usize> {
        if let Some(offset) = self.take(symbol) {
            return Some(offset);
        }
        if self.tokens.get(self.at + 1).is_some_and(|after| after.is(symbol)) {
            let message =
                format!("Syntax error: extraneous input '{}' expecting '{symbol}'", self.peek().text);
            self.error_here(message);
            self.next();
            return Some(self.next().offset);
        }
        let message = format!("Syntax error: mismatched input '{}' expecting '{symbol}'", self.peek().text);
        self.error_here(message);
        None
    }

    fn error_here(&mut self, message: String) {
        let offset = self.peek().offset;
        self.error(offset, message);
    }

    fn error(&mut self, offset: usize, message: String) {
        if self.issues.len() < 100 {
            self.issues.push(issue_at(self.source, Some(offset), message));
        }
    }

    pub fn id(&mut self, offset: usize) -> u32 {
        self.positions.push(offset);
        (self.positions.len() - 1) as u32
    }

    fn node(&mut self, offset: usize, kind: ExprKind) -> Expr {
        Expr { id: self.id(offset), kind }
    }

    fn deeper(&mut self) -> Option<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            // Said once, and instead of everything else.
            self.issues = vec![issue_at(self.source, None, too_deep())];
            return None;
        }
        Some(())
    }

    // ---- rules

    fn expr(&mut self) -> Option<Expr> {
        let depth = self.depth;
        self.deeper()?;
        let condition = self.logical("||", op::OR)?;
        let expr = match self.take("?") {
            None => condition,
            Some(offset) => {
                let id = self.id(offset);
                let yes = self.logical("||", op::OR)?;
                self.expect(":")?;
                let no = self.expr()?;
                call(id, op::CONDITIONAL, vec![condition, yes, no])
            }
        };
        self.depth = depth;
        Some(expr)
    }

    /// `a || b || …`, made into a balanced tree.
    fn logical(&mut self, symbol: &'static str, function: &'static str) -> Option<Expr> {
        let mut terms = Vec::new();
        let mut ops = Vec::new();
        loop {
            terms.push(Some(if symbol == "||" { self.logical("&&", op::AND)? } else { self.binary(1)? }));
            match self.take(symbol) {
                Some(offset) => ops.push(self.id(offset)),
                None => break,
            }
        }
        if ops.is_empty() {
            return terms.pop().flatten();
        }
        balanced(&mut terms, &ops, function, 0, ops.len() - 1)
    }

    fn binary(&mut self, precedence: u8) -> Option<Expr> {
        let depth = self.depth;
        let mut left = self.unary()?;
        loop {
            let token = self.peek();
            let Some((_, function, level)) =
                BINARY.iter().find(|(symbol, _, level)| token.is(symbol) && *level >= precedence)
            else {
                break;
            };
            self.deeper()?;
            let offset = self.next().offset;
            let id = self.id(offset);
            let right = self.binary(level + 1)?;
            left = call(id, function, vec![left, right]);
        }
        self.depth = depth;
        Some(left)
    }

    fn unary(&mut self) -> Option<Expr> {
        for (symbol, function) in [("!", op::NOT), ("-", op::NEGATE)] {
            if !self.peek().is(symbol) || self.at_negative_number() {
                continue;
            }
            let first = self.peek().offset;
            let mut count = 0;
            while self.peek().is(symbol) && !(count > 0 && symbol == "!" && self.at_negative_number()) {
                self.next();
                count += 1;
            }
            if count % 2 == 0 {
                return self.member();
            }
            let id = self.id(first);
            let operand = self.member()?;
            return Some(call(id, function, vec![operand]));
        }
        self.member()
    }

    fn at_negative_number(&self) -> bool {
        self.peek().is("-")
            && self.tokens.get(self.at + 1).is_some_and(|after| matches!(after.tok, Tok::Int | Tok::Float))
    }

    fn member(&mut self) -> Option<Expr> {
        let depth = self.depth;
        let mut operand = self.primary()?;
        loop {
            if let Some(offset) = self.take(".") {
                self.deeper()?;
                operand = self.selection(operand, offset)?;
            } else if let Some(offset) = self.take("[") {
                self.deeper()?;
                let id = self.id(offset);
                let function = if self.take("?").is_some() { op::OPT_INDEX } else { op::INDEX };
                let index = self.expr()?;
                self.expect("]")?;
                operand = call(id, function, vec![operand, index]);
            } else {
                break;
            }
        }
        self.depth = depth;
        Some(operand)
    }

    fn selection(&mut self, operand: Expr, offset: usize) -> Option<Expr> {
        let optional = self.take("?").is_some();
        if self.peek().tok != Tok::Ident {
            let text = if optional { ".?" } else { "." };
            let token = self.peek();
            let text = match token.tok {
                Tok::Eof => text.to_owned(),
                _ => format!("{text}{}", token.text),
            };
            self.error_here(format!("Syntax error: no viable alternative at input '{text}'"));
            return None;
        }
        let name = self.next();
        if let Some(open) = self.peek().is("(").then(|| self.next().offset) {
            if optional {
                self.error(offset, "unsupported syntax '.?'".to_owned());
                return None;
            }
            let id = self.id(open);
            let args = self.arguments()?;
            return macros::expand_or_call(self, id, &name.text, Some(operand), args);
        }
        let id = self.id(offset);
        if optional {
            let field = self.node(name.offset, ExprKind::Literal(Literal::String(name.text)));
            return Some(call(id, op::OPT_SELECT, vec![operand, field]));
        }
        Some(Expr {
            id,
            kind: ExprKind::Select { operand: Box::new(operand), field: name.text, test: false },
        })
    }

    /// Arguments after the opening parenthesis, up to and with the closing one.
    fn arguments(&mut self) -> Option<Vec<Expr>> {
        let mut args = Vec::new();
        if self.take(")").is_some() {
            return Some(args);
        }
        loop {
            args.push(self.operand_or(if args.is_empty() { Some("')'") } else { None })?);
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect(")")?;
        Some(args)
    }

    /// An expression where `also` would be possible instead.
    fn operand_or(&mut self, also: Option<&'static str>) -> Option<Expr> {
        if !self.at_operand() {
            self.no_operand(also)?;
        }
        self.expr()
    }

    fn at_operand(&self) -> bool {
        match self.peek().tok {
            Tok::Sym(symbol) => {
                matches!(symbol, "[" | "{" | "(" | "." | "-" | "!" | "true" | "false" | "null")
            }
            Tok::Eof => false,
            _ => true,
        }
    }

    /// Says that an operand is missing. Goes on behind one token too many, as the generated parser does.
    fn no_operand(&mut self, also: Option<&'static str>) -> Option<()> {
        let mut expected: Vec<&str> = OPERAND.to_vec();
        if let Some(also) = also {
            let place = if also == "')'" || also == "'?'" { 3 } else { 1 };
            expected.insert(place, also);
        }
        let set = expected.join(", ");
        let token = self.peek().clone();
        let after_is_operand = {
            let here = self.at;
            self.at = (here + 1).min(self.tokens.len() - 1);
            let is = self.at_operand();
            self.at = here;
            is
        };
        if after_is_operand && token.tok != Tok::Eof {
            self.error_here(format!("Syntax error: extraneous input '{}' expecting {{{set}}}", token.text));
            self.next();
            return Some(());
        }
        self.error_here(format!("Syntax error: mismatched input '{}' expecting {{{set}}}", token.text));
        None
    }

    fn primary(&mut self) -> Option<Expr> {
        if !self.at_operand() {
            self.no_operand(None)?;
        }
        let token = self.next();
        let offset = token.offset;
        match token.tok {
            Tok::Int | Tok::Uint | Tok::Float => self.number(&token, false),
            Tok::Str(text) => Some(self.node(offset, ExprKind::Literal(Literal::String(text)))),
            Tok::Bytes(bytes) => Some(self.node(offset, ExprKind::Literal(Literal::Bytes(bytes)))),
            Tok::Ident => self.name(token.text, offset),
            Tok::Sym("true") => Some(self.node(offset, ExprKind::Literal(Literal::Bool(true)))),
            Tok::Sym("false") => Some(self.node(offset, ExprKind::Literal(Literal::Bool(false)))),
            Tok::Sym("null") => Some(self.node(offset, ExprKind::Literal(Literal::Null))),
            Tok::Sym("-") if matches!(self.peek().tok, Tok::Int | Tok::Float) => {
                let number = self.next();
                self.number(&Token { offset, ..number }, true)
            }
            Tok::Sym("(") => {
                let inner = self.expr()?;
                self.expect(")")?;
                Some(inner)
            }
            Tok::Sym("[") => self.list(offset),
            Tok::Sym("{") => self.map(offset),
            Tok::Sym(".") if self.peek().tok == Tok::Ident => {
                let name = self.next();
                self.name(Arc::from(format!(".{}", name.text)), offset)
            }
            _ => {
                let set = OPERAND.join(", ");
                self.error(
                    offset,
                    format!("Syntax error: mismatched input '{}' expecting {{{set}}}", token.text),
                );
                None
            }
        }
    }

    /// A name, a global call or a struct literal.
    fn name(&mut self, name: Arc<str>, offset: usize) -> Option<Expr> {
        if let Some(open) = self.take("(") {
            if RESERVED.contains(&name.trim_start_matches('.')) {
                self.error(offset, format!("reserved identifier: {name}"));
            }
            let id = self.id(open);
            let args = self.arguments()?;
            return macros::expand_or_call(self, id, &name, None, args);
        }
        if let Some((type_name, open)) = self.struct_name(&name) {
            return self.structure(type_name, open);
        }
        if RESERVED.contains(&name.trim_start_matches('.')) {
            self.error(offset, format!("reserved identifier: {name}"));
            return None;
        }
        Some(self.node(offset, ExprKind::Ident(name)))
    }

    /// Whether a struct literal follows: `a.b.C{`. Takes the name and the brace if so.
    fn struct_name(&mut self, first: &str) -> Option<(Arc<str>, usize)> {
        let mut name = first.to_owned();
        let mut at = self.at;
        while self.tokens[at].is(".") && self.tokens.get(at + 1).is_some_and(|token| token.tok == Tok::Ident)
        {
            name.push('.');
            name.push_str(&self.tokens[at + 1].text);
            at += 2;
        }
        if !self.tokens[at].is("{") {
            return None;
        }
        self.at = at;
        let open = self.next().offset;
        Some((Arc::from(name), open))
    }

    fn structure(&mut self, name: Arc<str>, open: usize) -> Option<Expr> {
        let id = self.id(open);
        let mut fields = Vec::new();
        while self.take("}").is_none() {
            let optional = self.take("?").is_some();
            if self.peek().tok != Tok::Ident {
                let text = self.peek().text.clone();
                self.error_here(format!(
                    "Syntax error: mismatched input '{text}' expecting {{'}}', ',', '?', IDENTIFIER}}"
                ));
                return None;
            }
            let field = self.next();
            let colon = self.expect(":")?;
            let init = self.id(colon);
            let value = self.expr()?;
            fields.push(FieldInit { name: field.text, value, optional, id: init });
            if self.take(",").is_none() {
                self.expect("}")?;
                break;
            }
        }
        Some(Expr { id, kind: ExprKind::Struct { name, fields } })
    }

    fn list(&mut self, offset: usize) -> Option<Expr> {
        let id = self.id(offset);
        let (mut elements, mut optional) = (Vec::new(), Vec::new());
        while self.take("]").is_none() {
            optional.push(self.take("?").is_some());
            elements.push(self.operand_or(if elements.is_empty() { Some("']'") } else { None })?);
            if self.take(",").is_none() {
                self.expect("]")?;
                break;
            }
        }
        Some(Expr { id, kind: ExprKind::List { elements, optional } })
    }

    fn map(&mut self, offset: usize) -> Option<Expr> {
        let id = self.id(offset);
        let mut entries = Vec::new();
        while self.take("}").is_none() {
            let optional = self.take("?").is_some();
            let key = self.operand_or(if entries.is_empty() { Some("'}'") } else { None })?;
            self.expect(":")?;
            let value = self.expr()?;
            entries.push(Entry { key, value, optional });
            if self.take(",").is_none() {
                self.expect("}")?;
                break;
            }
        }
        Some(Expr { id, kind: ExprKind::Map(entries) })
    }

    fn number(&mut self, token: &Token, negative: bool) -> Option<Expr> {
        let sign = if negative { "-" } else { "" };
        let text = &*token.text;
        let (literal, what) = match token.tok {
            Tok::Float => {
                let value = format!("{sign}{text}").parse::<f64>().ok().filter(|value| value.is_finite());
                (value.map(Literal::Double), "double")
            }
            Tok::Uint => {
                let digits = &text[..text.len() - 1];
                let value = match digits.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16).ok(),
                    None => digits.parse().ok(),
                };
                (value.map(Literal::Uint), "uint")
            }
            _ => {
                let value = match text.strip_prefix("0x") {
                    Some(hex) => i64::from_str_radix(&format!("{sign}{hex}"), 16).ok(),
                    None => format!("{sign}{text}").parse().ok(),
                };
                (value.map(Literal::Int), "int")
            }
        };
        match literal {
            Some(literal) => Some(self.node(token.offset, ExprKind::Literal(literal))),
            None => {
                self.error(token.offset, format!("invalid {what} literal"));
                None
            }
        }
    }

    pub fn error_at_id(&mut self, id: u32, message: &str) {
        let offset = self.positions[id as usize];
        self.error(offset, message.to_owned());
    }
}

pub fn call(id: u32, function: &str, args: Vec<Expr>) -> Expr {
    Expr { id, kind: ExprKind::Call { function: Arc::from(function), target: None, args } }
}

fn balanced(terms: &mut [Option<Expr>], ops: &[u32], function: &str, lo: usize, hi: usize) -> Option<Expr> {
    let mid = (lo + hi).div_ceil(2);
    let left = if mid == lo { terms[mid].take() } else { balanced(terms, ops, function, lo, mid - 1) };
    let right = if mid == hi { terms[mid + 1].take() } else { balanced(terms, ops, function, mid + 1, hi) };
    Some(call(ops[mid], function, vec![left?, right?]))
}
