//! Reads Rust source as far as the layering test needs: every path, where it stands, and whether it is test code.
//!
//! A tokenizer, not a parser: it recognizes comments, strings, characters and lifetimes well enough never to mistake
//! their content for code, and of the grammar only `use` trees, inline modules and `#[cfg(test)]`. It reads code that
//! compiles, so it need not diagnose anything. Forms that it cannot follow (`#[path]`, `use crate as x`) are forbidden
//! by the rules.

/// One path as written in the source, with `self` and `super` resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// The segments; the first is `crate` if the path leads into this crate for sure. An attribute is one segment,
    /// `#` and its name.
    pub(crate) segments: Vec<String>,
    /// Line of its first token, from 1.
    pub(crate) line: usize,
    /// Whether it stands in an item under `#[cfg(test)]`.
    pub(crate) in_test: bool,
    /// Whether it comes from a `use` declaration.
    pub(crate) in_use: bool,
    /// Whether that declaration passes the name on (`pub use`), which uses nothing by itself.
    pub(crate) passed_on: bool,
}

/// A function with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Line of `fn`, from 1.
    pub(crate) line: usize,
    /// Lines from `fn` to the closing brace, both included.
    pub(crate) lines: usize,
    /// Whether it is test code.
    pub(crate) in_test: bool,
}

/// An inherent `impl` block: one that is of no trait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Impl {
    /// The type that it adds methods to.
    pub(crate) of: String,
    /// Line of `impl`, from 1.
    pub(crate) line: usize,
    /// Whether it is test code.
    pub(crate) in_test: bool,
}

/// A source file, read.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Every path, in `use` trees and inline. A single name is a path of one segment.
    pub(crate) paths: Vec<Path>,
    /// Method calls: the name after a dot, its line, and whether it is test code.
    pub(crate) methods: Vec<(String, usize, bool)>,
    /// Functions, those inside of others too.
    pub(crate) functions: Vec<Function>,
    /// The names of types that are declared here.
    pub(crate) types: Vec<String>,
    /// Inherent `impl` blocks.
    pub(crate) impls: Vec<Impl>,
    /// Modules declared as `#[cfg(test)] mod name;`, whose files are test code.
    pub(crate) test_modules: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Name(String),
    /// `::`
    Sep,
    Punct(char),
}

/// Reads `text`, the file of the module `module` (`["node", "key"]`; empty for the crate root).
pub(crate) fn read(text: &str, module: &[String], all_test: bool) -> Source {
    let tokens = tokenize(text);
    let in_test = test_marks(&tokens, all_test);
    let mut source = Source::default();
    let mut scopes: Vec<(String, usize)> = Vec::new(); // inline modules we are in, and the depth of their braces
    let mut depth = 0;
    let mut at = 0;
    while let Some((token, line)) = tokens.get(at) {
        let here: Vec<String> =
            module.iter().cloned().chain(scopes.iter().map(|(name, _)| name.clone())).collect();
        let push = |segments: Vec<String>, in_use: bool, source: &mut Source| {
            let segments = resolve(segments, &here);
            let passed_on = in_use && is_public(&tokens, at);
            source.paths.push(Path { segments, line: *line, in_test: in_test[at], in_use, passed_on });
        };
        if let Some(name) = declared_type(&tokens, at) {
            source.types.push(name);
        }
        if let Some(of) = inherent_impl(&tokens, at) {
            source.impls.push(Impl { of, line: *line, in_test: in_test[at] });
        }
        match token {
            Token::Punct('{') => depth += 1,
            Token::Punct('}') => {
                depth -= 1;
                if scopes.last().is_some_and(|(_, opened)| *opened == depth) {
                    scopes.pop();
                }
            }
            Token::Name(word) if word == "mod" => {
                if let Some((Token::Name(name), _)) = tokens.get(at + 1) {
                    match tokens.get(at + 2) {
                        Some((Token::Punct('{'), _)) => scopes.push((name.clone(), depth)),
                        _ if in_test[at] && !all_test => source.test_modules.push(name.clone()),
                        _ => {}
                    }
                    at += 1;
                }
            }
            Token::Name(word) if word == "fn" => {
                if let Some((Token::Name(name), _)) = tokens.get(at + 1) {
                    let last = item_end(&tokens, at + 2).min(tokens.len()).saturating_sub(1);
                    let lines = tokens[last].1 + 1 - line;
                    let (name, line, in_test) = (name.clone(), *line, in_test[at]);
                    source.functions.push(Function { name, line, lines, in_test });
                }
            }
            Token::Name(word) if word == "use" && !is(&tokens, at + 1, '<') => {
                let mut leaves = Vec::new();
                let end = use_tree(&tokens, at + 1, &[], &mut leaves);
                for leaf in leaves {
                    push(leaf, true, &mut source);
                }
                at = end;
                continue;
            }
            // Whom an item is visible to is no use of that module.
            Token::Name(_) if at > 1 && is(&tokens, at - 1, '(') && is_public(&tokens, at - 1) => {}
            Token::Name(word) if at > 1 && is(&tokens, at - 1, '[') && is(&tokens, at - 2, '#') => {
                push(vec![format!("#{word}")], false, &mut source);
            }
            Token::Name(word) => {
                if at > 0 && is(&tokens, at - 1, '.') && !(at > 1 && is(&tokens, at - 2, '.')) {
                    source.methods.push((word.clone(), *line, in_test[at]));
                } else if at == 0 || tokens[at - 1].0 != Token::Sep {
                    push(follow(&tokens, at), false, &mut source);
                }
            }
            _ => {}
        }
        at += 1;
    }
    source
}

fn is(tokens: &[(Token, usize)], at: usize, punct: char) -> bool {
    tokens.get(at).is_some_and(|(token, _)| *token == Token::Punct(punct))
}

/// The name of the type that is declared at `at`, if one is.
fn declared_type(tokens: &[(Token, usize)], at: usize) -> Option<String> {
    match (&tokens.get(at)?.0, &tokens.get(at + 1)?.0) {
        (Token::Name(word), Token::Name(name)) if matches!(word.as_str(), "struct" | "enum" | "union") => {
            Some(name.clone())
        }
        _ => None,
    }
}

/// The type whose inherent `impl` block begins at `at`, if one does.
fn inherent_impl(tokens: &[(Token, usize)], at: usize) -> Option<String> {
    let is_item = at == 0 || ['}', ';', '{', ']'].iter().any(|punct| is(tokens, at - 1, *punct));
    if !is_item || tokens.get(at)?.0 != Token::Name("impl".to_string()) {
        return None;
    }
    let (mut angles, mut of) = (0, None);
    for at in at + 1..tokens.len() {
        match &tokens[at].0 {
            Token::Punct('<') => angles += 1,
            // An arrow in the bounds of a generic is no bracket.
            Token::Punct('>') if !is(tokens, at - 1, '-') => angles -= 1,
            Token::Punct('{') => return of,
            Token::Name(word) if angles == 0 => match word.as_str() {
                // A trait's block, but for the `for<'a>` of a bound.
                "for" if !is(tokens, at + 1, '<') => return None,
                "where" => return of,
                name => of = Some(name.to_string()),
            },
            _ => {}
        }
    }
    of
}

/// Whether `pub` or `pub(…)` stands before the item at `at`.
fn is_public(tokens: &[(Token, usize)], at: usize) -> bool {
    let is_pub = |at: usize| matches!(tokens.get(at), Some((Token::Name(word), _)) if word == "pub");
    match at.checked_sub(1) {
        Some(before) if is(tokens, before, ')') => {
            (0..before).rev().find(|at| is(tokens, *at, '(')).is_some_and(|open| open > 0 && is_pub(open - 1))
        }
        Some(before) => is_pub(before),
        None => false,
    }
}

/// The path that starts at `at`: names joined by `::`.
fn follow(tokens: &[(Token, usize)], mut at: usize) -> Vec<String> {
    let mut segments = Vec::new();
    while let Some((Token::Name(name), _)) = tokens.get(at) {
        segments.push(name.clone());
        if tokens.get(at + 1).is_none_or(|(token, _)| *token != Token::Sep) {
            break;
        }
        at += 2;
    }
    segments
}

/// Reads a `use` tree at `at`, adds its leaves, and returns where it ends. A glob's leaf ends in `*`; a renamed one
/// in `as`.
fn use_tree(
    tokens: &[(Token, usize)],
    mut at: usize,
    prefix: &[String],
    leaves: &mut Vec<Vec<String>>,
) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(at).map(|(token, _)| token) {
            Some(Token::Sep) => at += 1,
            Some(Token::Name(word)) if word == "as" => {
                path.push("as".to_string());
                at += 2;
            }
            Some(Token::Name(word)) => {
                // `{self, …}` is the prefix itself
                if word != "self" || path.is_empty() {
                    path.push(word.clone());
                }
                at += 1;
            }
            Some(Token::Punct('*')) => {
                path.push("*".to_string());
                at += 1;
            }
            Some(Token::Punct('{')) => {
                at += 1;
                while !is(tokens, at, '}') && at < tokens.len() {
                    at = use_tree(tokens, at, &path, leaves);
                    if is(tokens, at, ',') {
                        at += 1;
                    }
                }
                return at + 1;
            }
            _ => {
                leaves.push(path);
                return at;
            }
        }
    }
}

/// Makes `self` and `super` paths absolute.
fn resolve(segments: Vec<String>, here: &[String]) -> Vec<String> {
    let up = segments.iter().take_while(|segment| *segment == "super" || *segment == "self").count();
    if up == 0 || segments == ["self"] {
        return segments;
    }
    let levels = segments.iter().take(up).filter(|segment| *segment == "super").count();
    let base = here.iter().take(here.len().saturating_sub(levels)).cloned();
    std::iter::once("crate".to_string()).chain(base).chain(segments.into_iter().skip(up)).collect()
}

/// For each token, whether it belongs to an item under `#[cfg(test)]`.
fn test_marks(tokens: &[(Token, usize)], all_test: bool) -> Vec<bool> {
    let mut marks = vec![all_test; tokens.len()];
    let mut at = 0;
    while at < tokens.len() {
        if let Some(after) = cfg_test(tokens, at) {
            let end = item_end(tokens, after);
            marks[at..end].fill(true);
            at = end;
        } else {
            at += 1;
        }
    }
    marks
}

/// If an attribute `#[cfg(…test…)]` (without `not`) stands at `at`, where it ends.
fn cfg_test(tokens: &[(Token, usize)], at: usize) -> Option<usize> {
    if !is(tokens, at, '#') || !is(tokens, at + 1, '[') {
        return None;
    }
    let end = closing(tokens, at + 1);
    let names: Vec<&str> = tokens[at..end]
        .iter()
        .filter_map(|(token, _)| if let Token::Name(name) = token { Some(name.as_str()) } else { None })
        .collect();
    (names.first() == Some(&"cfg") && names.contains(&"test") && !names.contains(&"not")).then_some(end)
}

/// Where the item at `at` ends: after its `;`, or after the braces of its body.
fn item_end(tokens: &[(Token, usize)], mut at: usize) -> usize {
    while at < tokens.len() {
        match tokens[at].0 {
            Token::Punct(';') => return at + 1,
            Token::Punct('{') => return closing(tokens, at),
            Token::Punct('(' | '[') => at = closing(tokens, at),
            _ => at += 1,
        }
    }
    at
}

/// The index after the bracket that closes the one at `at`.
fn closing(tokens: &[(Token, usize)], mut at: usize) -> usize {
    let mut depth = 0;
    while at < tokens.len() {
        match tokens[at].0 {
            Token::Punct('{' | '(' | '[') => depth += 1,
            Token::Punct('}' | ')' | ']') => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at
}

/// The names, `::` and punctuation of `text` with their lines; comments, strings, characters, numbers and lifetimes
/// are left out.
fn tokenize(text: &str) -> Vec<(Token, usize)> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let rest = &chars[at..];
        let length = match rest {
            ['/', '/', ..] => rest.iter().take_while(|c| **c != '\n').count(),
            ['/', '*', ..] => block_comment(rest),
            ['r', '#', c, ..] if word_start(*c) => 2, // a raw identifier; the name follows
            ['r', '"' | '#', ..] => raw_string(rest, 1),
            ['b' | 'c', 'r', '"' | '#', ..] => raw_string(rest, 2),
            ['b' | 'c', '"', ..] => 1 + quoted(&rest[1..]),
            ['"', ..] => quoted(rest),
            ['b', '\'', ..] => 1 + quoted(&rest[1..]),
            ['\'', '\\', ..] | ['\'', _, '\'', ..] => quoted(rest),
            ['\'', ..] => 1 + word(&rest[1..]), // a lifetime
            [':', ':', ..] => {
                tokens.push((Token::Sep, line));
                2
            }
            [c, ..] if word_start(*c) => {
                let length = word(rest);
                tokens.push((Token::Name(rest[..length].iter().collect()), line));
                length
            }
            [c, ..] if c.is_ascii_digit() => word(rest),
            [c, ..] => {
                if !c.is_whitespace() {
                    tokens.push((Token::Punct(*c), line));
                }
                1
            }
            [] => break,
        };
        line += rest[..length.min(rest.len())].iter().filter(|c| **c == '\n').count();
        at += length;
    }
    tokens
}

fn word_start(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn word(rest: &[char]) -> usize {
    rest.iter().take_while(|c| **c == '_' || c.is_alphanumeric()).count()
}

/// Length of a string or character literal, quotes included.
fn quoted(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != rest[0] {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// Length of a raw string whose hashes start at `from`.
fn raw_string(rest: &[char], from: usize) -> usize {
    let hashes = rest[from..].iter().take_while(|c| **c == '#').count();
    let mut at = from + hashes + 1;
    while at < rest.len() {
        if rest[at] == '"' && rest[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    at
}

/// Length of a block comment; they nest.
fn block_comment(rest: &[char]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (at, depth) = (at + 2, depth + 1),
            ['*', '/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}
