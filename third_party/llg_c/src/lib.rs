//! The C door to llguidance, as common/grammar.cc needs it (llg_c.h). Every call catches panics, so
//! that no grammar a client sends can end the process; errors are texts of the object or of `error`.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Once};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{earley::SlicedBiasComputer, Matcher, ParserFactory};

pub struct LlgTokenizer {
    factory: ParserFactory,
}

pub struct LlgMatcher {
    matcher: Matcher,
    words: usize,
    error: String,
}

fn guarded<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("internal: {}", text.unwrap_or("panic")))
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

fn new_tokenizer(tokens: Vec<Vec<u8>>, eos: u32) -> Result<LlgTokenizer, String> {
    let info = TokRxInfo::new(tokens.len() as u32, eos);
    let trie = TokTrie::from(&info, &tokens);
    // Approximate: not canonical, so a mask allows every token that fits, not one tokenization.
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new(
        &env,
        InferenceCapabilities::default(),
        &SlicedBiasComputer::general_slices(),
    )
    .map_err(|e| format!("{e:#}"))?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.max_lexer_states = 50_000; // 1 to 2 KB each
    limits.verbose_errors = false;
    Ok(LlgTokenizer { factory })
}

/// # Safety
/// `lens` has `num_tokens` entries, `bytes` their sum; `error` has room for `error_len` bytes.
#[no_mangle]
pub unsafe extern "C" fn llg_c_new_tokenizer(
    num_tokens: u32,
    lens: *const u32,
    bytes: *const u8,
    eos: u32,
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
        new_tokenizer(tokens, eos)
    });
    match made {
        Ok(tokenizer) => Box::into_raw(Box::new(tokenizer)),
        Err(message) => {
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

/// # Safety
/// `lark` has `lark_len` bytes; `error` has room for `error_len` bytes.
#[no_mangle]
pub unsafe extern "C" fn llg_c_new_matcher(
    tokenizer: &LlgTokenizer,
    lark: *const u8,
    lark_len: usize,
    error: *mut u8,
    error_len: usize,
) -> *mut LlgMatcher {
    let lark = slice_of(lark, lark_len);
    let made = guarded(|| {
        let text = std::str::from_utf8(lark).map_err(|_| "is not UTF-8".to_string())?;
        let grammar = TopLevelGrammar::from_lark(text.to_string());
        let parser = tokenizer.factory.create_parser(grammar).map_err(|e| format!("{e:#}"))?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(message) => Err(message),
            None => Ok(matcher),
        }
    });
    match made {
        Ok(matcher) => {
            let words = tokenizer.factory.tok_env().tok_trie().vocab_size().div_ceil(32);
            Box::into_raw(Box::new(LlgMatcher { matcher, words, error: String::new() }))
        }
        Err(message) => {
            write_error(&message, error, error_len);
            std::ptr::null_mut()
        }
    }
}

#[no_mangle]
pub extern "C" fn llg_c_clone_matcher(matcher: &LlgMatcher) -> *mut LlgMatcher {
    let made = guarded(|| Ok(matcher.matcher.deep_clone()));
    Box::into_raw(Box::new(LlgMatcher {
        matcher: made.unwrap_or_else(|message| Matcher::new(Err(anyhow::anyhow!(message)))),
        words: matcher.words,
        error: String::new(),
    }))
}

/// # Safety
/// `matcher` came from llg_c_new_matcher and is used by no call.
#[no_mangle]
pub unsafe extern "C" fn llg_c_free_matcher(matcher: *mut LlgMatcher) {
    drop(Box::from_raw(matcher));
}

impl LlgMatcher {
    fn call<T>(&mut self, call: impl FnOnce(&mut Matcher) -> anyhow::Result<T>) -> Option<T> {
        let matcher = &mut self.matcher;
        match guarded(|| call(matcher).map_err(|e| format!("{e:#}"))) {
            Ok(value) => Some(value),
            Err(message) => {
                self.error = message;
                None
            }
        }
    }
}

/// # Safety
/// `mask` has room for (vocabulary size + 31) / 32 words.
#[no_mangle]
pub unsafe extern "C" fn llg_c_compute_mask(matcher: &mut LlgMatcher, mask: *mut u32) -> bool {
    let words = matcher.words;
    let Some(allowed) = matcher.call(|m| m.compute_mask_or_eos()) else {
        return false;
    };
    let out = std::slice::from_raw_parts_mut(mask, words);
    out.fill(0);
    let count = words.min(allowed.as_slice().len());
    out[..count].copy_from_slice(&allowed.as_slice()[..count]);
    true
}

#[no_mangle]
pub extern "C" fn llg_c_consume(matcher: &mut LlgMatcher, token: u32) -> bool {
    matcher.call(|m| m.consume_token(token)).is_some()
}

#[no_mangle]
pub extern "C" fn llg_c_rollback(matcher: &mut LlgMatcher, count: usize) -> bool {
    matcher.call(|m| m.rollback(count)).is_some()
}

/// How many of `tokens` may follow; -1 for an error.
/// # Safety
/// `tokens` has `count` entries.
#[no_mangle]
pub unsafe extern "C" fn llg_c_count_allowed(
    matcher: &mut LlgMatcher,
    tokens: *const u32,
    count: usize,
) -> i64 {
    let tokens = slice_of(tokens, count);
    matcher.call(|m| m.validate_tokens(tokens)).map_or(-1, |n| n as i64)
}

#[no_mangle]
pub extern "C" fn llg_c_is_accepting(matcher: &mut LlgMatcher) -> bool {
    matcher.call(|m| m.is_accepting()).unwrap_or(false)
}

#[no_mangle]
pub extern "C" fn llg_c_is_stopped(matcher: &LlgMatcher) -> bool {
    matcher.matcher.is_stopped()
}

/// The last error's text.
/// # Safety
/// `error` has room for `error_len` bytes.
#[no_mangle]
pub unsafe extern "C" fn llg_c_error(matcher: &LlgMatcher, error: *mut u8, error_len: usize) {
    write_error(&matcher.error, error, error_len);
}
