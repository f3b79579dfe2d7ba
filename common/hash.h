#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace baton {

using Sha256Bytes = std::array<uint8_t, 32>;

// Incremental SHA-256 (libcrypto's). One thread per instance.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void Update(const void* data, size_t size);
  void Update(std::string_view text) { Update(text.data(), text.size()); }
  Sha256Bytes Finish();  // once; the object is spent afterwards

 private:
  struct State;
  std::unique_ptr<State> state_;
};

Sha256Bytes Sha256Of(std::string_view text);

// The first bytes of a SHA-256 as an id type of common/ids.h.
template <typename Id>
Id PrefixOf(const Sha256Bytes& hash) {
  Id id;
  for (size_t i = 0; i < id.bytes.size(); ++i) id.bytes[i] = hash[i];
  return id;
}

}  // namespace baton
