#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// src/lib.rs. Texts are UTF-8 with their length; errors are cut to the room there is, with a NUL.
#ifdef __cplusplus
extern "C" {
#endif

struct LlgTokenizer;
struct LlgMatcher;

enum LlgFailure {
  kLlgRefused = 1,  // the grammar does not allow it
  kLlgTooLarge,     // the grammar is beyond a limit
  kLlgInternal,
  kLlgNoThread,  // to compile it; there may be one later
};

struct LlgTokenizer* llg_c_new_tokenizer(uint32_t num_tokens, const uint32_t* lens,
                                         const uint8_t* bytes, uint32_t eos, size_t max_state_bytes,
                                         char* error, size_t error_len);
void llg_c_free_tokenizer(struct LlgTokenizer* tokenizer);

// Null: `failure` and `error` say why.
struct LlgMatcher* llg_c_new_matcher(const struct LlgTokenizer* tokenizer, const char* lark,
                                     size_t lark_len, enum LlgFailure* failure, char* error,
                                     size_t error_len);
// Null: there is no memory for it.
struct LlgMatcher* llg_c_clone_matcher(const struct LlgMatcher* matcher);
void llg_c_free_matcher(struct LlgMatcher* matcher);
bool llg_c_compute_mask(struct LlgMatcher* matcher, uint32_t* mask);
bool llg_c_consume(struct LlgMatcher* matcher, uint32_t token);
bool llg_c_rollback(struct LlgMatcher* matcher, size_t count);
bool llg_c_is_accepting(struct LlgMatcher* matcher);
bool llg_c_is_stopped(const struct LlgMatcher* matcher);
size_t llg_c_state_bytes(const struct LlgMatcher* matcher);
enum LlgFailure llg_c_failure(const struct LlgMatcher* matcher, char* error, size_t error_len);

#ifdef __cplusplus
}
#endif
