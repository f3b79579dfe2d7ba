#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/check.h"
#include "router/text/bpe.h"

namespace baton::router {
namespace {

// Bytes as a vocabulary and a text: two a merge of tokens made before, up to a zero, then the text.
// Searching for its tokens gives what merging gives.
int EncodeOne(std::string_view data) {
  std::vector<std::string> tokens;
  std::map<std::string, TokenId> ids;
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back(std::string(1, static_cast<char>(byte)));
    ids[tokens.back()] = byte;
  }
  const auto draw = [&](char c) {  // a letter or one of the newest tokens
    const auto byte = static_cast<uint8_t>(c);
    const size_t back = byte % 16;
    const size_t newest = tokens.size() - 256;
    return back < newest ? static_cast<TokenId>(tokens.size() - 1 - back) : 'a' + byte % 3;
  };
  std::vector<BpeModel::Merge> merges;
  size_t at = 0;
  for (; at + 1 < data.size() && data[at] != 0 && merges.size() < 64; at += 2) {
    const TokenId left = draw(data[at]), right = draw(data[at + 1]);
    const std::string bytes =
        tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)];
    if (bytes.size() > 64) continue;
    const auto [place, is_new] = ids.emplace(bytes, static_cast<TokenId>(tokens.size()));
    if (is_new) tokens.push_back(bytes);
    merges.push_back({.left = left, .right = right, .product = place->second});
  }
  const auto model = BpeModel::Create(tokens, merges);
  if (!model.ok()) return 0;  // a pair is listed twice
  std::string text;
  for (const char c : data.substr(std::min(at, data.size())))
    text += static_cast<char>('a' + static_cast<uint8_t>(c) % 4);
  std::vector<TokenId> found, merged;
  model->Encode(text, found);
  model->EncodeByMerging(text, merged);
  CHECK(found == merged);
  return 0;
}

}  // namespace
}  // namespace baton::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return baton::router::EncodeOne({reinterpret_cast<const char*>(data), size});
}
