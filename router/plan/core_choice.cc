// RouterCore: which workers may take a request, and which of them does (design.md 9).
#include <algorithm>
#include <iterator>
#include <span>
#include <utility>

#include "common/page_name.h"
#include "router/plan/core.h"

namespace baton::router {
namespace {

bool Pairs(const WorkerRecord& a, const WorkerRecord& b) {
  return a.hello.weights == b.hello.weights && a.hello.layout == b.hello.layout;
}

RequestFacts FactsOf(const Request& request, uint32_t num_pages) {
  return {.prompt_tokens = request.prompt_tokens(),
          .num_pages = num_pages,
          .num_sequences = request.OpenChoices(),
          .reads_cache = !request.LacksPromptLogprobs()};
}

}  // namespace

RouterCore::Wanted RouterCore::WantedOf(const Request& request) const {
  Wanted wanted{.needs_grammar_room = request.HasGrammar()};
  if (!request.has_token) return wanted;
  wanted.pinned = &*request.identity;
  const bool is_over =
      now_ >= request.lost_at + config_.no_worker_grace;  // it may come back before
  wanted.any_prompt_class = is_over && !HasServing(*request.identity, false);
  wanted.any_decode_class = is_over && !HasServing(*request.identity, true);
  return wanted;
}

// Is a worker left that computes this role's positions as they were computed?
bool RouterCore::HasServing(const Identity& identity, bool is_decode) const {
  for (const auto& [id, worker] : workers_.all()) {
    if (!worker.IsServing() || worker.hello.weights != identity.weights) continue;
    const bool serves = is_decode ? worker.hello.serves_decode : worker.hello.serves_prefill;
    const bool is_class = is_decode ? worker.hello.decode_class == identity.decode_class
                                    : worker.hello.prompt_class == identity.prompt_class;
    if (serves && is_class) return true;
  }
  return false;
}

void RouterCore::KeepPreferred(const Request& request, Workers& workers) const {
  const auto keep = [&workers](auto is_wanted) {
    Workers kept;
    std::copy_if(workers.begin(), workers.end(), std::back_inserter(kept), is_wanted);
    if (!kept.empty()) workers = std::move(kept);
  };
  keep([&request](const WorkerRecord* worker) {
    return std::find(request.avoid.begin(), request.avoid.end(), worker->id) == request.avoid.end();
  });
  keep([this](const WorkerRecord* worker) { return !worker->IsSuspect(now_, config_); });
}

std::optional<RouterCore::PairChoice> RouterCore::ChoosePair(Request& request, Placed& why) {
  Wanted wanted = WantedOf(request);
  if (const auto pair = ChoosePairAs(request, wanted, why)) return pair;
  if (wanted.needs_grammar_room) {
    wanted.needs_grammar_room = false;
    if (ChoosePairAs(request, wanted, why)) why = Placed::kNoGrammarRoom;
  }
  return std::nullopt;
}

std::optional<RouterCore::PairChoice> RouterCore::ChoosePairAs(Request& request,
                                                               const Wanted& wanted, Placed& why) {
  Workers prefills;
  bool is_any_ready = false;
  for (const auto& [id, worker] : workers_.all()) {
    if (!worker.IsReady() || !worker.IsPrefillOnly()) continue;
    if (worker.hello.max_context <= request.prompt_tokens()) continue;
    if (wanted.pinned != nullptr && worker.hello.weights != wanted.pinned->weights) continue;
    if (!wanted.any_prompt_class && worker.hello.prompt_class != wanted.pinned->prompt_class)
      continue;
    is_any_ready = true;
    if (wanted.needs_grammar_room && !worker.HasGrammarRoom(now_)) continue;
    if (worker.HasPrefillSlot(now_, config_)) prefills.push_back(&worker);
  }
  if (!is_any_ready) return ChooseFallback(request, wanted, why);
  if (prefills.empty()) {
    why = Placed::kNoPrefillSlot;
    return std::nullopt;
  }
  Workers preferred = prefills;
  KeepPreferred(request, preferred);
  for (const Workers* group : {&preferred, &prefills}) {
    if (const auto pair = PairFrom(request, wanted, *group, why)) return pair;
    if (why == Placed::kNoDecodeRoom) return std::nullopt;
  }
  return ChooseFallback(request, wanted, why);
}

// The best of `prefills` that pairs with a decode worker with room, and that decode worker.
std::optional<RouterCore::PairChoice> RouterCore::PairFrom(Request& request, const Wanted& wanted,
                                                           Workers prefills, Placed& why) {
  why = Placed::kNoWorker;
  while (!prefills.empty()) {
    const PrefillChoice choice = PickPrefill(request, prefills);
    const WorkerRecord& prefill = *prefills[choice.index];
    Placed here = Placed::kNoWorker;
    if (const auto decode = PickDecode(request, DecodesFor(request, wanted, &prefill), here)) {
      const WorkerRecord& landing = *workers_.Find(*decode);
      const uint32_t at_decode = UncachedTokens(FactsOf(request, 0), CachedPages(request, landing));
      const bool skips = at_decode <= config_.prefill_on_decode_max_tokens &&
                         landing.hello.serves_prefill &&
                         landing.hello.prompt_class == prefill.hello.prompt_class;
      return PairChoice{.prefill = skips ? *decode : prefill.id,
                        .decode = *decode,
                        .uncached_tokens = skips ? at_decode : choice.uncached_tokens};
    }
    if (here == Placed::kNoDecodeRoom) why = here;
    std::erase_if(prefills,
                  [&prefill](const WorkerRecord* other) { return Pairs(prefill, *other); });
  }
  return std::nullopt;
}

// No prefill worker is ready that pairs with a decode worker: one that serves both.
std::optional<RouterCore::PairChoice> RouterCore::ChooseFallback(Request& request,
                                                                 const Wanted& wanted,
                                                                 Placed& why) {
  Workers mixed = DecodesFor(request, wanted, nullptr);
  std::erase_if(mixed, [&wanted](const WorkerRecord* worker) {
    if (!worker->hello.serves_prefill) return true;
    return !wanted.any_prompt_class && worker->hello.prompt_class != wanted.pinned->prompt_class;
  });
  const bool is_any_ready = !mixed.empty();
  std::erase_if(mixed,
                [&](const WorkerRecord* worker) { return !worker->HasPrefillSlot(now_, config_); });
  if (mixed.empty()) {
    why = is_any_ready ? Placed::kNoPrefillSlot : Placed::kNoWorker;
    return std::nullopt;
  }
  const auto decode = PickDecode(request, std::move(mixed), why);
  if (!decode) return std::nullopt;
  const uint32_t cached = CachedPages(request, *workers_.Find(*decode));
  return PairChoice{.prefill = *decode,
                    .decode = *decode,
                    .uncached_tokens = UncachedTokens(FactsOf(request, 0), cached),
                    .is_fallback = true};
}

// Ready decode workers that may continue this request and pair with `prefill` (null: any).
RouterCore::Workers RouterCore::DecodesFor(const Request& request, const Wanted& wanted,
                                           const WorkerRecord* prefill) const {
  Workers decodes;
  for (const auto& [id, worker] : workers_.all()) {
    if (!worker.IsReady() || !worker.hello.serves_decode) continue;
    if (worker.hello.max_context <= request.prompt_tokens()) continue;
    if (wanted.needs_grammar_room && !worker.HasGrammarRoom(now_)) continue;
    if (prefill != nullptr && !Pairs(*prefill, worker)) continue;
    if (wanted.pinned != nullptr && worker.hello.weights != wanted.pinned->weights) continue;
    if (!wanted.any_decode_class && worker.hello.decode_class != wanted.pinned->decode_class)
      continue;
    decodes.push_back(&worker);
  }
  return decodes;
}

std::optional<WorkerId> RouterCore::PickDecode(Request& request, Workers decodes, Placed& why) {
  why = decodes.empty() ? Placed::kNoWorker : Placed::kNoDecodeRoom;
  std::erase_if(decodes, [&](const WorkerRecord* worker) { return !worker->TakesLanding(now_); });
  if (decodes.empty()) return std::nullopt;
  const RequestFacts facts = FactsOf(request, PagesFor(request));
  const ChooseWeights weights{.nominal_step_us = config_.nominal_step_us};
  Workers preferred = decodes;
  KeepPreferred(request, preferred);
  for (const Workers* group : {&preferred, &decodes}) {
    std::vector<DecodeCandidate> candidates;
    for (const WorkerRecord* worker : *group) candidates.push_back(worker->AsDecodeCandidate());
    if (const auto best = ChooseDecode(candidates, facts, weights)) return candidates[*best].worker;
  }
  return std::nullopt;
}

// `prefills` is not empty.
PrefillChoice RouterCore::PickPrefill(Request& request, const Workers& prefills) {
  std::vector<PrefillCandidate> candidates;
  for (const WorkerRecord* worker : prefills)
    candidates.push_back({.worker = worker->id,
                          .queued_tokens = worker->QueuedTokens(),
                          .tokens_per_s = worker->PrefillRate(config_),
                          .cached_pages = CachedPages(request, *worker)});
  return *ChoosePrefill(candidates, FactsOf(request, 0));
}

uint32_t RouterCore::PagesFor(const Request& request) const {
  return request.PagesToBook(config_.headroom_tokens);
}

bool RouterCore::CanEverFit(const Request& request) const {
  const uint32_t pages = PagesFor(request);
  for (const auto& [id, worker] : workers_.all()) {
    if (!worker.is_up || !worker.hello.serves_decode) continue;
    if (worker.hello.pages >= pages && worker.hello.max_sequences >= request.OpenChoices())
      return true;
  }
  return false;
}

// Leading full pages of the prompt in the worker's cache, by names of the worker's own class.
uint32_t RouterCore::CachedPages(Request& request, const WorkerRecord& worker) {
  if (worker.cache.size() == 0 || request.LacksPromptLogprobs()) return 0;
  const wire::WorkerHello& hello = worker.hello;
  const bool is_named = request.named_as && request.named_as->weights == hello.weights &&
                        request.named_as->layout == hello.layout &&
                        request.named_as->prompt_class == hello.prompt_class;
  if (!is_named) {
    request.named_as = Identity{.weights = hello.weights,
                                .layout = hello.layout,
                                .prompt_class = hello.prompt_class,
                                .decode_class = hello.decode_class};
    const PageName root = RootName(hello.weights, hello.layout, request.spec.salt);
    request.page_names = PromptPageNames(root, hello.prompt_class, *request.spec.prompt);
  }
  return static_cast<uint32_t>(worker.cache.Overlap(request.page_names));
}

}  // namespace baton::router
