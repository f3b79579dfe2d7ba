#include "router/text/test_data.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <lzma.h>
#include <memory>

namespace baton::router {
namespace {

constexpr const char* kTokenizerPath = "tests/data/tokenizer/tokenizer.json.xz";
constexpr size_t kMaxUnpacked = 16u << 20;
constexpr uint64_t kMaxMemory = 256u << 20;  // of the unpacker

[[noreturn]] void Fail(const std::string& path, const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", path.c_str(), what.c_str());
  std::abort();
}

}  // namespace

std::string ReadTestFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Fail(path, "cannot be opened; run tests in the source root");
  return std::string((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
}

std::string RealTokenizerJson() {
  const std::string packed = ReadTestFile(kTokenizerPath);
  std::string json(kMaxUnpacked, '\0');
  uint64_t memory_limit = kMaxMemory;
  size_t in = 0, out = 0;
  const lzma_ret result = lzma_stream_buffer_decode(
      &memory_limit, 0, nullptr, reinterpret_cast<const uint8_t*>(packed.data()), &in,
      packed.size(), reinterpret_cast<uint8_t*>(json.data()), &out, json.size());
  if (result != LZMA_OK) Fail(kTokenizerPath, "xz error " + std::to_string(result));
  json.resize(out);
  return json;
}

const Tokenizer& RealTokenizer() {
  static const std::unique_ptr<const Tokenizer> tokenizer = [] {
    absl::StatusOr<Tokenizer> loaded = Tokenizer::Parse(RealTokenizerJson(), kTokenizerPath);
    if (!loaded.ok()) Fail(kTokenizerPath, loaded.status().ToString());
    return std::make_unique<const Tokenizer>(*std::move(loaded));
  }();
  return *tokenizer;
}

JsonValue LoadVectors(const std::string& name) {
  const std::string path = "tests/data/vectors/" + name;
  absl::StatusOr<JsonValue> parsed = JsonValue::Parse(ReadTestFile(path));
  if (!parsed.ok()) Fail(path, parsed.status().ToString());
  return *std::move(parsed);
}

std::vector<TokenId> IdsOf(const JsonValue& list) {
  std::vector<TokenId> ids;
  for (const JsonValue& item : list.items())
    ids.push_back(static_cast<TokenId>(item.AsInt64().value()));
  return ids;
}

}  // namespace baton::router
