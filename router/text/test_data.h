#pragma once

#include <string>
#include <vector>

#include "router/text/json_value.h"
#include "router/text/tokenizer.h"

// Test inputs under tests/data; tests run in the source root. A file that is missing ends the test.
namespace baton::router {

std::string ReadTestFile(const std::string& path);

// tests/data/tokenizer/tokenizer.json.xz, unpacked.
std::string RealTokenizerJson();

// The tokenizer of DeepSeek-V4, loaded once per process.
const Tokenizer& RealTokenizer();

// A parsed file of tests/data/vectors, such as "chat/parse.json".
JsonValue LoadVectors(const std::string& name);

// A list of token ids.
std::vector<TokenId> IdsOf(const JsonValue& list);

}  // namespace baton::router
