#include <array>
#include <fstream>
#include <iterator>
#include <unordered_map>

#include "absl/strings/str_format.h"

#include "common/byte_alphabet.h"
#include "common/hash.h"
#include "common/ids.h"
#include "common/status.h"
#include "router/text/json_value.h"
#include "router/text/tokenizer.h"

namespace baton::router {
namespace {

// The tokenizer.json of DeepSeek-V4-Pro, V4-Flash and V4-Flash-0731 (protocol.md 1.1).
constexpr std::string_view kKnownSha256 =
    "8f9f37ca37fdc4f5fd36d5cf4d3b0e8392edb4e894fd10cc0d70b4957c8633cf";

constexpr int64_t kMaxVocab = 1 << 22;  // ids; a file with more is broken

// The patterns that pretokenizer.cc implements (protocol.md 1.3).
constexpr std::array<std::string_view, 3> kPatterns = {
    "\\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./"
    ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
};

bool IsFalseOrNull(const JsonValue* value) {
  return value == nullptr || value->is_null() || (value->is_bool() && !value->boolean());
}

bool IsEmptyOrNull(const JsonValue* value) {
  return value == nullptr || value->is_null() || (value->is_string() && value->text().empty());
}

}  // namespace

// Fills a Tokenizer from the parsed file; every error names the file and the member.
class TokenizerLoader {
 public:
  TokenizerLoader(const JsonValue& root, const std::string& name) : root_(root), name_(name) {}

  absl::StatusOr<Tokenizer> Load() {
    RETURN_IF_ERROR(CheckPipeline());
    ASSIGN_OR_RETURN(const JsonValue* model,
                     Member(root_, "model", "model", JsonValue::Kind::kObject));
    RETURN_IF_ERROR(CheckModel(*model));
    RETURN_IF_ERROR(ReadVocab(*model));
    ASSIGN_OR_RETURN(const std::vector<BpeModel::Merge> merges, ReadMerges(*model));
    absl::StatusOr<BpeModel> bpe = BpeModel::Create(tokenizer_.tokens_, merges);
    if (!bpe.ok()) return Error("model", std::string(bpe.status().message()));
    tokenizer_.bpe_ = *std::move(bpe);
    RETURN_IF_ERROR(ReadAddedTokens());
    return std::move(tokenizer_);
  }

 private:
  absl::Status Error(std::string_view member, std::string_view what) const {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s: %s", name_, member, what));
  }

  absl::StatusOr<const JsonValue*> Member(const JsonValue& in, std::string_view key,
                                          std::string_view path, JsonValue::Kind kind) const {
    const JsonValue* found = in.Find(key);
    if (found == nullptr) return Error(path, "missing");
    if (found->kind() != kind) {
      return Error(path, absl::StrFormat("unexpected type %s", found->KindName()));
    }
    return found;
  }

  // Normalizer: identity. Pre-tokenizer: the three splits, then ByteLevel without a prefix space.
  absl::Status CheckPipeline() const {
    if (!root_.is_object()) return Error("(root)", "is not an object");
    if (const JsonValue* normalizer = root_.FindNonNull("normalizer")) {
      const JsonValue* list = normalizer->Find("normalizers");
      if (list == nullptr || !list->is_array() || !list->items().empty()) {
        return Error("normalizer", "only null or an empty sequence is supported");
      }
    }
    ASSIGN_OR_RETURN(const JsonValue* pre,
                     Member(root_, "pre_tokenizer", "pre_tokenizer", JsonValue::Kind::kObject));
    ASSIGN_OR_RETURN(
        const JsonValue* steps,
        Member(*pre, "pretokenizers", "pre_tokenizer.pretokenizers", JsonValue::Kind::kArray));
    if (steps->items().size() != kPatterns.size() + 1) {
      return Error(
          "pre_tokenizer.pretokenizers",
          absl::StrFormat("has %d steps, not %d", steps->items().size(), kPatterns.size() + 1));
    }
    for (size_t i = 0; i < kPatterns.size(); ++i) RETURN_IF_ERROR(CheckSplit(steps->items()[i], i));
    const JsonValue& last = steps->items().back();
    const JsonValue* type = last.Find("type");
    const bool is_byte_level = type != nullptr && type->text() == "ByteLevel";
    if (!is_byte_level || !IsFalseOrNull(last.Find("add_prefix_space")) ||
        last.Find("use_regex") == nullptr || !IsFalseOrNull(last.Find("use_regex"))) {
      return Error("pre_tokenizer.pretokenizers[3]",
                   "is not ByteLevel with add_prefix_space and use_regex false");
    }
    return absl::OkStatus();
  }

  absl::Status CheckSplit(const JsonValue& step, size_t index) const {
    const std::string path = absl::StrFormat("pre_tokenizer.pretokenizers[%d]", index);
    const JsonValue* pattern = step.Find("pattern");
    const JsonValue* regex = pattern == nullptr ? nullptr : pattern->Find("Regex");
    if (regex == nullptr || !regex->is_string() || regex->text() != kPatterns[index]) {
      return Error(path + ".pattern.Regex", "is not the pattern that this tokenizer implements");
    }
    const JsonValue* behavior = step.Find("behavior");
    if (behavior == nullptr || behavior->text() != "Isolated" ||
        !IsFalseOrNull(step.Find("invert"))) {
      return Error(path + ".behavior", "is not Isolated without invert");
    }
    return absl::OkStatus();
  }

  absl::Status CheckModel(const JsonValue& model) const {
    const JsonValue* type = model.Find("type");
    if (type == nullptr || type->text() != "BPE") return Error("model.type", "is not BPE");
    for (const std::string_view key : {"byte_fallback", "ignore_merges", "dropout", "fuse_unk"}) {
      if (!IsFalseOrNull(model.Find(key))) {
        return Error(absl::StrFormat("model.%s", key), "is set; only false or null is supported");
      }
    }
    for (const std::string_view key :
         {"unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!IsEmptyOrNull(model.Find(key))) {
        return Error(absl::StrFormat("model.%s", key), "is set; only null is supported");
      }
    }
    return absl::OkStatus();
  }

  // Makes room for `id`; false when it is out of range.
  bool Reserve(const JsonValue& id) {
    const std::optional<int64_t> value = id.AsInt64();
    if (!value || *value < 0 || *value >= kMaxVocab) return false;
    const size_t needed = static_cast<size_t>(*value) + 1;
    if (tokenizer_.tokens_.size() < needed) {
      tokenizer_.tokens_.resize(needed);
      tokenizer_.is_special_.resize(needed);
    }
    return true;
  }

  absl::Status ReadVocab(const JsonValue& model) {
    ASSIGN_OR_RETURN(const JsonValue* vocab,
                     Member(model, "vocab", "model.vocab", JsonValue::Kind::kObject));
    for (const auto& [name, id] : vocab->members()) {
      if (!Reserve(id)) {
        return Error("model.vocab",
                     absl::StrFormat("id of \"%s\" is not in [0, %d)", name, kMaxVocab));
      }
      const TokenId token = static_cast<TokenId>(*id.AsInt64());
      ids_by_name_[name] = token;
      std::string& bytes = tokenizer_.tokens_[static_cast<size_t>(token)];
      if (!bytes.empty())
        return Error("model.vocab", absl::StrFormat("id %d is given twice", token));
      // bos, eos and pad stand in the vocabulary as literals, whose characters stand for no byte.
      bytes = BytesOfTokenName(name).value_or(name);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<BpeModel::Merge>> ReadMerges(const JsonValue& model) const {
    ASSIGN_OR_RETURN(const JsonValue* list,
                     Member(model, "merges", "model.merges", JsonValue::Kind::kArray));
    std::vector<BpeModel::Merge> merges;
    merges.reserve(list->items().size());
    for (size_t i = 0; i < list->items().size(); ++i) {
      const JsonValue& entry = list->items()[i];
      std::string left = entry.text(), right;
      const size_t space = left.find(' ');
      if (entry.is_array() && entry.items().size() == 2) {
        left = entry.items()[0].text();
        right = entry.items()[1].text();
      } else if (entry.is_string() && space != std::string::npos) {
        right = left.substr(space + 1);
        left.resize(space);
      } else {
        return Error(absl::StrFormat("model.merges[%d]", i), "is not a pair of tokens");
      }
      const auto l = ids_by_name_.find(left), r = ids_by_name_.find(right);
      const auto product = ids_by_name_.find(left + right);
      if (l == ids_by_name_.end() || r == ids_by_name_.end() || product == ids_by_name_.end()) {
        return Error(absl::StrFormat("model.merges[%d]", i), "names a token outside model.vocab");
      }
      merges.push_back({.left = l->second, .right = r->second, .product = product->second});
    }
    return merges;
  }

  absl::Status ReadAddedTokens() {
    ASSIGN_OR_RETURN(const JsonValue* list,
                     Member(root_, "added_tokens", "added_tokens", JsonValue::Kind::kArray));
    for (size_t i = 0; i < list->items().size(); ++i) {
      const JsonValue& entry = list->items()[i];
      const std::string path = absl::StrFormat("added_tokens[%d]", i);
      const JsonValue* id = entry.Find("id");
      const JsonValue* content = entry.Find("content");
      if (content == nullptr || !content->is_string() || content->text().empty()) {
        return Error(path + ".content", "is not a text");
      }
      if (id == nullptr || !Reserve(*id)) {
        return Error(path + ".id", absl::StrFormat("is not an integer in [0, %d)", kMaxVocab));
      }
      for (const std::string_view key : {"single_word", "lstrip", "rstrip"}) {
        if (!IsFalseOrNull(entry.Find(key))) {
          return Error(absl::StrFormat("%s.%s", path, key), "is set; only false is supported");
        }
      }
      const TokenId token = static_cast<TokenId>(*id->AsInt64());
      const std::string& text = content->text();
      std::string& bytes = tokenizer_.tokens_[static_cast<size_t>(token)];
      if (!bytes.empty() && bytes != text) {
        return Error(path + ".id", absl::StrFormat("%d is another token's", token));
      }
      bytes = text;
      tokenizer_.is_special_[static_cast<size_t>(token)] = !IsFalseOrNull(entry.Find("special"));
      if (!tokenizer_.added_ids_.emplace(text, token).second) {
        return Error(path + ".content", absl::StrFormat("\"%s\" is given twice", text));
      }
      tokenizer_.added_.Add(text, token, !IsFalseOrNull(entry.Find("normalized")));
    }
    return absl::OkStatus();
  }

  const JsonValue& root_;
  const std::string& name_;
  Tokenizer tokenizer_;
  std::unordered_map<std::string, TokenId> ids_by_name_;
};

absl::StatusOr<std::string> Tokenizer::ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrFormat("%s: cannot be opened", path));
  std::string json((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) return absl::UnavailableError(absl::StrFormat("%s: cannot be read", path));
  return json;
}

absl::StatusOr<Tokenizer> Tokenizer::Load(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string json, ReadFile(path));
  return Parse(json, path);
}

absl::StatusOr<Tokenizer> Tokenizer::Parse(std::string_view json, const std::string& name) {
  const absl::StatusOr<JsonValue> root = JsonValue::ParseDocument(json);
  if (!root.ok()) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s", name, root.status().message()));
  }
  ASSIGN_OR_RETURN(Tokenizer tokenizer, TokenizerLoader(*root, name).Load());
  const Sha256Bytes hash = Sha256Of(json);
  const std::string hex = ToHex(hash.data(), hash.size());
  if (hex != kKnownSha256) {
    tokenizer.warning_ =
        absl::StrFormat("%s: sha256 %s is not DeepSeek-V4's %s", name, hex, kKnownSha256);
  }
  return tokenizer;
}

}  // namespace baton::router
