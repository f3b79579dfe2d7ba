#include "common/hash.h"

#include <openssl/evp.h>

#include "common/check.h"

namespace baton {

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  CHECK(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1);
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(const void* data, size_t size) {
  CHECK(EVP_DigestUpdate(state_->context, data, size) == 1);
}

Sha256Bytes Sha256::Finish() {
  Sha256Bytes out;
  unsigned int size = 0;
  CHECK(EVP_DigestFinal_ex(state_->context, out.data(), &size) == 1 && size == out.size());
  return out;
}

Sha256Bytes Sha256Of(std::string_view text) {
  Sha256 hash;
  hash.Update(text);
  return hash.Finish();
}

}  // namespace baton
