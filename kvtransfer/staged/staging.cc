#include "kvtransfer/staged/staging.h"

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::kvtransfer {

absl::Status StagingArea::Validate() const {
  if (slot_bytes == 0 || num_offer_slots == 0 || num_pull_slots == 0)
    return absl::InvalidArgumentError(
        absl::StrFormat("staging slots of %d bytes, %d for offers and %d for pulls: none may be 0",
                        slot_bytes, num_offer_slots, num_pull_slots));
  const uint64_t fitting = memory.size() / slot_bytes;
  if (num_offer_slots <= fitting && num_pull_slots <= fitting - num_offer_slots)
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "staging memory of %d bytes holds %d slots of %d bytes, %d for offers and %d for pulls asked",
      memory.size(), fitting, slot_bytes, num_offer_slots, num_pull_slots));
}

SlotShare::SlotShare(uint64_t first_offset, uint64_t slot_bytes, size_t count) : count_(count) {
  for (size_t i = count; i > 0; --i) free_.push_back(first_offset + (i - 1) * slot_bytes);
}

std::optional<uint64_t> SlotShare::Take() {
  if (free_.empty()) return std::nullopt;
  const uint64_t slot = free_.back();
  free_.pop_back();
  return slot;
}

void SlotShare::Return(uint64_t slot) {
  CHECK(free_.size() < count_);
  free_.push_back(slot);
}

}  // namespace baton::kvtransfer
