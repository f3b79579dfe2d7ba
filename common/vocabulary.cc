#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

#include "common/byte_alphabet.h"
#include "common/grammar.h"
#include "common/status.h"
#include "third_party/llg_c/llg_c.h"

namespace baton {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxVocab = 1 << 22;
constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
constexpr char kSpecialMark = '\xff';  // llguidance: what follows is no text
constexpr size_t kMaxErrorBytes = 1024;

absl::Status Error(std::string_view what) {
  return absl::InvalidArgumentError(absl::StrFormat("tokenizer.json: %s", what));
}

// The ids and names of a tokenizer.json, checked.
struct Tokens {
  std::vector<std::string> bytes;  // by id, as llguidance wants them
  std::map<std::string, int32_t, std::less<>> specials;

  absl::Status Set(const Json& id, std::string_view name, std::string value) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= kMaxVocab)
      return Error(absl::StrFormat("id of \"%s\" is not in 0..%d", name, kMaxVocab - 1));
    const auto index = id.get<size_t>();
    if (bytes.size() <= index) bytes.resize(index + 1);
    bytes[index] = std::move(value);
    return absl::OkStatus();
  }

  absl::Status ReadVocab(const Json& root) {
    const auto model = root.find("model");
    if (model == root.end() || !model->is_object()) return Error("model is missing");
    const auto vocab = model->find("vocab");
    if (vocab == model->end() || !vocab->is_object()) return Error("model.vocab is missing");
    for (const auto& [name, id] : vocab->items()) {
      // bos, eos and pad stand here too, by names that are no bytes; added_tokens has them.
      RETURN_IF_ERROR(Set(id, name, BytesOfTokenName(name).value_or("")));
    }
    return absl::OkStatus();
  }

  absl::Status ReadAdded(const Json& root) {
    const auto list = root.find("added_tokens");
    if (list == root.end() || !list->is_array()) return Error("added_tokens is missing");
    for (const Json& entry : *list) {
      const bool is_whole = entry.is_object() && entry.contains("id") &&
                            entry.contains("content") && entry["content"].is_string();
      if (!is_whole) return Error("an entry of added_tokens has no id or no content");
      const std::string name = entry["content"];
      RETURN_IF_ERROR(Set(entry["id"], name, kSpecialMark + name));
      specials[name] = entry["id"];
    }
    return absl::OkStatus();
  }
};

}  // namespace

void Vocabulary::Free::operator()(LlgTokenizer* tokenizer) const {
  llg_c_free_tokenizer(tokenizer);
}

Vocabulary::Vocabulary(Vocabulary&&) noexcept = default;
Vocabulary& Vocabulary::operator=(Vocabulary&&) noexcept = default;
Vocabulary::~Vocabulary() = default;

absl::StatusOr<Vocabulary> Vocabulary::FromTokenizerJson(std::string_view json, int vocab_size,
                                                         size_t max_matcher_bytes) {
  const Json root = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded() || !root.is_object()) return Error("is not a JSON object");
  Tokens tokens;
  RETURN_IF_ERROR(tokens.ReadVocab(root));
  RETURN_IF_ERROR(tokens.ReadAdded(root));
  const auto eos = tokens.specials.find(kEos);
  if (eos == tokens.specials.end()) return Error(absl::StrFormat("has no added token %s", kEos));
  if (vocab_size != 0) {
    if (tokens.bytes.size() > static_cast<size_t>(vocab_size))
      return Error(absl::StrFormat("has ids up to %d, the model's vocabulary is %d",
                                   tokens.bytes.size() - 1, vocab_size));
    tokens.bytes.resize(static_cast<size_t>(vocab_size));
  }

  std::vector<uint32_t> lens;
  std::string bytes;
  for (const std::string& token : tokens.bytes) {
    lens.push_back(static_cast<uint32_t>(token.size()));
    bytes += token;
  }
  char error[kMaxErrorBytes] = {};
  Vocabulary vocabulary;
  vocabulary.size_ = static_cast<int>(lens.size());
  vocabulary.eos_ = eos->second;
  vocabulary.tokenizer_.reset(llg_c_new_tokenizer(static_cast<uint32_t>(lens.size()), lens.data(),
                                                  reinterpret_cast<const uint8_t*>(bytes.data()),
                                                  static_cast<uint32_t>(vocabulary.eos_),
                                                  max_matcher_bytes, error, sizeof(error)));
  if (vocabulary.tokenizer_ == nullptr) return Error(error);
  vocabulary.specials_ = std::move(tokens.specials);
  return vocabulary;
}

std::optional<int32_t> Vocabulary::FindSpecial(std::string_view text) const {
  const auto found = specials_.find(text);
  if (found == specials_.end()) return std::nullopt;
  return found->second;
}

}  // namespace baton
