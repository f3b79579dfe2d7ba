#include "router/openai/grammar_checker.h"

#include <utility>

namespace baton::router {

GrammarChecker::GrammarChecker(Check check, const Limits& limits)
    : check_(std::move(check)), limits_(limits), pool_(limits.threads, limits.max_waiting) {}

GrammarChecker::~GrammarChecker() { Stop(); }

void GrammarChecker::Stop() {
  pool_.Stop();
  std::map<Sha256Bytes, std::vector<Done>> dropped;
  MutexLock lock(mutex_);
  dropped.swap(waiting_);
  num_waiting_ = 0;
}

size_t GrammarChecker::waiting() const {
  MutexLock lock(mutex_);
  return num_waiting_;
}

const absl::Status* GrammarChecker::FindLocked(const Sha256Bytes& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  verdicts_.splice(verdicts_.begin(), verdicts_, found->second);
  ++hits_;
  return &verdicts_.front().status;
}

std::optional<absl::Status> GrammarChecker::Find(std::string_view grammar) {
  const Sha256Bytes key = Sha256Of(grammar);
  MutexLock lock(mutex_);
  const absl::Status* known = FindLocked(key);
  return known == nullptr ? std::nullopt : std::optional(*known);
}

bool GrammarChecker::Ask(std::string grammar, Done done) {
  const Sha256Bytes key = Sha256Of(grammar);
  std::optional<absl::Status> verdict;
  {
    MutexLock lock(mutex_);
    if (const absl::Status* known = FindLocked(key)) {
      verdict = *known;
    } else {
      if (num_waiting_ == limits_.max_waiting) return false;
      const auto [same, is_first] = waiting_.try_emplace(key);
      if (is_first && !pool_.TryRun([this, key, text = std::move(grammar)] { Run(key, text); })) {
        waiting_.erase(same);
        return false;
      }
      same->second.push_back(std::move(done));
      ++num_waiting_;
      ++misses_;
    }
  }
  if (verdict) done(*verdict);
  return true;
}

void GrammarChecker::KeepLocked(const Sha256Bytes& key, const absl::Status& verdict) {
  verdicts_.push_front({.key = key, .status = verdict});
  by_key_[key] = verdicts_.begin();
  if (verdicts_.size() > limits_.max_verdicts) {
    by_key_.erase(verdicts_.back().key);
    verdicts_.pop_back();
  }
}

void GrammarChecker::Run(const Sha256Bytes& key, const std::string& grammar) {
  const absl::Status verdict = check_(grammar);
  std::vector<Done> asked;
  {
    MutexLock lock(mutex_);
    if (verdict.ok() || absl::IsInvalidArgument(verdict)) KeepLocked(key, verdict);
    asked = std::move(waiting_.at(key));
    waiting_.erase(key);
    num_waiting_ -= asked.size();
  }
  for (const Done& done : asked) done(verdict);
}

}  // namespace baton::router
