#include "cli/replies.h"

#include <gtest/gtest.h>

namespace baton::cli {
namespace {

TEST(ReadAnswerEvent, TakesTheFirstChoicesTexts) {
  const AnswerEvent event = ReadAnswerEvent(
      R"({"choices": [{"delta": {"reasoning_content": "r", "content": "c"}}, {"delta": 1}]})");
  EXPECT_EQ(event.reasoning, "r");
  EXPECT_EQ(event.content, "c");
  EXPECT_EQ(event.error, "");
}

TEST(ReadAnswerEvent, TakesErrorsOfEveryForm) {
  EXPECT_EQ(ReadAnswerEvent(R"({"error": {"message": "full"}})").error, "full");
  EXPECT_EQ(ReadAnswerEvent(R"({"error": "full"})").error, "full");
  EXPECT_EQ(ReadAnswerEvent(R"({"error": null})").error, "");
  for (const char* error : {R"({"message": 7})", "{}", "[]", "3", "\"\""})
    EXPECT_EQ(ReadAnswerEvent(std::string("{\"error\": ") + error + "}").error,
              "the server reported an error")
        << error;
}

TEST(ReadAnswerEvent, TakesNothingFromOtherForms) {
  for (const char* data :
       {"", "{", "[]", "null", R"({"choices": {"a": 1}})", R"({"choices": "text"})",
        R"({"choices": []})", R"({"choices": [7]})", R"({"choices": [{"delta": "x"}]})",
        R"({"choices": [{"delta": {"content": null}}]})"}) {
    const AnswerEvent event = ReadAnswerEvent(data);
    EXPECT_EQ(event.content + event.reasoning + event.error, "") << data;
  }
}

TEST(ErrorMessageOf, FindsItInBothPlaces) {
  EXPECT_EQ(ErrorMessageOf(R"({"error": {"message": "a"}})"), "a");
  EXPECT_EQ(ErrorMessageOf(R"({"message": "b"})"), "b");
  EXPECT_EQ(ErrorMessageOf(R"({"error": {"message": ["a"]}, "message": 2})"), "");
  EXPECT_EQ(ErrorMessageOf("<html>"), "");
}

TEST(FirstModelOf, IsEmptyWhereThereIsNone) {
  EXPECT_EQ(FirstModelOf(R"({"data": [{"id": "m"}, {"id": "n"}]})"), "m");
  for (const char* body : {"", "[]", R"({"data": []})", R"({"data": {}})", R"({"data": [1]})",
                           R"({"data": [{"id": 1}]})"})
    EXPECT_EQ(FirstModelOf(body), "") << body;
}

TEST(ReadyWorkersOf, CountsOnlyNumbers) {
  const ReadyWorkers ready = ReadyWorkersOf(R"({"prefill_ready": 2, "decode_ready": "3"})");
  EXPECT_EQ(ready.prefill, 2);
  EXPECT_EQ(ready.decode, 0);
}

TEST(ClusterTable, ShowsWhatEachWorkerSays) {
  const auto table = ClusterTable(
      R"({"ready": true, "queued": 0, "workers": [)"
      R"({"name": "d", "serves_decode": true, "pages": 7},)"
      R"( {"name": 1.5, "serves_prefill": "yes", "serves_decode": true, "pages": [1]}, "x"]})");
  ASSERT_TRUE(table.has_value());
  EXPECT_EQ(*table,
            "ready: true    in flight: -    queued: 0\n\n"
            "worker  address  state  serves  pages  free  leased  cached  running  waiting  "
            "queued prompt tokens\n"
            "d       -        -      decode  7      -     -       -       -        -        -\n"
            "1.5     -        -      decode  -      -     -       -       -        -        -\n"
            "-       -        -              -      -     -       -       -        -        -\n");
}

TEST(ClusterTable, IsNoneWhereTheBodyIsNotARouters) {
  for (const char* body : {"", "ready", "{}", "[]", R"({"workers": {}})"})
    EXPECT_FALSE(ClusterTable(body).has_value()) << body;
}

TEST(MetricsTable, LeavesCommentsAndHistogramsOut) {
  EXPECT_EQ(MetricsTable("# HELP a\na{x=\"y z\"} 1\nh_bucket{le=\"1\"} 2\n\nnothing\nbc 3"),
            "metric      value\na{x=\"y z\"}  1\nbc          3\n");
}

}  // namespace
}  // namespace baton::cli
