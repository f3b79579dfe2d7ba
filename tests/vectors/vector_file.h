#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "router/text/json_value.h"
#include "router/text/tokenizer.h"

// Checks of files laid out like spec/protocol.md 9.1, through the production code. A case fails
// with a sentence; nothing in a file ends the program.
namespace baton::vectors {

using router::JsonValue;
using Failure = std::optional<std::string>;

struct FileResult {
  struct Failed {
    std::string id, what;
  };
  size_t passed = 0;
  size_t respelled = 0;  // of the passed: equal but for numbers that the file spells otherwise
  std::vector<Failed> failures;

  void Count(const std::string& id, const Failure& failure) {
    if (!failure) ++passed;
    if (failure) failures.push_back({.id = id, .what = *failure});
  }
};

// Judges each of a file's cases.
FileResult CheckCases(const JsonValue& file, const std::function<Failure(const JsonValue&)>& check);

// Members of a case; of another type or absent they read as empty, false or an empty list.
std::string TextOf(const JsonValue& object, std::string_view key);
bool FlagOf(const JsonValue& object, std::string_view key, bool fallback = false);
std::vector<router::TokenId> IdsOf(const JsonValue* list);

// "<what> is <got>, want <want>", around the first difference.
Failure Compare(std::string_view what, std::string_view got, std::string_view want);
Failure CompareIds(std::string_view what, const std::vector<router::TokenId>& got,
                   const std::vector<router::TokenId>& want);

// Whether two texts differ in nothing but numbers that are the same double: what a JSON writer of
// the file did to the input does not count against the encoder.
bool DifferInSpellingOfNumbers(std::string_view a, std::string_view b);

FileResult CheckEncode(const JsonValue& file, const router::Tokenizer& tokenizer);
FileResult CheckStreamDecode(const JsonValue& file, const router::Tokenizer& tokenizer);
FileResult CheckWireStrings(const JsonValue& file, const router::Tokenizer& tokenizer);
FileResult CheckRenderEncoder(const JsonValue& file, const router::Tokenizer& tokenizer);
FileResult CheckRenderRequest(const JsonValue& file, const router::Tokenizer& tokenizer);
FileResult CheckParse(const JsonValue& file, const router::Tokenizer& tokenizer);
FileResult CheckValidation(const JsonValue& file, const router::Tokenizer& tokenizer);

}  // namespace baton::vectors
