#include "router/front/metered_dispatcher.h"

#include <algorithm>
#include <utility>

#include "router/http/api_keys.h"

namespace baton::router {
namespace {

// What one request may cost its key; what it did not is given back when nobody holds this any more.
class Meter {
 public:
  Meter(std::shared_ptr<KeyAccount> account, int64_t prompt_tokens, int64_t reserved)
      : account_(std::move(account)), prompt_tokens_(prompt_tokens), reserved_(reserved) {}
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;
  ~Meter() { account_->Release(reserved_); }

  void Charge(const std::vector<RequestEvent>& events) {
    int64_t tokens = 0;
    bool is_over = false;
    for (const RequestEvent& event : events) {
      if (std::holds_alternative<RequestAccepted>(event)) tokens += prompt_tokens_;
      if (const auto* emitted = std::get_if<TokensEmitted>(&event))
        tokens += static_cast<int64_t>(emitted->tokens.size());
      is_over = is_over || std::holds_alternative<RequestEnded>(event);
    }
    if (tokens > 0) account_->Charge(tokens, reserved_);
    if (is_over) account_->Release(std::exchange(reserved_, 0));
  }

 private:
  const std::shared_ptr<KeyAccount> account_;
  const int64_t prompt_tokens_;
  int64_t reserved_;
};

// What is reserved for the answer to a request that gives no limit: most answers are shorter, and
// all that the context has room for would be a key's whole minute. What is longer is charged as it
// comes.
constexpr int64_t kAssumedAnswer = 4096;

// The prompt and, for each choice, the answer that the client asked for or else may get.
int64_t TokensToReserve(const GenerateRequest& request, int64_t prompt_tokens) {
  const int64_t most = request.is_length_given ? int64_t{1} << 40 : kAssumedAnswer;
  const int64_t answer = std::clamp<int64_t>(request.finish.max_tokens, 0, most);
  return prompt_tokens + answer * std::max(1, request.num_choices);
}

}  // namespace

RequestKey MeteredDispatcher::Submit(GenerateRequest request, RequestSink sink) {
  const std::shared_ptr<KeyAccount> account = request.account;
  if (account == nullptr) return inner_.Submit(std::move(request), std::move(sink));
  const auto prompt_tokens = static_cast<int64_t>(request.prompt->size());
  const auto reserved = account->Reserve(TokensToReserve(request, prompt_tokens));
  if (const auto* refusal = std::get_if<KeyAccount::Refusal>(&reserved)) {
    absl::Status status = absl::ResourceExhaustedError(refusal->message);
    status.SetPayload(kKeyLimitPayload, {});
    sink({RequestEnded{.status = std::move(status),
                       .retry_after = refusal->retry_after,
                       .cached_tokens = 0,
                       .times = {}}});
    return RequestKey{};
  }
  const auto meter = std::make_shared<Meter>(account, prompt_tokens, std::get<int64_t>(reserved));
  return inner_.Submit(std::move(request),
                       [meter, sink = std::move(sink)](std::vector<RequestEvent> events) {
                         meter->Charge(events);
                         sink(std::move(events));
                       });
}

}  // namespace baton::router
