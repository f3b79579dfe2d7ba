#include "engine/grammar/mask_maker.h"

#include <utility>

#include "common/status.h"

namespace baton::engine {
namespace {

// Of a grammar's way through a text, taken before it is compiled: what most need at their start.
constexpr size_t kUsualBytes = size_t{512} << 10;

absl::StatusOr<MaskSource> Make(GrammarCache& grammars, const MaskRules& rules, GrammarCharge room,
                                const std::vector<int32_t>& taken) {
  ASSIGN_OR_RETURN(MaskSource source, MaskSource::Create(grammars, rules, std::move(room)));
  for (const int32_t token : taken) RETURN_IF_ERROR(source.Take(token));
  return source;
}

}  // namespace

absl::Status MaskMaker::Check(const MaskRules& rules) const {
  return MaskSource::Check(grammars_.vocabulary(), rules);
}

absl::StatusOr<std::shared_ptr<PendingMasks>> MaskMaker::Start(
    const MaskRules& rules, std::vector<std::vector<int32_t>> taken) {
  if (rules.IsEmpty()) return nullptr;
  GrammarCharge room = grammars_.Room();
  if (!rules.grammar.empty()) RETURN_IF_ERROR(room.Resize(taken.size() * kUsualBytes));
  const std::shared_ptr<PendingMasks> pending(new PendingMasks(std::move(room)));
  const bool is_taken =
      run_([weak = std::weak_ptr(pending), &grammars = grammars_, rules, taken = std::move(taken)] {
        const std::shared_ptr<PendingMasks> masks = weak.lock();
        if (masks == nullptr) return;  // nobody waits any more
        for (const std::vector<int32_t>& tokens : taken) {
          absl::StatusOr<MaskSource> source =
              Make(grammars, rules, masks->room_.Split(kUsualBytes), tokens);
          masks->status_ = source.status();
          if (!source.ok()) break;
          masks->sources_.push_back(*std::move(source));
        }
        if (!masks->status_.ok()) masks->sources_.clear();
        masks->room_.Resize(0).IgnoreError();
        masks->is_ready_.store(true, std::memory_order_release);
      });
  if (is_taken) return pending;
  return absl::ResourceExhaustedError("too many grammars wait to be compiled");
}

}  // namespace baton::engine
