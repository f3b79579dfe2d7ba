#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "router/plan/request.h"

namespace baton::router {

// Charges the tokens of a request to its API key: the prompt's when it is queued, the answer's as
// they come, out of what was reserved for both before. A key that has nothing left is refused:
// RequestEnded comes within Submit. Any thread; `inner` outlives it.
class MeteredDispatcher final : public Dispatcher {
 public:
  explicit MeteredDispatcher(Dispatcher& inner) : inner_(inner) {}

  RequestKey Submit(GenerateRequest request, RequestSink sink) override;
  void Cancel(RequestKey request, std::optional<int> choice, const std::string& reason) override {
    if (request.value != 0) inner_.Cancel(request, choice, reason);  // 0: refused here
  }
  void Control(OperatorCommand command) override { inner_.Control(std::move(command)); }
  std::shared_ptr<const ClusterView> View() const override { return inner_.View(); }

 private:
  Dispatcher& inner_;
};

}  // namespace baton::router
