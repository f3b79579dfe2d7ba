#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"

#include "common/clock.h"
#include "common/hash.h"
#include "common/mutex.h"

namespace baton::router {

// Marks a status of kResourceExhausted that a key's limit is the cause of.
inline constexpr char kKeyLimitPayload[] = "baton.key_limit";

// One entry of the key file. The key itself is forgotten once it is hashed.
struct ApiKeySpec {
  std::string name;                 // [A-Za-z0-9._-]{1,64}, not "none": a metric's label
  Sha256Bytes hash = {};            // of the key's bytes
  int64_t requests_per_minute = 0;  // 0: no limit
  int64_t tokens_per_minute = 0;    // of prompts and answers; 0: no limit
  bool is_admin = false;
};

// A key file's text: per line `NAME KEY [requests_per_minute=N] [tokens_per_minute=N] [admin]`,
// KEY in plain (8..256 visible ASCII characters) or as `sha256:<64 hex digits>`; '#' begins a
// comment line. kInvalidArgument names `origin`, the line and what is wrong, never the key.
absl::StatusOr<std::vector<ApiKeySpec>> ParseApiKeys(std::string_view text,
                                                     const std::string& origin);
// kNotFound: no such file; else as ParseApiKeys.
absl::StatusOr<std::vector<ApiKeySpec>> ReadApiKeys(const std::string& path);

// What one key has used, and its limits: two buckets that hold a minute's worth and fill evenly. A
// generation reserves the tokens that it may come to and gives back at its end what it did not use.
// The last one let in may take the bucket below zero, which is paid off with time. Any thread.
class KeyAccount {
 public:
  KeyAccount(ApiKeySpec spec, const Clock& clock);

  struct Use {
    uint64_t requests = 0, refusals = 0, tokens = 0;
  };
  struct Refusal {
    std::string message;  // names the key, the limit and its value
    absl::Duration retry_after;
  };

  // Counts a request against the limits. `is_generation`: the tokens of the past count too.
  std::optional<Refusal> Admit(bool is_generation);
  // Takes `tokens`, at most a minute's worth, out of the bucket if there is anything in it. Returns
  // how many were taken, for the answer to be charged to.
  std::variant<int64_t, Refusal> Reserve(int64_t tokens);
  // Tokens of a generation. Those beyond what is left of its reservation come from the bucket.
  void Charge(int64_t tokens, int64_t& reserved);
  void Release(int64_t reserved);

  const ApiKeySpec& spec() const { return spec_; }
  Use use() const;

 private:
  struct Bucket {
    double per_second = 0, most = 0, level = 0;
  };
  void Fill(absl::Time now) REQUIRES_LOCK(mutex_);
  Refusal Refuse(const char* what, const Bucket& bucket) REQUIRES_LOCK(mutex_);

  const ApiKeySpec spec_;
  const Clock& clock_;
  mutable Mutex mutex_;  // two connections' threads and the planner's may meet at one key
  absl::Time filled_ GUARDED_BY(mutex_);
  Bucket requests_ GUARDED_BY(mutex_);
  Bucket tokens_ GUARDED_BY(mutex_);
  Use use_ GUARDED_BY(mutex_);
};

// The keys that clients may present. Immutable but for the accounts; any thread.
class ApiKeys {
 public:
  // No keys: nobody is asked for one. `clock` outlives the accounts.
  ApiKeys(std::vector<ApiKeySpec> specs, const Clock& clock);

  bool empty() const { return accounts_.empty(); }
  // The account of a key, or null. Takes the same time for every key of one length.
  std::shared_ptr<KeyAccount> Find(std::string_view key) const;
  const std::vector<std::shared_ptr<KeyAccount>>& accounts() const { return accounts_; }

 private:
  std::vector<std::shared_ptr<KeyAccount>> accounts_;
};

}  // namespace baton::router
