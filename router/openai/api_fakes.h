#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/bounded_queue.h"
#include "router/http/http_message.h"
#include "router/plan/request.h"

// Stand-ins for the API's neighbours, for tests. One thread, but for Post: what is posted runs when
// the test says so.
namespace baton::router {

class FakeExchange final : public HttpExchange {
 public:
  void Respond(int answer_status, HttpHeaders answer_headers, std::string answer_body) override {
    if (is_over()) return;
    status = answer_status;
    headers = std::move(answer_headers);
    body = std::move(answer_body);
    is_ended = true;
  }
  void StartStream(int answer_status, HttpHeaders answer_headers) override {
    status = answer_status;
    headers = std::move(answer_headers);
    is_stream = true;
  }
  void Write(std::string piece) override {
    if (!is_over()) body += piece;
  }
  void EndStream() override { is_ended = true; }
  void OnGone(std::function<void()> callback) override {
    if (is_gone) return callback();
    on_gone = std::move(callback);
  }
  void Post(std::function<void()> task) override { tasks.TryPush(std::move(task)); }
  void PostAfter(absl::Duration, std::function<void()> task) override {
    timers.push_back(std::move(task));
  }

  bool is_over() const { return is_ended || is_gone; }
  void Gone() {
    is_gone = true;
    if (on_gone) std::exchange(on_gone, nullptr)();
  }
  void RunTasks() {
    while (RunSome(absl::ZeroDuration())) continue;
  }
  // With those that another thread is still to post; false when none comes for `patience`.
  bool RunTasksUntilOver(absl::Duration patience) {
    while (!is_over())
      if (!RunSome(patience)) return false;
    return true;
  }
  // What is posted within `patience`; false when nothing is.
  bool RunTasksFor(absl::Duration patience) { return RunSome(patience); }
  void RunTimers() {
    const std::vector<std::function<void()>> now = std::exchange(timers, {});
    for (const auto& task : now) task();
  }
  std::string Header(const std::string& name) const {
    for (const auto& [key, value] : headers)
      if (key == name) return value;
    return "";
  }

  int status = 0;
  HttpHeaders headers;
  std::string body;
  bool is_stream = false, is_ended = false, is_gone = false;
  std::function<void()> on_gone;
  BoundedQueue<std::function<void()>> tasks{1000};
  std::vector<std::function<void()>> timers;

 private:
  bool RunSome(absl::Duration patience) {
    std::vector<std::function<void()>> now;
    tasks.Drain(now, tasks.limit(), patience);
    for (const auto& task : now) task();
    return !now.empty();
  }
};

// Keeps what was submitted; the test plays the planner.
class FakeDispatcher final : public Dispatcher {
 public:
  struct Submitted {
    RequestKey key;
    GenerateRequest request;
    RequestSink sink;
  };
  struct Cancelled {
    RequestKey key;
    std::optional<int> choice;
    bool operator==(const Cancelled&) const = default;
  };

  RequestKey Submit(GenerateRequest request, RequestSink sink) override {
    const RequestKey key{submitted.size() + 1};
    submitted.push_back({key, std::move(request), std::move(sink)});
    if (on_submit) on_submit(submitted.back());
    return key;
  }
  void Cancel(RequestKey request, std::optional<int> choice, const std::string&) override {
    cancelled.push_back({request, choice});
  }
  void Control(OperatorCommand command) override { commands.push_back(std::move(command)); }
  std::shared_ptr<const ClusterView> View() const override { return view; }

  std::function<void(Submitted&)> on_submit;
  std::vector<Submitted> submitted;
  std::vector<Cancelled> cancelled;
  std::vector<OperatorCommand> commands;
  std::shared_ptr<const ClusterView> view = std::make_shared<ClusterView>();
};

}  // namespace baton::router
