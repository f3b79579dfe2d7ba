#pragma once

#include <functional>
#include <string>
#include <utility>

#include "common/clock.h"
#include "common/cpu_pool.h"
#include "router/openai/api.h"
#include "router/openai/api_fakes.h"

namespace baton::router {

// All that an Api is given, for tests, fuzzers and benches, which play the planner.
struct ApiSetup {
  // `api_tokenizer` outlives it.
  ApiSetup(const Tokenizer& api_tokenizer, GrammarChecker::Check check,
           ApiConfig api_config = UsualConfig())
      : tokenizer(api_tokenizer), config(std::move(api_config)), grammars(std::move(check), {}) {}

  static ApiConfig UsualConfig() {
    return {.served_model_names = {"deepseek-v4-flash"},
            .model_path = "models/flash",
            .max_context = 4096,
            .replay = {},
            .chat = {}};
  }

  ApiParts Parts() {
    return {.config = config,
            .tokenizer = tokenizer,
            .grammars = grammars,
            .markup = markup,
            .encoder = encoder,
            .dispatcher = dispatcher,
            .cpu_pool = cpu_pool,
            .clock = clock,
            .render_metrics = [] { return std::string("metrics"); }};
  }

  const Tokenizer& tokenizer;
  const MarkupIds markup = *MarkupIds::Find(tokenizer);
  const ChatEncoder encoder = *ChatEncoder::Create(tokenizer);
  ManualClock clock;
  ApiConfig config;
  FakeDispatcher dispatcher;
  CpuPool cpu_pool{1, 4};
  GrammarChecker grammars;  // last: its threads use all of it
};

}  // namespace baton::router
