#include "common/demo_vocabulary.h"

#include <fstream>
#include <iterator>

namespace baton {

const std::string& DemoTokenizerJson() {
  static const std::string json = [] {
    std::ifstream file("models/demo/tokenizer.json", std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }();
  return json;
}

const Vocabulary& DemoVocabulary() {
  static const Vocabulary vocabulary = *Vocabulary::FromTokenizerJson(DemoTokenizerJson());
  return vocabulary;
}

std::vector<int32_t> AllowedIds(std::span<const uint32_t> mask) {
  std::vector<int32_t> ids;
  for (size_t v = 0; v < 32 * mask.size(); ++v)
    if ((mask[v / 32] >> (v % 32) & 1) != 0) ids.push_back(static_cast<int32_t>(v));
  return ids;
}

MaskRules RulesOf(const std::string& grammar) {
  MaskRules rules;
  rules.grammar = grammar;
  return rules;
}

}  // namespace baton
