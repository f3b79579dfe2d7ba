#include "kernels/cpu/sample.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/check.h"
#include "kernels/cpu/allowed_set.h"
#include "kernels/cpu/sample_loops.h"
#include "kernels/exact_math.h"

namespace baton::kernels::cpu {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

bool IsIn(int32_t token, size_t vocabulary) {
  return token >= 0 && static_cast<size_t>(token) < vocabulary;
}

// Steps 1-4 of contracts.md 2.2 on one row's scores.
class ScoreEditor {
 public:
  ScoreEditor(const SampleRow& row, std::span<float> scores, std::vector<int32_t>& counts)
      : row_(row), spec_(*row.spec), scores_(scores), counts_(counts) {}

  void Run() {
    if (spec_.repetition_penalty != 1.0f) PenaliseRepetition();
    if (spec_.frequency_penalty != 0 || spec_.presence_penalty != 0) PenaliseCounts();
    for (const auto& [token, bias] : spec_.logit_bias) {
      if (IsIn(token, scores_.size())) At(token) += bias;
    }
    if (!spec_.allowed_tokens.empty()) KeepAllowedTokens();
    for (const std::vector<int32_t>& word : spec_.bad_words) BanWord(word);
    const auto next_length = static_cast<int64_t>(row_.generated.size()) + 1;
    if (row_.finish != nullptr && next_length <= row_.finish->min_tokens) {
      for (int32_t token : row_.finish->stop_tokens) Forbid(token);
    }
    if (!row_.token_mask.empty()) ApplyMask();
  }

 private:
  float& At(int32_t token) { return scores_[static_cast<size_t>(token)]; }
  int32_t& CountOf(int32_t token) { return counts_[static_cast<size_t>(token)]; }

  void Forbid(int32_t token) {
    if (IsIn(token, scores_.size())) At(token) = kForbidden;
  }

  // Calls edit(token, count) once for every token of the lists; leaves the counts zero.
  template <typename Edit>
  void ForEachDistinct(std::initializer_list<std::span<const int32_t>> lists, Edit edit) {
    for (std::span<const int32_t> list : lists) {
      for (int32_t token : list) {
        if (IsIn(token, scores_.size())) ++CountOf(token);
      }
    }
    for (std::span<const int32_t> list : lists) {
      for (int32_t token : list) {
        if (!IsIn(token, scores_.size()) || CountOf(token) == 0) continue;
        edit(token, CountOf(token));
        CountOf(token) = 0;
      }
    }
  }

  void PenaliseRepetition() {
    const float r = spec_.repetition_penalty;
    ForEachDistinct({row_.prompt, row_.generated}, [&](int32_t token, int32_t) {
      float& x = At(token);
      x = x > 0 ? x / r : x * r;
    });
  }

  void PenaliseCounts() {
    ForEachDistinct({row_.generated}, [&](int32_t token, int32_t count) {
      float& x = At(token);
      x = Fma(-spec_.frequency_penalty, static_cast<float>(count), x);
      x = x - spec_.presence_penalty;
    });
  }

  void KeepAllowedTokens() {
    size_t next = 0;  // first token not decided yet
    for (int32_t token : spec_.allowed_tokens) {
      if (!IsIn(token, scores_.size())) continue;
      const auto kept = static_cast<size_t>(token);
      for (; next < kept; ++next) scores_[next] = kForbidden;
      next = std::max(next, kept + 1);
    }
    for (; next < scores_.size(); ++next) scores_[next] = kForbidden;
  }

  // The i-th token before this position, 0 the nearest; -1 before the prompt.
  int32_t Before(size_t i) const {
    if (i < row_.generated.size()) return row_.generated[row_.generated.size() - 1 - i];
    const size_t rest = i - row_.generated.size();
    return rest < row_.prompt.size() ? row_.prompt[row_.prompt.size() - 1 - rest] : -1;
  }

  void BanWord(const std::vector<int32_t>& word) {
    for (size_t i = 0; i + 1 < word.size(); ++i) {
      if (Before(i) != word[word.size() - 2 - i]) return;
    }
    Forbid(word.back());
  }

  void ApplyMask() {
    CHECK(row_.token_mask.size() * 32 >= scores_.size());
    for (size_t v = 0; v < scores_.size(); ++v) {
      if (((row_.token_mask[v / 32] >> (v % 32)) & 1) == 0) scores_[v] = kForbidden;
    }
  }

  const SampleRow& row_;
  const SamplingSpec& spec_;
  std::span<float> scores_;
  std::vector<int32_t>& counts_;
};

// Steps 7 and 8 for a truncated row.
BestToken ChooseAmongAllowed(const SampleRow& row, BestToken top, SampleScratch& scratch) {
  FillMasses(scratch.scores, top.score, scratch.masses, scratch.has_fma);
  scratch.keys.clear();
  for (size_t v = 0; v < scratch.scores.size(); ++v) {
    if (scratch.scores[v] > kForbidden)
      scratch.keys.push_back(RankKey(scratch.masses[v], static_cast<int32_t>(v)));
  }
  KeepAllowed(*row.spec, scratch.keys);
  const NoiseSource noise{row.key, row.position};
  BestToken best;
  for (uint64_t key : scratch.keys) {
    const auto token = static_cast<uint32_t>(TokenOf(key));
    best.Offer(scratch.scores[token] + Gumbel(noise.Words(token / 4)[token % 4]), TokenOf(key));
  }
  return best;
}

// Steps 5-8; `top` is the argmax of the scores, which exists.
int32_t Choose(const SampleRow& row, BestToken top, SampleScratch& scratch) {
  const SamplingSpec& spec = *row.spec;
  if (spec.greedy) return top.token;
  for (float& score : scratch.scores) score *= spec.inv_temperature;
  // Different scores may meet by rounding, then the lower id is the best.
  const BestToken scaled_top = ArgMax(scratch.scores);
  if (scaled_top.token < 0) return top.token;  // all overflowed
  top = scaled_top;
  if (!row.is_draft && IsTruncated(spec)) return ChooseAmongAllowed(row, top, scratch).token;
  const NoiseSource noise{row.key, row.position};
  return NoisyArgMax(scratch.scores, noise, top, scratch.has_fma).token;
}

// The `count` best tokens: logit descending, id ascending.
std::vector<TokenLogprob> BestTokens(std::span<const float> logits, size_t count) {
  std::vector<BestToken> best;  // descending
  for (size_t v = 0; v < logits.size() && count > 0; ++v) {
    const auto token = static_cast<int32_t>(v);
    if (!(logits[v] > kForbidden)) continue;  // NaN too
    if (best.size() == count && !best.back().IsBeatenBy(logits[v], token)) continue;
    const auto place = std::find_if(best.begin(), best.end(), [&](const BestToken& other) {
      return other.IsBeatenBy(logits[v], token);
    });
    best.insert(place, BestToken{logits[v], token});
    if (best.size() > count) best.pop_back();
  }
  std::vector<TokenLogprob> out;
  for (const BestToken& token : best) out.push_back({.token = token.token, .logprob = token.score});
  return out;
}

// contracts.md 2.5, from the raw logits.
void ReportLogprobs(std::span<const float> logits, size_t count, bool has_fma,
                    TokenRecord& chosen) {
  const float maximum = ArgMax(logits).score;
  const uint64_t sum = SumMasses(logits, maximum, has_fma);
  const float log_sum = Log(static_cast<float>(sum) * 0x1p-32f);
  const auto logprob = [&](float logit) { return DistanceOf(logit, maximum) - log_sum; };
  chosen.logprob = logprob(logits[static_cast<size_t>(chosen.token)]);
  chosen.top = BestTokens(logits, count);
  for (TokenLogprob& top : chosen.top) top.logprob = logprob(top.logprob);
}

}  // namespace

void SampleRowOnCpu(const SampleRow& row, std::span<const float> logits, TokenRecord& chosen,
                    bool& is_empty, SampleScratch& scratch) {
  CHECK(row.spec != nullptr && logits.size() <= size_t{1} << kTokenBits);
  scratch.scores.assign(logits.begin(), logits.end());
  scratch.masses.resize(logits.size());
  scratch.counts.resize(logits.size(), 0);
  if (!row.is_draft) ScoreEditor(row, scratch.scores, scratch.counts).Run();
  chosen = TokenRecord{};
  const BestToken top = ArgMax(scratch.scores);
  is_empty = top.token < 0;
  if (is_empty) return;
  chosen.token = Choose(row, top, scratch);
  if (row.is_draft || row.spec->top_logprobs < 0) return;
  const int count = std::min(row.spec->top_logprobs, kMaxTopLogprobs);
  ReportLogprobs(logits, static_cast<size_t>(count), scratch.has_fma, chosen);
}

}  // namespace baton::kernels::cpu
