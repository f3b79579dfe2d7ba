#include "router/plan/admission.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace baton::router {
namespace {

// Its rules as values: each prompt of a batch has a copy of them.
uint64_t SpecBytes(const GenerateRequest& spec) {
  uint64_t bytes = sizeof(Request) + spec.request_id.size() + spec.salt.size();
  bytes += spec.sampling.logit_bias.size() * sizeof(spec.sampling.logit_bias[0]);
  bytes += spec.sampling.allowed_tokens.size() * sizeof(int32_t);
  for (const std::vector<int32_t>& word : spec.sampling.bad_words)
    bytes += sizeof(std::vector<int32_t>) + word.size() * sizeof(int32_t);
  bytes += spec.masks.grammar.size() + spec.masks.forced_prefix.size() * sizeof(int32_t);
  return bytes + spec.finish.stop_tokens.size() * sizeof(int32_t);
}

// What a live request keeps: its rules, the prompt, and what it may emit per choice; the latter is
// bounded here to 4,096 so that a generous max_tokens does not count as memory.
uint64_t BytesOf(const Request& request) {
  const int64_t emitted = std::clamp<int64_t>(request.spec.finish.max_tokens, 0, 4'096);
  const uint64_t per_choice = static_cast<uint64_t>(emitted) * sizeof(int32_t);
  return SpecBytes(request.spec) + uint64_t{request.prompt_tokens()} * sizeof(int32_t) +
         per_choice * request.choices.size();
}

// What the report on a prompt's own tokens takes until it is answered, as records and as JSON text
// (a copy of it in the making): the records once, the text as often as the answer shows it.
uint64_t ReportBytes(const Request& request) {
  constexpr uint64_t kRecordBytes = 8, kTextBytes = 2 * 80;
  if (!request.spec.prompt_logprobs) return 0;
  const uint64_t entries = uint64_t{*request.spec.prompt_logprobs} + 2;  // own value, record
  const auto copies = static_cast<uint64_t>(std::max(request.spec.report_copies, 1));
  return uint64_t{request.prompt_tokens()} * entries * (kRecordBytes + kTextBytes * copies);
}

}  // namespace

bool Admission::Order::operator()(const Request* a, const Request* b) const {
  return std::tuple(!a->has_token, a->spec.priority, a->Deadline(), a->queue_order) <
         std::tuple(!b->has_token, b->spec.priority, b->Deadline(), b->queue_order);
}

absl::Status Admission::Admit(Request& request) {
  if (queue_.size() >= config_.max_queued_requests)
    return absl::ResourceExhaustedError(absl::StrFormat(
        "queue is full: %d requests wait, at most %d", queue_.size(), config_.max_queued_requests));
  const uint64_t tokens = request.prompt_tokens();
  if (!queue_.empty() && queued_tokens_ + tokens > config_.max_queued_tokens)
    return absl::ResourceExhaustedError(
        absl::StrFormat("queue is full: %d prompt tokens wait, %d more exceed %d", queued_tokens_,
                        tokens, config_.max_queued_tokens));
  const uint64_t report_bytes = ReportBytes(request);
  if (report_bytes > config_.max_live_bytes)
    return absl::InvalidArgumentError(
        absl::StrFormat("logprobs of %d prompt tokens take up to %d bytes, the limit is %d", tokens,
                        report_bytes, config_.max_live_bytes));
  const uint64_t bytes = BytesOf(request) + report_bytes;
  if (live_bytes_ > 0 && live_bytes_ + bytes > config_.max_live_bytes)
    return absl::ResourceExhaustedError(
        absl::StrFormat("requests in flight hold %d bytes, %d more exceed %d", live_bytes_, bytes,
                        config_.max_live_bytes));
  request.booked_bytes = bytes;
  live_bytes_ += bytes;
  return absl::OkStatus();
}

void Admission::Release(Request& request) {
  live_bytes_ -= request.booked_bytes;
  request.booked_bytes = 0;
}

void Admission::Push(Request& request) {
  if (queue_.insert(&request).second) queued_tokens_ += request.prompt_tokens();
}

void Admission::Remove(Request& request) {
  if (queue_.erase(&request) > 0) queued_tokens_ -= request.prompt_tokens();
}

absl::Duration Admission::QueueTime(double tokens_per_s) const {
  return absl::Seconds(static_cast<double>(queued_tokens_) / std::max(tokens_per_s, 1.0));
}

absl::Duration Admission::RetryAfter(double tokens_per_s) const {
  const absl::Duration whole = absl::Ceil(QueueTime(tokens_per_s), absl::Seconds(1));
  return std::clamp(whole, config_.min_retry_after, config_.max_retry_after);
}

}  // namespace baton::router
