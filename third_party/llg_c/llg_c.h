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

struct LlgTokenizer* llg_c_new_tokenizer(uint32_t num_tokens, const uint32_t* lens,
                                         const uint8_t* bytes, uint32_t eos, char* error,
                                         size_t error_len);
void llg_c_free_tokenizer(struct LlgTokenizer* tokenizer);

struct LlgMatcher* llg_c_new_matcher(const struct LlgTokenizer* tokenizer, const char* lark,
                                     size_t lark_len, char* error, size_t error_len);
struct LlgMatcher* llg_c_clone_matcher(const struct LlgMatcher* matcher);
void llg_c_free_matcher(struct LlgMatcher* matcher);
bool llg_c_compute_mask(struct LlgMatcher* matcher, uint32_t* mask);
bool llg_c_consume(struct LlgMatcher* matcher, uint32_t token);
bool llg_c_rollback(struct LlgMatcher* matcher, size_t count);
int64_t llg_c_count_allowed(struct LlgMatcher* matcher, const uint32_t* tokens, size_t count);
bool llg_c_is_accepting(struct LlgMatcher* matcher);
bool llg_c_is_stopped(const struct LlgMatcher* matcher);
void llg_c_error(const struct LlgMatcher* matcher, char* error, size_t error_len);

#ifdef __cplusplus
}
#endif
