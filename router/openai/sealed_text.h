#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace baton::router {

// Text that goes through a client's hands and comes back as it was, and that the client cannot
// read: AES-256-GCM under a key made of a secret. A blob is "bt1." and base64 of the key's id (8
// bytes), the nonce (12), the ciphertext and the tag (16). Immutable; any thread.
class TextSealer {
 public:
  // An empty secret: a key that no other process has, nor this program after a restart.
  explicit TextSealer(std::string_view secret);

  std::string Seal(std::string_view text) const;
  // The text, or nothing where another key or another program sealed it. kInvalidArgument: it was
  // changed since.
  absl::StatusOr<std::optional<std::string>> Open(std::string_view blob) const;

 private:
  static constexpr size_t kIdBytes = 8;
  std::array<uint8_t, 32> key_;
  std::string id_;  // kIdBytes
};

}  // namespace baton::router
