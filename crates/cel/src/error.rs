//! What compiling and evaluating can end with.

use std::borrow::Cow;
use std::fmt;

use crate::source::Source;

/// One problem of an expression, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Line, from 1.
    pub line: usize,
    /// Column in code points, from 0.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

/// The problems of an expression that does not compile. `Display` is upstream's text: for each problem
/// `ERROR: <input>:LINE:COLUMN: MESSAGE`, the line and a caret under the column.
#[derive(Clone, Debug)]
pub struct CompileErrors {
    /// The problems, in the order of their places.
    pub issues: Vec<Issue>,
    /// Why a program could not be made of an expression that is well typed (an invalid constant, a bad pattern).
    pub instantiation: Option<String>,
    pub(crate) source: Source,
}

impl CompileErrors {
    /// The text with what upstream puts before it: "compilation failed: …" or "program instantiation failed: …".
    pub fn detail(&self) -> String {
        match &self.instantiation {
            Some(problem) => format!("program instantiation failed: {problem}"),
            None => format!("compilation failed: {self}"),
        }
    }

    pub(crate) fn instantiation(problem: String, source: Source) -> CompileErrors {
        CompileErrors { issues: Vec::new(), instantiation: Some(problem), source }
    }

    pub(crate) fn new(mut issues: Vec<Issue>, source: Source) -> CompileErrors {
        issues.sort_by_key(|issue| (issue.line, issue.column));
        CompileErrors { issues, instantiation: None, source }
    }
}

impl fmt::Display for CompileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(problem) = &self.instantiation {
            return f.write_str(problem);
        }
        for (index, issue) in self.issues.iter().take(100).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            self.source.write_issue(f, issue)?;
        }
        if self.issues.len() > 100 {
            write!(f, "\n{} more errors were truncated", self.issues.len() - 100)?;
        }
        Ok(())
    }
}

impl std::error::Error for CompileErrors {}

/// Why an evaluation has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvalError {
    /// An error of the language: `no such key: x`, `division by zero`. `||` and `&&` can absorb it.
    Value(Cow<'static, str>),
    /// The cost limit of the call was exceeded. Nothing absorbs it.
    CostLimitExceeded,
}

impl EvalError {
    /// An error of the language.
    pub fn text(message: impl Into<Cow<'static, str>>) -> EvalError {
        EvalError::Value(message.into())
    }

    pub(crate) fn no_such_overload() -> EvalError {
        EvalError::text("no such overload")
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvalError::Value(message) => f.write_str(message),
            EvalError::CostLimitExceeded => f.write_str("operation cancelled: actual cost limit exceeded"),
        }
    }
}

impl std::error::Error for EvalError {}
