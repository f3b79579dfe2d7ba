// The document against the handlers: what is served is in it and what is in it is served; what the
// parsers read is in its schemas and what is in the schemas is read.
#include "router/front/openapi.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <map>
#include <set>

#include "router/anthropic/messages_api.h"
#include "router/front/front_door.h"
#include "router/front/operator_api.h"
#include "router/openai/api_fixture.h"

namespace baton::router {
namespace {

using Names = std::set<std::string>;

class OpenApiTest : public ApiTest {
 protected:
  OpenApiTest() { Configure(ViewOf(1, 1, 0)); }

  // All handlers behind the door, as in the program.
  std::shared_ptr<FakeExchange> Send(const std::string& method, const std::string& path,
                                     const std::string& body) {
    MessagesApi messages({.config = config_, .chats = *api_, .cpu_pool = cpu_pool_});
    OperatorApi operators({.config = config_,
                           .tokenizer = RealTokenizer(),
                           .dispatcher = dispatcher_,
                           .openapi = OpenApiDocument("1")});
    const ApiKeys keys({}, clock_);
    FrontDoor door({.keys = keys,
                    .openai = *api_,
                    .anthropic = messages,
                    .operators = operators,
                    .cors_origins = {},
                    .serves_admin = true});
    HttpRequest request;
    request.method = method;
    request.path = path;
    request.headers = {{"content-type", "application/json"}};
    request.body = body;
    request.arrival = clock_.Now();
    auto exchange = std::make_shared<FakeExchange>();
    door.Handle(std::move(request), exchange);
    exchange->RunTasks();
    return exchange;
  }
  // The least body that a request of this kind is accepted with, and members to it.
  static std::string BodyOf(std::string_view request, const std::string& members) {
    std::string least = R"("messages": [{"role": "user", "content": "hi"}])";
    if (request == "MessagesRequest") least += R"(, "max_tokens": 9)";
    if (request == "ResponsesRequest") least = R"("input": "hi")";
    if (request == "CompletionRequest") least = R"("prompt": "hi")";
    if (request == "GenerateRequest") least = R"("text": "hi")";
    if (request == "AbortRequest") least = R"("rid": "r1")";
    if (request == "DetokenizeRequest") least = R"("tokens": [5])";
    return "{" + least + (members.empty() ? "" : ", " + members) + "}";
  }
  static std::string PathOf(std::string_view request) {
    for (const Route& route : Routes())
      if (route.request == request) return std::string(route.path);
    return "";
  }
};

// Every "$ref" below `value`, and every pair of equal keys of one object.
void Walk(const JsonValue& value, Names& refs) {
  for (const JsonValue& item : value.items()) Walk(item, refs);
  for (const auto& [key, member] : value.members()) {
    if (key == "$ref") refs.insert(member.text());
    Walk(member, refs);
  }
}

TEST_F(OpenApiTest, IsWellFormedAndItsReferencesLead) {
  const JsonValue document = Json(OpenApiDocument("1.2.3"));
  EXPECT_EQ(Member(document, "openapi").text(), "3.1.0");
  EXPECT_EQ(Member(Member(document, "info"), "version").text(), "1.2.3");
  Names refs;
  Walk(document, refs);
  const JsonValue& schemas = Member(Member(document, "components"), "schemas");
  for (const std::string& ref : refs) {
    const std::string prefix = "#/components/schemas/";
    ASSERT_EQ(ref.rfind(prefix, 0), 0u) << ref;
    EXPECT_NE(schemas.Find(ref.substr(prefix.size())), nullptr) << ref;
  }
  EXPECT_EQ(schemas.members().size(), refs.size());  // none is left over
}

TEST_F(OpenApiTest, HasEveryRouteOnce) {
  const JsonValue document = Json(OpenApiDocument("1"));
  const JsonValue& paths = Member(document, "paths");
  size_t num_operations = 0;
  for (const auto& [name, path] : paths.members()) num_operations += path.members().size();
  EXPECT_EQ(num_operations, Routes().size());
  for (const Route& route : Routes()) {
    const JsonValue& operation =
        Member(Member(paths, route.path), route.method == "GET" ? "get" : "post");
    EXPECT_EQ(operation.Find("security") != nullptr, route.is_open) << route.path;
  }
}

TEST_F(OpenApiTest, EveryRouteIsServed) {
  for (const Route& route : Routes()) {
    std::string path(route.path);
    if (path.ends_with("{id}")) path.replace(path.size() - 4, 4, "deepseek-v4-flash");
    const auto answer = Send(std::string(route.method), path,
                             route.request.empty() ? "" : BodyOf(route.request, ""));
    if (route.is_generation) {
      EXPECT_FALSE(dispatcher_.submitted.empty()) << path << answer->body;
      dispatcher_.submitted.clear();
    } else {
      const int expected = path.ends_with("_profile") ? 501 : 200;
      EXPECT_EQ(answer->status, expected) << path << answer->body;
      EXPECT_EQ(answer->Header("Content-Type").rfind(route.answer, 0), 0u) << path;
    }
  }
}

// The literals "..." right behind each `before` in `source`, or all of them if it is empty.
std::vector<std::string> LiteralsBehind(std::string_view source, std::string_view before) {
  std::vector<std::string> literals;
  const auto next_quote = [&](size_t at) {
    while ((at = source.find('"', at)) != std::string_view::npos && source[at - 1] == '\\') ++at;
    return std::min(at, source.size());
  };
  for (size_t open = next_quote(1); open < source.size();) {
    const size_t close = next_quote(open + 1);
    if (source.substr(0, open).ends_with(before))
      literals.emplace_back(source.substr(open + 1, close - open - 1));
    open = next_quote(std::min(close + 1, source.size()));
  }
  return literals;
}

bool IsMember(const std::string& text) {
  return !text.empty() &&
         text.find_first_not_of("abcdefghijklmnopqrstuvwxyz_") == std::string::npos;
}

// The handlers behind the door know no path that the door does not.
TEST_F(OpenApiTest, NothingElseIsServed) {
  for (const char* file : {"router/openai/api.cc", "router/anthropic/messages_api.cc",
                           "router/front/operator_api.cc"}) {
    size_t num_paths = 0;
    for (std::string path : LiteralsBehind(ReadTestFile(file), "")) {
      if (!path.starts_with("/")) continue;
      if (path.size() > 1 && path.ends_with("/")) path += "x";
      EXPECT_TRUE(FindRoute("GET", path).is_path_known) << file << ": " << path;
      ++num_paths;
    }
    EXPECT_GE(num_paths, 2u) << file;
  }
}

// Members that a source file reads from the object `body`, and from lists of keys.
Names MembersReadBy(const std::string& file) {
  const std::string source = ReadTestFile(file);
  Names names;
  for (const char* before : {"(body, ", "(*body, ", "body.Find(", "body.FindNonNull(",
                             "body->Find(", "body->FindNonNull("})
    for (const std::string& name : LiteralsBehind(source, before))
      if (IsMember(name)) names.insert(name);
  for (size_t at = 0; (at = source.find("string_view key :", at)) != std::string::npos; ++at) {
    const size_t end = std::min(source.find('}', at), source.size());
    for (const std::string& name : LiteralsBehind(source.substr(at, end - at), ""))
      if (IsMember(name)) names.insert(name);
  }
  return names;
}

TEST_F(OpenApiTest, EveryMemberThatIsReadIsInASchema) {
  const std::map<std::string, std::vector<std::string_view>> readers = {
      {"router/openai/chat_messages.cc", {"ChatRequest"}},
      {"router/openai/tool_choice.cc", {"ChatRequest"}},
      {"router/openai/generate_params.cc", {"ChatRequest", "CompletionRequest"}},
      {"router/openai/prepare.cc",
       {"ChatRequest", "CompletionRequest", "GenerateRequest", "TokenizeRequest",
        "DetokenizeRequest"}},
      {"router/openai/responses_request.cc", {"ResponsesRequest"}},
      {"router/openai/sglang_request.cc", {"GenerateRequest"}},
      {"router/anthropic/messages_request.cc", {"MessagesRequest"}}};
  for (const auto& [file, requests] : readers) {
    Names known;
    for (const std::string_view request : requests)
      for (const Field& field : RequestFields(request)) known.insert(std::string(field.name));
    const Names names = MembersReadBy(file);
    EXPECT_GE(names.size(), 3u) << file;
    for (const std::string& name : names) EXPECT_TRUE(known.contains(name)) << file << ": " << name;
  }
}

// A value that no member takes is refused by every member that is read.
TEST_F(OpenApiTest, EveryMemberOfASchemaIsJudged) {
  for (const std::string_view request : RequestNames()) {
    Names seen;
    for (const Field& field : RequestFields(request)) {
      SCOPED_TRACE(std::string(request) + "." + std::string(field.name));
      EXPECT_TRUE(seen.insert(std::string(field.name)).second);
      const std::string body =
          BodyOf(request, "\"" + std::string(field.name) + R"(": [[{"a": -7.5}]])");
      const auto answer = Send("POST", PathOf(request), body);
      if (field.use == FieldUse::kIgnored) {
        EXPECT_NE(answer->status, 400) << answer->body;
      } else {
        EXPECT_EQ(answer->status, 400) << answer->body;
      }
    }
  }
}

}  // namespace
}  // namespace baton::router
