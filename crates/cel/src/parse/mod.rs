//! From text to syntax tree: cel-go's grammar, its macros, its limits and, as near as a hand-written parser comes to a
//! generated one, its messages.

mod lexer;
mod literal;
mod macros;
mod parser;

use crate::ast::Expr;
use crate::error::{CompileErrors, Issue};
use crate::source::Source;

/// The longest expression, in code points.
const MAX_CODE_POINTS: usize = 100_000;

/// A parsed expression: the tree and, for each id, the place of the node in code points.
#[derive(Debug)]
pub struct Parsed {
    pub expr: Expr,
    pub positions: Vec<usize>,
    pub source: Source,
}

impl Parsed {
    /// An issue at a node.
    pub fn issue(&self, id: u32, message: String) -> Issue {
        issue_at(&self.source, self.positions.get(id as usize).copied(), message)
    }
}

/// Parses an expression; `bindings` makes `cel.bind` a macro.
pub fn parse(text: &str, bindings: bool) -> Result<Parsed, CompileErrors> {
    let size = text.chars().count();
    if size > MAX_CODE_POINTS {
        let message =
            format!("expression code point size exceeds limit: size: {size}, limit {MAX_CODE_POINTS}");
        return Err(CompileErrors::new(vec![issue_at(&Source::new(""), None, message)], Source::new("")));
    }
    let source = Source::new(text);
    let (tokens, mut issues) = lexer::tokens(text, &source);
    let mut parser = parser::Parser::new(tokens, &source, bindings);
    let expr = parser.whole();
    issues.append(&mut parser.issues);
    let positions = parser.positions;
    match expr {
        Some(expr) if issues.is_empty() => {
            if macros::depth(&expr) > parser::MAX_DEPTH {
                return Err(CompileErrors::new(vec![issue_at(&source, None, parser::too_deep())], source));
            }
            Ok(Parsed { expr, positions, source })
        }
        _ => Err(CompileErrors::new(issues, source)),
    }
}

/// An issue at an offset; without one it has no place (line 0, printed as upstream prints "no location").
pub fn issue_at(source: &Source, offset: Option<usize>, message: String) -> Issue {
    match offset {
        Some(offset) => {
            let (line, column) = source.place(offset);
            Issue { line, column, message }
        }
        None => Issue { line: 0, column: 0, message },
    }
}
