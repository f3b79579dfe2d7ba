#include "cli/chat.h"

#include <cstdio>
#include <iostream>
#include <iterator>
#include <string_view>
#include <unistd.h>

#include "absl/strings/str_format.h"
#include "cli/event_reader.h"
#include "cli/http_client.h"
#include "cli/replies.h"
#include <nlohmann/json.hpp>

#include "common/status.h"

namespace baton::cli {
namespace {

using nlohmann::json;

// Prints an answer as it comes: reasoning dimmed on a terminal, left out elsewhere.
class Printer {
 public:
  void Reasoning(std::string_view text) {
    if (!is_terminal_ || text.empty()) return;
    if (!is_dim_) std::fputs("\033[2m", stdout);
    is_dim_ = true;
    Put(text);
  }
  void Content(std::string_view text) {
    if (text.empty()) return;
    if (is_dim_) std::fputs("\033[0m\n\n", stdout);
    is_dim_ = false;
    Put(text);
  }
  void End() {
    std::fputs(is_dim_ ? "\033[0m\n" : "\n", stdout);
    is_dim_ = false;
    std::fflush(stdout);
  }

 private:
  static void Put(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }
  const bool is_terminal_ = isatty(STDOUT_FILENO) != 0;
  bool is_dim_ = false;
};

class Conversation {
 public:
  Conversation(const ChatSettings& settings, HttpUrl url)
      : settings_(settings), url_(std::move(url)) {
    url_.path += "/v1/chat/completions";
    if (!settings.system.empty())
      messages_.push_back({{"role", "system"}, {"content", settings.system}});
  }

  // Asks, prints the answer, and remembers both. A question that failed is forgotten.
  absl::Status Ask(const std::string& question) {
    messages_.push_back({{"role", "user"}, {"content", question}});
    content_.clear();
    error_.clear();
    EventReader events;
    const auto reply = Fetch({.url = url_,
                              .method = "POST",
                              .body = Body(),
                              .api_key = settings_.api_key,
                              .on_piece = [&](std::string_view piece) {
                                events.Push(piece, [this](std::string_view data) { OnData(data); });
                              }});
    printer_.End();
    absl::Status status = reply.status();
    if (reply.ok() && reply->status != 200) status = absl::UnavailableError(ErrorOf(*reply));
    if (status.ok() && !error_.empty()) status = absl::UnavailableError(error_);
    if (!status.ok()) {
      messages_.erase(messages_.size() - 1);
      return status;
    }
    messages_.push_back({{"role", "assistant"}, {"content", content_}});
    return absl::OkStatus();
  }

 private:
  std::string Body() const {
    json body = {{"messages", messages_},
                 {"stream", true},
                 {"chat_template_kwargs", {{"thinking", settings_.is_thinking}}}};
    if (!settings_.model.empty()) body["model"] = settings_.model;
    if (settings_.temperature) body["temperature"] = *settings_.temperature;
    if (settings_.max_tokens) body["max_tokens"] = *settings_.max_tokens;
    return body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

  void OnData(std::string_view data) {
    if (data == "[DONE]") return;
    const AnswerEvent event = ReadAnswerEvent(data);
    if (!event.error.empty()) error_ = event.error;
    printer_.Reasoning(event.reasoning);
    printer_.Content(event.content);
    content_ += event.content;
  }

  static std::string ErrorOf(const HttpReply& reply) {
    const std::string message = ErrorMessageOf(reply.body);
    return absl::StrFormat("%d: %s", reply.status, message.empty() ? reply.body : message);
  }

  const ChatSettings& settings_;
  HttpUrl url_;
  json messages_ = json::array();
  Printer printer_;
  std::string content_, error_;
};

int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "baton chat: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace

int RunChat(const ChatSettings& settings) {
  absl::StatusOr<HttpUrl> url = ParseUrl(settings.url);
  if (!url.ok()) return Report(url.status());
  Conversation conversation(settings, *std::move(url));
  if (!settings.message.empty()) return Report(conversation.Ask(settings.message));
  if (isatty(STDIN_FILENO) == 0) {
    const std::string text((std::istreambuf_iterator<char>(std::cin)),
                           std::istreambuf_iterator<char>());
    return Report(conversation.Ask(text));
  }
  std::printf("%s; an empty line or Ctrl-D ends it\n", settings.url.c_str());
  while (true) {
    std::fputs("\n> ", stdout);
    std::fflush(stdout);
    std::string line;
    if (!std::getline(std::cin, line) || line.empty()) return 0;
    Report(conversation.Ask(line));
  }
}

}  // namespace baton::cli
