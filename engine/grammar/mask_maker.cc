#include "engine/grammar/mask_maker.h"

#include <utility>

#include "common/status.h"

namespace baton::engine {
namespace {

// Of a grammar's way through a text, taken before it is compiled: what most need at their start.
constexpr size_t kUsualBytes = size_t{512} << 10;

}  // namespace

absl::Status MaskMaker::Check(const MaskRules& rules) const {
  return MaskSource::Check(grammars_.vocabulary(), rules);
}

void MaskMaker::Make(GrammarCache& grammars, const MaskRules& rules,
                     const std::vector<std::shared_ptr<PendingMasks>>& sequences) {
  // One compiles the grammar; the others copy it before any token is taken.
  for (const std::shared_ptr<PendingMasks>& masks : sequences) {
    const absl::StatusOr<MaskSource>& first = sequences.front()->source_;
    if (masks == sequences.front()) {
      masks->room_.Add(std::move(*masks->compiling_));
      masks->source_ = MaskSource::Create(grammars, rules, std::move(masks->room_));
    } else {
      masks->source_ = first.ok() ? first->Clone(std::move(masks->room_)) : first.status();
    }
  }
  for (const std::shared_ptr<PendingMasks>& masks : sequences) {
    absl::StatusOr<MaskSource>& source = masks->source_;
    for (size_t i = 0; i < masks->taken_.size() && source.ok(); ++i)
      if (absl::Status taken = source->Take(masks->taken_[i]); !taken.ok()) source = taken;
    masks->room_.Resize(0).IgnoreError();
    masks->is_ready_.store(true, std::memory_order_release);
  }
}

absl::StatusOr<std::vector<std::shared_ptr<PendingMasks>>> MaskMaker::Start(
    const MaskRules& rules, std::vector<std::vector<int32_t>> taken) {
  const bool has_grammar = !rules.grammar.empty();
  const auto compiling = std::make_shared<GrammarCharge>(grammars_.Room());
  if (has_grammar) RETURN_IF_ERROR(compiling->Resize(grammars_.BytesToCompile(rules.grammar)));
  std::vector<std::shared_ptr<PendingMasks>> started;
  for (std::vector<int32_t>& tokens : taken) {
    GrammarCharge room = grammars_.Room();
    if (has_grammar) RETURN_IF_ERROR(room.Resize(kUsualBytes));
    started.emplace_back(new PendingMasks(std::move(room), compiling, std::move(tokens)));
  }
  if (!has_grammar) {  // takes no time
    Make(grammars_, rules, started);
    return started;
  }
  const std::vector<std::weak_ptr<PendingMasks>> waiting(started.begin(), started.end());
  const bool is_taken = run_([waiting, &grammars = grammars_, rules] {
    std::vector<std::shared_ptr<PendingMasks>> sequences;  // that somebody waits for
    for (const std::weak_ptr<PendingMasks>& weak : waiting)
      if (std::shared_ptr<PendingMasks> masks = weak.lock()) sequences.push_back(std::move(masks));
    Make(grammars, rules, sequences);
  });
  if (is_taken) return started;
  return absl::ResourceExhaustedError("too many grammars wait to be compiled");
}

}  // namespace baton::engine
