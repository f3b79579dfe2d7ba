#include "cli/bench_stats.h"

#include <gtest/gtest.h>

#include "cli/bench_client.h"

namespace baton::cli {
namespace {

RequestRecord Answered(int first_ms, int total_ms, int64_t tokens) {
  RequestRecord record;
  record.first_token = absl::Milliseconds(first_ms);
  record.total = absl::Milliseconds(total_ms);
  record.prompt_tokens = 10;
  record.cached_tokens = 4;
  record.completion_tokens = tokens;
  record.gaps_ms = {1.0, 3.0};
  return record;
}

TEST(BenchStats, PercentilesAreInterpolated) {
  EXPECT_EQ(PercentileOf({}, 0.5), 0);
  EXPECT_EQ(PercentileOf({7}, 0.99), 7);
  EXPECT_DOUBLE_EQ(PercentileOf({0, 10}, 0.25), 2.5);
  const Distribution d = DistributionOf({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(d.mean, 2.5);
  EXPECT_DOUBLE_EQ(d.p50, 2.5);
  EXPECT_DOUBLE_EQ(d.p99, 3.97);
}

TEST(BenchStats, OnlySuccessesAreMeasured) {
  RequestRecord failed;
  failed.error = "HTTP 429";
  failed.total = absl::Hours(1);
  const BenchSummary s = Summarize({Answered(100, 300, 5), failed, Answered(200, 200, 1), failed},
                                   absl::Seconds(2), 3);
  EXPECT_EQ(s.num_succeeded, 2u);
  EXPECT_EQ(s.num_failed, 2u);
  EXPECT_EQ(s.num_unfinished, 3u);
  EXPECT_EQ(s.errors.at("HTTP 429"), 2u);
  EXPECT_EQ(s.prompt_tokens, 20);
  EXPECT_EQ(s.completion_tokens, 6);
  EXPECT_DOUBLE_EQ(s.ttft.mean, 150);
  EXPECT_EQ(s.tpot.count, 1u);  // one token has no time per further token
  EXPECT_DOUBLE_EQ(s.tpot.mean, 50);
  EXPECT_EQ(s.itl.count, 4u);
  EXPECT_DOUBLE_EQ(s.e2e.mean, 250);
  const std::string table = SummaryTable(s);
  EXPECT_NE(table.find("2 succeeded, 2 failed, 3 not finished, in 2.00 s"), std::string::npos);
  EXPECT_NE(table.find("1.000 requests/s, 3.00 output tokens/s, 13.00 tokens/s"), std::string::npos)
      << table;
}

TEST(BenchStats, NothingMeasuredIsShownAsZeros) {
  const BenchSummary s = Summarize({}, absl::ZeroDuration(), 5);
  EXPECT_NE(SummaryTable(s).find("0.000 requests/s"), std::string::npos);
  EXPECT_EQ(SummarySvg("t", s).find("nan"), std::string::npos);
  EXPECT_EQ(SummarySvg("t", s).find("<rect x="), std::string::npos);
}

TEST(BenchStats, RowsHaveTheHeadersColumnsAndQuoteWhatNeedsIt) {
  const CsvLabels labels = {{"label", "a,\"b\""}, {"url", "http://x"}};
  const BenchSummary s = Summarize({Answered(1, 2, 2)}, absl::Seconds(1), 0);
  const std::string header = CsvHeader(labels), row = CsvRow(labels, s);
  EXPECT_EQ(header.rfind("label,url,seconds,", 0), 0u);
  EXPECT_EQ(row.rfind("\"a,\"\"b\"\"\",http://x,1.000,1,0,0,", 0), 0u) << row;
  const auto commas = [](const std::string& text) {
    return std::count(text.begin(), text.end(), ',');
  };
  EXPECT_EQ(commas(row), commas(header) + 1);  // one of them quoted
  EXPECT_EQ(row.back(), '\n');
}

TEST(BenchStats, PlotHoldsEveryValueAndEscapesItsTitle) {
  std::vector<RequestRecord> records;
  for (int i = 0; i < 100; ++i) records.push_back(Answered(i, i + 100, 11));
  const std::string svg = SummarySvg("<a> & b", Summarize(records, absl::Seconds(1), 0));
  EXPECT_NE(svg.find("&lt;a&gt; &amp; b"), std::string::npos);
  EXPECT_EQ(svg.find("<a>"), std::string::npos);
  EXPECT_NE(svg.find("(100 requests)"), std::string::npos);
  size_t bars = 0;
  for (size_t at = svg.find("<rect x="); at != std::string::npos; at = svg.find("<rect x=", at + 1))
    ++bars;
  EXPECT_EQ(bars, 40u + 1);  // TTFT fills its 40, all TPOT are equal
}

// Arrival times as the stream brings them.
class Recorder {
 public:
  void At(int ms, std::string_view data) {
    recorder_.OnData(data, start_ + absl::Milliseconds(ms));
  }
  const RequestRecord& Finish() {
    recorder_.Finish();
    return record_;
  }

 private:
  const absl::Time start_ = absl::UnixEpoch();
  RequestRecord record_;
  StreamRecorder recorder_{start_, record_};
};

TEST(StreamRecorder, MeasuresChunksWithChoicesAndTakesUsage) {
  Recorder stream;
  stream.At(5, R"({"choices":[{"delta":{"role":"assistant"}}]})");
  stream.At(9, R"({"choices": [ {"delta":{"content":"\"usage\":{}, \"error\""}}],"usage":null})");
  stream.At(30, R"({"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":8,)"
                R"("prompt_tokens_details":{"cached_tokens":2}}})");
  stream.At(31, "[DONE]");
  const RequestRecord& record = stream.Finish();
  EXPECT_EQ(record.error, "");
  EXPECT_EQ(record.first_token, absl::Milliseconds(5));
  EXPECT_EQ(record.total, absl::Milliseconds(9));
  EXPECT_EQ(record.gaps_ms, std::vector<double>{4.0});
  EXPECT_EQ(record.prompt_tokens, 3);
  EXPECT_EQ(record.cached_tokens, 2);
  EXPECT_EQ(record.completion_tokens, 8);
  EXPECT_TRUE(record.has_usage);
}

TEST(StreamRecorder, WithoutUsageChunksCount) {
  Recorder stream;
  for (int i = 0; i < 3; ++i) stream.At(i, R"({"choices":[{"text":"a"}]})");
  stream.At(4, "[DONE]");
  EXPECT_EQ(stream.Finish().completion_tokens, 3);
  EXPECT_FALSE(stream.Finish().has_usage);
}

TEST(StreamRecorder, NamesWhatBrokeTheStream) {
  Recorder cut;
  cut.At(1, R"({"choices":[{}]})");
  EXPECT_EQ(cut.Finish().error, "the stream ended without [DONE]");
  Recorder empty;
  empty.At(1, "[DONE]");
  EXPECT_EQ(empty.Finish().error, "the stream had no tokens");
  Recorder failed;
  failed.At(1, R"({"error":{"message":"no worker"}})");
  failed.At(1, "[DONE]");
  EXPECT_EQ(failed.Finish().error, "in the stream: no worker");
}

}  // namespace
}  // namespace baton::cli
