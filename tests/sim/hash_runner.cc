#include "tests/sim/hash_runner.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"

namespace baton::sim {
namespace {

using engine::Sequence;
using engine::SequenceRun;
using kernels::RowKind;

constexpr uint64_t kWord = sizeof(uint64_t);
constexpr uint64_t kWrongDrafts = 3;  // of 10

uint64_t LoadWord(const std::byte* from, uint64_t index) {
  uint64_t word;
  std::memcpy(&word, from + index * kWord, kWord);
  return word;
}
// The tokens of a run that goes on from what its sequence has.
std::vector<int32_t> TokensOf(const SequenceRun& run, const Sequence& sequence) {
  std::vector<int32_t> tokens;
  for (auto p = static_cast<size_t>(run.first_position);
       tokens.size() < static_cast<size_t>(run.rows); ++p) {
    const size_t known = sequence.tokens.size();
    tokens.push_back(p < known ? sequence.tokens[p] : sequence.drafts.at(p - known));
  }
  return tokens;
}

void StoreWord(std::byte* to, uint64_t index, uint64_t word) {
  std::memcpy(to + index * kWord, &word, kWord);
}

// Sections 1 to 6 of the tail at state.num_tokens (contracts.md 3.4): the window's rows and the
// chain, repeated and mixed over every byte.
void WriteSections(const HashState& state, const kernels::PageLayout& pages,
                   const kernels::TailLayout& tail, std::byte* wire) {
  const auto rows = static_cast<uint64_t>(tail.window_rows);
  const auto first = static_cast<uint64_t>(state.num_tokens) - rows;
  const auto row_words =
      static_cast<uint64_t>(pages.row_data_bytes() + pages.row_scale_bytes()) / kWord;
  for (size_t layer = 0; layer < tail.window.size(); ++layer) {
    for (uint64_t i = 0; i < rows * row_words; ++i) {
      const uint64_t word = state.window[(first + i % rows) % kHashWindow];
      const bool is_plain = layer == 0 && i < rows;
      StoreWord(wire + tail.window[layer], i, is_plain ? word : Mix(word, (layer << 32) + i));
    }
  }
  const auto hca_words = static_cast<uint64_t>(12 * pages.shape().head_dim) / kWord;
  for (size_t layer = 0; layer < tail.hca_state.size(); ++layer) {
    for (uint64_t i = 0; i < hca_words; ++i)
      StoreWord(wire + tail.hca_state[layer], i, Mix(state.chain, (layer << 32) + i));
  }
  const auto stream_words =
      static_cast<uint64_t>(2 * pages.shape().hc_mult * pages.shape().hidden_size) / kWord;
  for (uint64_t i = 0; i < stream_words; ++i)
    StoreWord(wire + tail.streams, i, i == 0 ? state.chain : Mix(state.chain, i));
}

}  // namespace

HashRunner::HashRunner(engine::PagePool& pool, const kernels::PageLayout& layout, int num_slots,
                       std::function<void(int rows)> on_step)
    : pool_(pool),
      layout_(layout),
      closing_words_(static_cast<int>(layout.payload_bytes() / kWord) - kPageTokens),
      on_step_(std::move(on_step)),
      slots_(static_cast<size_t>(num_slots)),
      before_(static_cast<size_t>(num_slots)) {
  CHECK(closing_words_ >= 0 && layout.payload_bytes() % kWord == 0);
}

VisiblePages HashRunner::ReadPages(std::span<const PageId> pages, int64_t num_tokens) const {
  VisiblePages visible;
  const uint64_t page_words = layout_.payload_bytes() / kWord;
  for (int64_t start = 0; start < num_tokens; start += kPageTokens) {
    const std::byte* page = pool_.Data(pages[static_cast<size_t>(start / kPageTokens)]);
    const auto open = static_cast<uint64_t>(num_tokens - start);
    const uint64_t words = open >= kPageTokens ? page_words : open;
    for (uint64_t i = 0; i < words; ++i) visible.Absorb(LoadWord(page, i));
  }
  return visible;
}

void HashRunner::WriteRow(std::span<const PageId> pages, int64_t position, uint64_t word) {
  std::byte* page = pool_.Data(pages[static_cast<size_t>(position / kPageTokens)]);
  StoreWord(page, static_cast<uint64_t>(position % kPageTokens), word);
  if (position % kPageTokens != kPageTokens - 1) return;
  for (int i = 0; i < closing_words_; ++i)
    StoreWord(page, static_cast<uint64_t>(kPageTokens + i), ClosingWord(word, i));
}

HashRunner::RunRows HashRunner::Compute(const SequenceRun& run, const Sequence& sequence,
                                        std::vector<int32_t> tokens) {
  HashState state = slots_[static_cast<size_t>(sequence.tail_slot)];
  before_[static_cast<size_t>(sequence.tail_slot)] = state;
  const std::span<const PageId> pages = sequence.pages.ids();
  CHECK(static_cast<int64_t>(pages.size()) * kPageTokens >= run.first_position + run.rows);
  VisiblePages visible = ReadPages(pages, state.num_tokens);
  RunRows result;
  for (const int32_t token : tokens) {
    const int64_t position = state.num_tokens;
    const uint64_t word = NextRow(state, visible, token);
    WriteRow(pages, position, word);
    AbsorbRow(visible, position, word, closing_words_);
    const bool is_last = position == run.first_position + run.rows - 1;
    if (run.kind == RowKind::kPrefill && !is_last) continue;
    result.rows.push_back({.state = state, .visible = visible, .word = word});
  }
  result.tokens = std::move(tokens);
  return result;
}

absl::Status HashRunner::LaunchForward(const engine::StepPlan& plan,
                                       const engine::SequenceTable& sequences) {
  CHECK(harvests_.size() == (plan.follows ? 1 : 0));
  int num_rows = 0;
  for (const SequenceRun& run : plan.runs) num_rows += run.rows;
  if (on_step_) on_step_(num_rows);
  forwarded_.clear();
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    const SequenceRun& run = plan.runs[i];
    const Sequence& sequence = sequences.Get(run.sequence);
    const int64_t first = slots_[static_cast<size_t>(sequence.tail_slot)].num_tokens;
    std::vector<int32_t> tokens;
    if (plan.follows) {
      const engine::SequenceTokens& last = harvests_.front().sequences[i];
      CHECK(last.sequence == run.sequence && first <= run.first_position);
      tokens.push_back(last.tokens.at(0).back().token);
      tokens.insert(tokens.end(), last.next_drafts.begin(), last.next_drafts.end());
      CHECK(static_cast<int>(tokens.size()) == run.rows);
    } else {
      CHECK(first == run.first_position);
      tokens = TokensOf(run, sequence);
    }
    forwarded_.push_back(Compute(run, sequence, std::move(tokens)));
  }
  return absl::OkStatus();
}

bool HashRunner::CanFollow(int num_drafts) const {
  return harvests_.size() == 1 &&
         std::ranges::all_of(harvests_.front().sequences, [&](const engine::SequenceTokens& last) {
           return static_cast<int>(last.next_drafts.size()) == num_drafts;
         });
}

TokenRecord HashRunner::ChooseAfter(const Sequence& sequence, const Row& row, int choice) const {
  return Choose(Logits(row.state, row.visible, row.word), sequence.sampling, sequence.finish,
                choice, row.state.num_tokens - sequence.prompt_tokens);
}

std::vector<int32_t> HashRunner::Draft(const Sequence& sequence, Row row, int32_t next_token,
                                       int num_drafts) const {
  std::vector<int32_t> drafts;
  for (int i = 0; i < num_drafts; ++i) {
    row.word = NextRow(row.state, row.visible, next_token);
    AbsorbRow(row.visible, row.state.num_tokens - 1, row.word, closing_words_);
    next_token = ChooseAfter(sequence, row, sequence.choices[0]).token;
    const bool is_wrong = Mix(row.word, 77) % 10 < kWrongDrafts;
    drafts.push_back(is_wrong ? (next_token + 1) % kHashVocab : next_token);
    next_token = drafts.back();
  }
  return drafts;
}

engine::SequenceTokens HashRunner::FinishRun(const SequenceRun& run, const Sequence& sequence,
                                             const RunRows& forwarded) {
  const std::vector<Row>& rows = forwarded.rows;
  engine::SequenceTokens out;
  out.sequence = run.sequence;
  out.accepted_rows = run.rows;
  if (run.kind == RowKind::kPrefill) {
    if (run.samples_first_token)
      for (const int choice : sequence.choices)
        out.tokens.push_back({ChooseAfter(sequence, rows.back(), choice)});
    return out;
  }
  if (run.kind == RowKind::kReplay) {
    for (const Row& row : rows) {
      const int32_t recorded = sequence.tokens[static_cast<size_t>(row.state.num_tokens)];
      out.replay_mismatches += ChooseAfter(sequence, row, sequence.choices[0]).token != recorded;
    }
    return out;
  }
  out.tokens.resize(1);
  out.accepted_rows = 0;
  for (const Row& row : rows) {
    ++out.accepted_rows;
    const auto next = static_cast<size_t>(out.accepted_rows);
    out.tokens[0].push_back(ChooseAfter(sequence, row, sequence.choices[0]));
    if (next >= rows.size() || forwarded.tokens[next] != out.tokens[0].back().token) break;
  }
  return out;
}

absl::Status HashRunner::LaunchFinish(const engine::StepPlan& plan,
                                      const engine::SequenceTable& sequences) {
  engine::Harvest harvest;
  harvest.step = plan.step;
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    const Sequence& sequence = sequences.Get(plan.runs[i].sequence);
    const std::vector<Row>& rows = forwarded_[i].rows;
    engine::SequenceTokens tokens = FinishRun(plan.runs[i], sequence, forwarded_[i]);
    const bool is_prefill = plan.runs[i].kind == RowKind::kPrefill;
    const Row& last =
        is_prefill ? rows.back() : rows[static_cast<size_t>(tokens.accepted_rows - 1)];
    slots_[static_cast<size_t>(sequence.tail_slot)] = last.state;
    const bool can_draft = !is_prefill || (sequence.choices.size() == 1 && !tokens.tokens.empty());
    if (can_draft) {
      const int32_t next = tokens.tokens.empty()
                               ? sequence.tokens[static_cast<size_t>(last.state.num_tokens)]
                               : tokens.tokens[0].back().token;
      tokens.next_drafts = Draft(sequence, last, next, plan.num_drafts);
    }
    harvest.sequences.push_back(std::move(tokens));
  }
  harvests_.push_back(std::move(harvest));
  return absl::OkStatus();
}

absl::StatusOr<engine::Harvest> HashRunner::Await() {
  CHECK(!harvests_.empty());
  engine::Harvest harvest = std::move(harvests_.front());
  harvests_.pop_front();
  return harvest;
}

void HashRunner::ResetTail(int tail_slot) {
  CHECK(harvests_.empty());
  slots_[static_cast<size_t>(tail_slot)] = HashState();
}

absl::Status HashRunner::PackTail(const kernels::TailArgs& args) {
  CHECK(harvests_.empty());
  const auto slot = static_cast<size_t>(args.tail_slot);
  const auto n = static_cast<int64_t>(args.num_tokens);
  // The last step may be one that did not count.
  const HashState& state = slots_[slot].num_tokens == n ? slots_[slot] : before_[slot];
  CHECK(state.num_tokens == n);
  const kernels::TailLayout tail = kernels::MakeTailLayout(layout_, args.num_tokens, 0);
  CHECK(args.wire.size() >= tail.total_bytes);
  WriteSections(state, layout_, tail, args.wire.data());
  return absl::OkStatus();
}

absl::Status HashRunner::UnpackTail(const kernels::TailArgs& args) {
  CHECK(harvests_.empty());
  const kernels::TailLayout tail = kernels::MakeTailLayout(layout_, args.num_tokens, 0);
  CHECK(args.wire.size() >= tail.total_bytes);
  HashState state;
  state.num_tokens = static_cast<int64_t>(args.num_tokens);
  state.chain = LoadWord(args.wire.data() + tail.streams, 0);
  const auto rows = static_cast<uint64_t>(tail.window_rows);
  for (uint64_t i = 0; i < rows; ++i)
    state.window[(args.num_tokens - rows + i) % kHashWindow] =
        LoadWord(args.wire.data() + tail.window[0], i);
  // Every byte counts: a tail that is not what this state packs to spoils the text.
  std::vector<std::byte> packed(tail.total_bytes);
  WriteSections(state, layout_, tail, packed.data());
  const auto start = static_cast<std::ptrdiff_t>(kernels::TailHeader::kBytes);
  const bool is_whole = std::equal(packed.begin() + start, packed.end(), args.wire.begin() + start);
  if (!is_whole) state.chain = Mix(state.chain, 1);
  slots_[static_cast<size_t>(args.tail_slot)] = state;
  return absl::OkStatus();
}

}  // namespace baton::sim
