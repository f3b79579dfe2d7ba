#pragma once

#include <string>
#include <vector>

#include "router/text/tokenizer.h"

namespace baton::bench {

// CPU seconds of this thread over all bodies of /v1/chat/completions, by stage of what the router
// does before a request is queued. The second and later bodies find what the first ones left in the
// cache of runs, as in the program.
struct StageSeconds {
  double parse = 0, messages = 0, render = 0, tokenize = 0;
  size_t prompt_tokens = 0;
};
StageSeconds TimeStages(const std::vector<std::string>& bodies);

// CPU microseconds per token from the planner's events to the bytes of a stream's chunks, for an
// answer of these tokens one step each.
double FormatMicroseconds(const std::vector<int32_t>& tokens);

// Best of some rounds over the whole text in MB/s of one thread, and the number of ids.
struct TokenizeSpeed {
  double mb_per_s = 0;
  size_t num_ids = 0;
};
TokenizeSpeed TimeTokenizer(const std::string& text, int rounds);

}  // namespace baton::bench
