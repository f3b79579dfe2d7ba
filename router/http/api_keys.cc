#include "router/http/api_keys.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <openssl/crypto.h>
#include <set>
#include <sstream>

#include "absl/strings/str_format.h"

#include "common/status.h"

namespace baton::router {
namespace {

constexpr size_t kMaxKeys = 1024;  // each is a label of three metrics
constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMinKeyBytes = 8;
constexpr size_t kMaxKeyBytes = 256;
constexpr int64_t kMostPerMinute = int64_t{1} << 40;
constexpr std::string_view kHashPrefix = "sha256:";

bool IsName(std::string_view text) {
  const auto is_fine = [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return !text.empty() && text.size() <= kMaxNameBytes && text != "none" &&
         std::all_of(text.begin(), text.end(), is_fine);
}

std::optional<Sha256Bytes> ParseHash(std::string_view hex) {
  Sha256Bytes hash = {};
  if (hex.size() != 2 * hash.size()) return std::nullopt;
  for (size_t i = 0; i < hash.size(); ++i) {
    const char* from = hex.data() + 2 * i;
    const auto [end, error] = std::from_chars(from, from + 2, hash[i], 16);
    if (error != std::errc() || end != from + 2) return std::nullopt;
  }
  return hash;
}

absl::StatusOr<Sha256Bytes> HashOf(const std::string& key) {
  if (key.rfind(kHashPrefix, 0) == 0) {
    const auto hash = ParseHash(std::string_view(key).substr(kHashPrefix.size()));
    if (!hash) return absl::InvalidArgumentError("sha256: wants 64 hexadecimal digits after it");
    return *hash;
  }
  const bool is_visible =
      std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < 0x7f; });
  if (!is_visible || key.size() < kMinKeyBytes || key.size() > kMaxKeyBytes)
    return absl::InvalidArgumentError(
        absl::StrFormat("the key has %d bytes, want %d..%d visible ASCII characters", key.size(),
                        kMinKeyBytes, kMaxKeyBytes));
  return Sha256Of(key);
}

absl::Status ReadOption(const std::string& word, ApiKeySpec& spec) {
  if (word == "admin") {
    spec.is_admin = true;
    return absl::OkStatus();
  }
  const size_t equals = std::min(word.find('='), word.size());
  const std::string name = word.substr(0, equals);
  int64_t* const limit = name == "requests_per_minute" ? &spec.requests_per_minute
                         : name == "tokens_per_minute" ? &spec.tokens_per_minute
                                                       : nullptr;
  if (limit == nullptr)
    return absl::InvalidArgumentError(
        "a word behind the key is none of requests_per_minute=N, tokens_per_minute=N, admin");
  const char* const end = word.data() + word.size();
  const char* const from = std::min(word.data() + equals + 1, end);
  const auto [stop, error] = std::from_chars(from, end, *limit);
  if (error != std::errc() || stop != end || *limit < 1 || *limit > kMostPerMinute)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s wants a number in 1..%d", name, kMostPerMinute));
  return absl::OkStatus();
}

absl::StatusOr<ApiKeySpec> ParseLine(const std::string& line) {
  std::istringstream words(line);
  ApiKeySpec spec;
  std::string key, word;
  words >> spec.name >> key;
  if (!IsName(spec.name))
    return absl::InvalidArgumentError(absl::StrFormat(
        "a name has 1..%d characters of [A-Za-z0-9._-] and is not 'none'", kMaxNameBytes));
  if (spec.name.starts_with("sk-"))
    return absl::InvalidArgumentError("the first word begins with sk-: the name comes first");
  if (key.empty()) return absl::InvalidArgumentError("the second word, the key, is missing");
  ASSIGN_OR_RETURN(spec.hash, HashOf(key));
  while (words >> word) RETURN_IF_ERROR(ReadOption(word, spec));
  return spec;
}

}  // namespace

absl::StatusOr<std::vector<ApiKeySpec>> ParseApiKeys(std::string_view text,
                                                     const std::string& origin) {
  std::istringstream lines{std::string(text)};
  std::vector<ApiKeySpec> specs;
  std::set<std::string> names;
  std::set<Sha256Bytes> hashes;
  int number = 0;
  const auto error = [&](std::string_view what) {
    return absl::InvalidArgumentError(absl::StrFormat("%s:%d: %s", origin, number, what));
  };
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos || line[first] == '#') continue;
    absl::StatusOr<ApiKeySpec> spec = ParseLine(line);
    if (!spec.ok()) return error(std::string(spec.status().message()));
    if (!names.insert(spec->name).second)
      return error(absl::StrFormat("the name %s is used twice", spec->name));
    if (!hashes.insert(spec->hash).second)
      return error(absl::StrFormat("the key of %s is used twice", spec->name));
    specs.push_back(*std::move(spec));
    if (specs.size() > kMaxKeys)
      return error(absl::StrFormat("more than %d keys, the limit", kMaxKeys));
  }
  if (specs.empty()) return error("no key: without any, leave http.api_keys_file empty");
  return specs;
}

absl::StatusOr<std::vector<ApiKeySpec>> ReadApiKeys(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return absl::NotFoundError(absl::StrFormat("%s: cannot be opened (http.api_keys_file)", path));
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return ParseApiKeys(text, path);
}

KeyAccount::KeyAccount(ApiKeySpec spec, const Clock& clock)
    : spec_(std::move(spec)), clock_(clock), filled_(clock.Now()) {
  const auto bucket = [](int64_t per_minute) {
    const auto most = static_cast<double>(per_minute);
    return Bucket{.per_second = most / 60, .most = most, .level = most};
  };
  requests_ = bucket(spec_.requests_per_minute);
  tokens_ = bucket(spec_.tokens_per_minute);
}

void KeyAccount::Fill(absl::Time now) {
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(now - filled_));
  filled_ = std::max(filled_, now);
  for (Bucket* bucket : {&requests_, &tokens_})
    bucket->level = std::min(bucket->most, bucket->level + seconds * bucket->per_second);
}

KeyAccount::Refusal KeyAccount::Refuse(const char* what, const Bucket& bucket) {
  ++use_.refusals;
  return {.message = absl::StrFormat("the key %s may use %.0f %s per minute", spec_.name,
                                     bucket.most, what),
          .retry_after = absl::Seconds((1 - bucket.level) / bucket.per_second)};
}

std::optional<KeyAccount::Refusal> KeyAccount::Admit(bool is_generation) {
  MutexLock lock(mutex_);
  Fill(clock_.Now());
  if (requests_.most > 0 && requests_.level < 1) return Refuse("requests", requests_);
  if (is_generation && tokens_.most > 0 && tokens_.level < 1) return Refuse("tokens", tokens_);
  requests_.level -= 1;
  ++use_.requests;
  return std::nullopt;
}

std::variant<int64_t, KeyAccount::Refusal> KeyAccount::Reserve(int64_t tokens) {
  MutexLock lock(mutex_);
  Fill(clock_.Now());
  if (tokens_.most <= 0) return int64_t{0};
  if (tokens_.level < 1) return Refuse("tokens", tokens_);
  const int64_t taken = std::min(tokens, spec_.tokens_per_minute);
  tokens_.level -= static_cast<double>(taken);
  return taken;
}

void KeyAccount::Charge(int64_t tokens, int64_t& reserved) {
  MutexLock lock(mutex_);
  Fill(clock_.Now());
  const int64_t covered = std::min(tokens, reserved);
  reserved -= covered;
  use_.tokens += static_cast<uint64_t>(tokens);
  tokens_.level -= static_cast<double>(tokens - covered);
}

void KeyAccount::Release(int64_t reserved) {
  MutexLock lock(mutex_);
  Fill(clock_.Now());
  tokens_.level = std::min(tokens_.most, tokens_.level + static_cast<double>(reserved));
}

KeyAccount::Use KeyAccount::use() const {
  MutexLock lock(mutex_);
  return use_;
}

ApiKeys::ApiKeys(std::vector<ApiKeySpec> specs, const Clock& clock) {
  for (ApiKeySpec& spec : specs)
    accounts_.push_back(std::make_shared<KeyAccount>(std::move(spec), clock));
}

std::shared_ptr<KeyAccount> ApiKeys::Find(std::string_view key) const {
  const Sha256Bytes hash = Sha256Of(key);
  std::shared_ptr<KeyAccount> found;
  for (const auto& account : accounts_) {
    const Sha256Bytes& own = account->spec().hash;
    if (CRYPTO_memcmp(own.data(), hash.data(), hash.size()) == 0) found = account;
  }
  return found;
}

}  // namespace baton::router
