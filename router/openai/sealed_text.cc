#include "router/openai/sealed_text.h"

#include <algorithm>
#include <climits>
#include <memory>
#include <openssl/evp.h>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/hash.h"
#include "common/ids.h"
#include "common/rng.h"

namespace baton::router {
namespace {

constexpr std::string_view kVersion = "bt1.";
constexpr size_t kNonceBytes = 12;
constexpr size_t kTagBytes = 16;
constexpr size_t kMaxTextBytes = INT_MAX / 2;  // lengths are int there

using Context = std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)>;

Context NewContext() {
  Context context(EVP_CIPHER_CTX_new(), &EVP_CIPHER_CTX_free);
  CHECK(context != nullptr);
  return context;
}

uint8_t* Bytes(std::string& text) { return reinterpret_cast<uint8_t*>(text.data()); }
const uint8_t* Bytes(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

std::string Base64(std::string_view bytes) {
  std::string out((bytes.size() + 2) / 3 * 4 + 1, '\0');  // and its zero byte
  const int size = EVP_EncodeBlock(Bytes(out), Bytes(bytes), static_cast<int>(bytes.size()));
  out.resize(static_cast<size_t>(size));
  return out;
}

// Nothing if it is no base64.
std::optional<std::string> FromBase64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0 || text.size() > kMaxTextBytes) return std::nullopt;
  const size_t end = text.find_last_not_of('=');
  const size_t padding = text.size() - std::min(end, text.size()) - 1;
  if (end == std::string_view::npos || padding > 2) return std::nullopt;
  std::string out(text.size() / 4 * 3, '\0');
  const int size = EVP_DecodeBlock(Bytes(out), Bytes(text), static_cast<int>(text.size()));
  if (size != static_cast<int>(out.size())) return std::nullopt;
  out.resize(out.size() - padding);
  return out;
}

std::string DrawNonce() {
  SystemRng rng;
  const auto drawn = rng.DrawBytes<TransferId>();  // 16 bytes of the system's entropy
  static_assert(sizeof(drawn.bytes) >= kNonceBytes);
  return std::string(drawn.bytes.begin(), drawn.bytes.begin() + kNonceBytes);
}

}  // namespace

TextSealer::TextSealer(std::string_view secret) {
  Sha256 hash;
  hash.Update("baton reasoning 1\n");
  hash.Update(secret.empty() ? DrawNonce() + DrawNonce() + DrawNonce() : std::string(secret));
  key_ = hash.Finish();
  const std::string_view key(reinterpret_cast<const char*>(key_.data()), key_.size());
  const Sha256Bytes id = Sha256Of(key);
  id_.assign(id.begin(), id.begin() + kIdBytes);
}

std::string TextSealer::Seal(std::string_view text) const {
  CHECK(text.size() <= kMaxTextBytes);
  const std::string nonce = DrawNonce();
  const Context context = NewContext();
  int size = 0, last = 0;
  CHECK(EVP_EncryptInit_ex(context.get(), EVP_aes_256_gcm(), nullptr, key_.data(), Bytes(nonce)) ==
        1);
  CHECK(EVP_EncryptUpdate(context.get(), nullptr, &size, Bytes(id_), kIdBytes) == 1);
  std::string sealed(text.size(), '\0'), tag(kTagBytes, '\0');
  CHECK(EVP_EncryptUpdate(context.get(), Bytes(sealed), &size, Bytes(text),
                          static_cast<int>(text.size())) == 1);
  CHECK(EVP_EncryptFinal_ex(context.get(), Bytes(sealed) + size, &last) == 1);
  CHECK(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_GCM_GET_TAG, kTagBytes, Bytes(tag)) == 1);
  return std::string(kVersion) + Base64(id_ + nonce + sealed + tag);
}

absl::StatusOr<std::optional<std::string>> TextSealer::Open(std::string_view blob) const {
  if (!blob.starts_with(kVersion)) return std::nullopt;
  const absl::Status changed = absl::InvalidArgumentError("was changed since it was sent");
  std::optional<std::string> bytes = FromBase64(blob.substr(kVersion.size()));
  if (!bytes || bytes->size() < kIdBytes + kNonceBytes + kTagBytes) return changed;
  const std::string_view all = *bytes;
  if (all.substr(0, kIdBytes) != id_) return std::nullopt;
  const std::string_view nonce = all.substr(kIdBytes, kNonceBytes);
  const std::string_view sealed =
      all.substr(kIdBytes + kNonceBytes, all.size() - kIdBytes - kNonceBytes - kTagBytes);
  std::string tag(all.substr(all.size() - kTagBytes));
  const Context context = NewContext();
  int size = 0, last = 0;
  CHECK(EVP_DecryptInit_ex(context.get(), EVP_aes_256_gcm(), nullptr, key_.data(), Bytes(nonce)) ==
        1);
  CHECK(EVP_DecryptUpdate(context.get(), nullptr, &size, Bytes(id_), kIdBytes) == 1);
  std::string text(sealed.size(), '\0');
  CHECK(EVP_DecryptUpdate(context.get(), Bytes(text), &size, Bytes(sealed),
                          static_cast<int>(sealed.size())) == 1);
  CHECK(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_GCM_SET_TAG, kTagBytes, Bytes(tag)) == 1);
  if (EVP_DecryptFinal_ex(context.get(), Bytes(text) + size, &last) != 1) return changed;
  return std::optional<std::string>(std::move(text));
}

}  // namespace baton::router
