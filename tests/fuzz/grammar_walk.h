#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace baton {

// What is shared by the targets that follow grammars.
inline constexpr size_t kMaxGrammarMessage = 1200;  // bytes of a refusal

// Up to `most` tokens that the grammar, one that CheckGrammar takes, allows one after the other,
// chosen by `choice`. CHECKs that masks only allow what is then taken, and that the matcher comes
// back to where it was. Whether the grammar was at its end is in `ends`.
std::vector<int32_t> WalkGrammar(std::string_view grammar, uint64_t choice, int most, bool& ends);

}  // namespace baton
