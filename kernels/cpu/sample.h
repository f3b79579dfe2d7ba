#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/sampling_spec.h"
#include "kernels/cpu/isa.h"
#include "kernels/ops.h"

namespace baton::kernels::cpu {

// Buffers of one thread that samples rows; grow to the vocabulary once.
struct SampleScratch {
  std::vector<float> scores;               // [vocabulary]
  std::vector<uint64_t> masses;            // [vocabulary]
  std::vector<uint64_t> keys;              // rank keys of the tokens that may be chosen
  std::vector<int32_t> counts;             // [vocabulary], zero between rows
  bool has_fma = IsSupported(Isa::kAvx2);  // tests clear it: the bits stay the same
};

// Chooses one row's token (contracts.md 2.2, 2.3) and reports its logprobs (2.5). `logits`: the
// row's raw logits, at most 2^17. `is_empty`: no token is left after the masks; `chosen` is then
// empty too. Token ids outside the vocabulary name no token. A function of its arguments alone.
void SampleRowOnCpu(const SampleRow& row, std::span<const float> logits, TokenRecord& chosen,
                    bool& is_empty, SampleScratch& scratch);

}  // namespace baton::kernels::cpu
