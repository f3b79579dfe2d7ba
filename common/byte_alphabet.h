#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace baton {

// A byte-level tokenizer.json writes each byte as a character of its own (GPT-2's map, protocol.md
// 1.2). The bytes that a token's name stands for; none if one of its characters stands for no byte,
// as in the names of bos and eos.
std::optional<std::string> BytesOfTokenName(std::string_view name);

}  // namespace baton
