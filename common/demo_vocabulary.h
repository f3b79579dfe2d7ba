#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/grammar.h"
#include "common/sampling_spec.h"

// For tests, which run in the project's root: the vocabulary of models/demo, and what its masks
// say.
namespace baton {

const std::string& DemoTokenizerJson();
const Vocabulary& DemoVocabulary();
std::vector<int32_t> AllowedIds(std::span<const uint32_t> mask);
// Of a grammar alone.
MaskRules RulesOf(const std::string& grammar);

}  // namespace baton
