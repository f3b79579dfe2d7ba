//! The C door to llguidance, as common/grammar.cc needs it (llg_c.h). Every call catches panics, so
//! that no grammar a client sends can end the process; errors are texts of the object or of `error`.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Once};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{earley::SlicedBiasComputer, ParserFactory, TokenParser};

pub struct LlgTokenizer {
    factory: ParserFactory,
    max_state_bytes: usize,
}

/// What the tokens consumed so far left in the parser.
#[derive(Clone, Copy, Default)]
struct Kept {
    items: usize,
    rows: usize,
    bytes: usize,
}

pub struct LlgMatcher {
    parser: TokenParser,
    words: usize,
    max_bytes: usize,
    kept: Vec<Kept>,             // by number of consumed tokens
    failure: Option<LlgFailure>, // final
    error: String,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq)]
pub enum LlgFailure {
    Refused = 1, // the grammar does not allow it
    TooLarge,    // the grammar is beyond a limit
    Internal,
    NoThread, // to compile it; there may be one later
}

struct Failure(LlgFailure, String);

fn guarded<T>(call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(Failure(LlgFailure::Internal, format!("internal: {}", text.unwrap_or("panic"))))
        }
    }
}

/// Cut to the room there is; always NUL-terminated.
unsafe fn write_error(message: &str, error: *mut u8, error_len: usize) {
    if error_len == 0 {
        return;
    }
    let mut count = message.len().min(error_len - 1);
    while !message.is_char_boundary(count) {
        count -= 1;
    }
    std::ptr::copy_nonoverlapping(message.as_ptr(), error, count);
    *error.add(count) = 0;
}

unsafe fn slice_of<'a, T>(data: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, len)
    }
}

// A panic's text may hold what a client sent; it is reported as an error, not on stderr.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}

// Of the tokens wholly inside a slice a mask knows without a walk, where the grammar takes any text
// of that kind: beside what JSON's strings are made of, words and names. bench/results/grammar.csv.
const NAME_SLICES: [&str; 4] = ["[a-z]{1,10}", "[a-z]+", "[A-Za-z0-9_]{1,10}", "[A-Za-z0-9_]+"];
const MAX_LEXER_STATES: usize = 50_000; // up to 1.1 KB each

fn slices() -> Vec<String> {
    let mut slices = SlicedBiasComputer::json_slices();
    slices.extend(NAME_SLICES.iter().map(|slice| slice.to_string()));
    slices
}

fn new_tokenizer(
    tokens: Vec<Vec<u8>>,
    eos: u32,
    max_state_bytes: usize,
) -> Result<LlgTokenizer, Failure> {
    let info = TokRxInfo::new(tokens.len() as u32, eos);
    let trie = TokTrie::from(&info, &tokens);
    // Approximate: not canonical, so a mask allows every token that fits, not one tokenization.
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices())
        .map_err(|e| Failure(LlgFailure::Internal, format!("{e:#}")))?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.max_lexer_states = MAX_LEXER_STATES;
    limits.verbose_errors = false;
    Ok(LlgTokenizer { factory, max_state_bytes })
}

/// # Safety
/// `lens` has `num_tokens` entries, `bytes` their sum; `error` has room for `error_len` bytes.
#[no_mangle]
pub unsafe extern "C" fn llg_c_new_tokenizer(
    num_tokens: u32,
    lens: *const u32,
    bytes: *const u8,
    eos: u32,
    max_state_bytes: usize,
    error: *mut u8,
    error_len: usize,
) -> *mut LlgTokenizer {
    let lens = slice_of(lens, num_tokens as usize);
    let bytes = slice_of(bytes, lens.iter().map(|&len| len as usize).sum());
    silence_panics();
    let made = guarded(|| {
        let mut rest = bytes;
        let mut tokens = Vec::with_capacity(lens.len());
        for &len in lens {
            let (token, after) = rest.split_at(len as usize);
            tokens.push(token.to_vec());
            rest = after;
        }
        new_tokenizer(tokens, eos, max_state_bytes)
    });
    match made {
        Ok(tokenizer) => Box::into_raw(Box::new(tokenizer)),
        Err(Failure(_, message)) => {
            write_error(&message, error, error_len);
            std::ptr::null_mut()
        }
    }
}

/// # Safety
/// `tokenizer` came from llg_c_new_tokenizer and is used by no call.
#[no_mangle]
pub unsafe extern "C" fn llg_c_free_tokenizer(tokenizer: *mut LlgTokenizer) {
    drop(Box::from_raw(tokenizer));
}

const COMPILE_STACK: usize = 256 << 20; // address space; touched as far as it is used

/// # Safety
/// `lark` has `lark_len` bytes; `error` has room for `error_len` bytes.
#[no_mangle]
pub unsafe extern "C" fn llg_c_new_matcher(
    tokenizer: &LlgTokenizer,
    lark: *const u8,
    lark_len: usize,
    failure: &mut LlgFailure,
    error: *mut u8,
    error_len: usize,
) -> *mut LlgMatcher {
    let lark = slice_of(lark, lark_len);
    let refused = |message: String| Failure(LlgFailure::Refused, message);
    let compile = || {
        guarded(|| {
            let text =
                std::str::from_utf8(lark).map_err(|_| refused("is not UTF-8".to_string()))?;
            let grammar = TopLevelGrammar::from_lark(text.to_string());
            let made = tokenizer.factory.create_parser(grammar);
            let mut parser = made.map_err(|e| refused(format!("{e:#}")))?;
            parser.start_without_prompt();
            Ok(LlgMatcher {
                parser,
                words: tokenizer.factory.tok_env().tok_trie().vocab_size().div_ceil(32),
                max_bytes: tokenizer.max_state_bytes,
                kept: vec![Kept::default()],
                failure: None,
                error: String::new(),
            })
        })
    };
    // llguidance recurses along chains of rules, terminals and references: on a stack of its own.
    let made = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(COMPILE_STACK).spawn_scoped(scope, compile);
        match thread.map(|t| t.join()) {
            Ok(Ok(made)) => made,
            Ok(Err(_)) => Err(Failure(LlgFailure::Internal, "internal: panic".to_string())),
            Err(_) => Err(Failure(LlgFailure::NoThread, "no thread to compile it".to_string())),
        }
    });
    let made = made.and_then(|matcher| match matcher.check_size() {
        Err(failure) => Err(failure),
        Ok(()) => Ok(matcher),
    });
    match made {
        Ok(matcher) => Box::into_raw(Box::new(matcher)),
        Err(Failure(kind, message)) => {
            *failure = kind;
            write_error(&message, error, error_len);
            std::ptr::null_mut()
        }
    }
}

/// Null: there is no memory, or a panic.
#[no_mangle]
pub extern "C" fn llg_c_clone_matcher(matcher: &LlgMatcher) -> *mut LlgMatcher {
    let made = guarded(|| {
        Ok(LlgMatcher {
            parser: matcher.parser.deep_clone(),
            words: matcher.words,
            max_bytes: matcher.max_bytes,
            kept: matcher.kept.clone(),
            failure: matcher.failure,
            error: matcher.error.clone(),
        })
    });
    made.map_or(std::ptr::null_mut(), |copy| Box::into_raw(Box::new(copy)))
}

/// # Safety
/// `matcher` came from llg_c_new_matcher and is used by no call.
#[no_mangle]
pub unsafe extern "C" fn llg_c_free_matcher(matcher: *mut LlgMatcher) {
    drop(Box::from_raw(matcher));
}

const ITEM_BYTES: usize = 8; // of an Earley item; with its argument twice that
const ROW_BYTES: usize = 128; // a row, where it lies in the text, and its lexeme
const TEXT_BYTES: usize = 24; // by byte of the text: lexer state, byte, its token

impl LlgMatcher {
    /// What is particular to this text: the lexer's tables, and rows and items of the parser. What
    /// llguidance says of its tables is an estimate.
    fn state_bytes(&self) -> usize {
        let item_bytes = ITEM_BYTES << usize::from(self.parser.parser.grammar().parametric());
        let kept = self.kept[self.kept.len() - 1];
        self.parser.parser.lexer_stats().num_bytes
            + kept.items * item_bytes
            + kept.rows * ROW_BYTES
            + kept.bytes * TEXT_BYTES
            + self.kept.len() * std::mem::size_of::<Kept>()
    }

    fn check_size(&self) -> Result<(), Failure> {
        let bytes = self.state_bytes();
        if bytes <= self.max_bytes {
            return Ok(());
        }
        let message = format!("its state has {bytes} bytes, the limit is {}", self.max_bytes);
        Err(Failure(LlgFailure::TooLarge, message))
    }

    /// An error of the parser, which is beyond a limit or does not take what it was given.
    fn failure_of(parser: &TokenParser, error: anyhow::Error) -> Failure {
        let message = format!("{error:#}");
        let is_beyond = parser.parser.get_error().is_some() || message.contains("Current row has");
        let kind = if is_beyond { LlgFailure::TooLarge } else { LlgFailure::Refused };
        Failure(kind, message)
    }

    fn call<T>(&mut self, call: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Option<T> {
        if self.failure.is_some() {
            return None;
        }
        match guarded(|| call(self)) {
            Ok(value) => Some(value),
            Err(Failure(kind, message)) => {
                self.failure = Some(kind);
                self.error = message;
                None
            }
        }
    }

    fn compute_mask(&mut self, out: &mut [u32]) -> Result<(), Failure> {
        let allowed = if self.parser.stopped() {
            let trie = self.parser.token_env.tok_trie();
            trie.singleton_token_set(trie.eos_token())
        } else {
            self.parser.compute_mask().map_err(|e| Self::failure_of(&self.parser, e))?
        };
        let count = out.len().min(allowed.as_slice().len());
        out[..count].copy_from_slice(&allowed.as_slice()[..count]);
        out[count..].fill(0);
        self.check_size()
    }

    fn consume(&mut self, token: u32) -> Result<(), Failure> {
        let before = self.parser.parser.stats().clone();
        let taken = self.parser.consume_token(token);
        let backtrack = taken.map_err(|e| Self::failure_of(&self.parser, e))?;
        if backtrack != 0 {
            return Err(Failure(LlgFailure::Internal, "unexpected backtracking".to_string()));
        }
        let after = self.parser.parser.stats();
        let mut kept = self.kept[self.kept.len() - 1];
        kept.items += after.all_items - before.all_items;
        kept.rows += after.rows - before.rows;
        kept.bytes += self.parser.token_env.tok_trie().token_len(token);
        self.kept.push(kept);
        let stopped = self.parser.check_stop();
        stopped.map_err(|e| Self::failure_of(&self.parser, e))?;
        self.check_size()
    }

    fn rollback(&mut self, count: usize) -> Result<(), Failure> {
        let rolled = self.parser.rollback(count);
        rolled.map_err(|e| Failure(LlgFailure::Internal, format!("{e:#}")))?;
        self.kept.truncate(self.kept.len() - count);
        Ok(())
    }
}

/// # Safety
/// `mask` has room for (vocabulary size + 31) / 32 words.
#[no_mangle]
pub unsafe extern "C" fn llg_c_compute_mask(matcher: &mut LlgMatcher, mask: *mut u32) -> bool {
    let out = std::slice::from_raw_parts_mut(mask, matcher.words);
    matcher.call(|m| m.compute_mask(out)).is_some()
}

#[no_mangle]
pub extern "C" fn llg_c_consume(matcher: &mut LlgMatcher, token: u32) -> bool {
    matcher.call(|m| m.consume(token)).is_some()
}

#[no_mangle]
pub extern "C" fn llg_c_rollback(matcher: &mut LlgMatcher, count: usize) -> bool {
    matcher.call(|m| m.rollback(count)).is_some()
}

#[no_mangle]
pub extern "C" fn llg_c_is_accepting(matcher: &mut LlgMatcher) -> bool {
    matcher.call(|m| Ok(m.parser.is_accepting())).unwrap_or(false)
}

#[no_mangle]
pub extern "C" fn llg_c_is_stopped(matcher: &LlgMatcher) -> bool {
    matcher.failure.is_some() || matcher.parser.stopped()
}

#[no_mangle]
pub extern "C" fn llg_c_state_bytes(matcher: &LlgMatcher) -> usize {
    guarded(|| Ok(matcher.state_bytes())).unwrap_or(0)
}

/// What the matcher failed with, and its text.
/// # Safety
/// `error` has room for `error_len` bytes.
#[no_mangle]
pub unsafe extern "C" fn llg_c_failure(
    matcher: &LlgMatcher,
    error: *mut u8,
    error_len: usize,
) -> LlgFailure {
    write_error(&matcher.error, error, error_len);
    matcher.failure.unwrap_or(LlgFailure::Internal)
}
