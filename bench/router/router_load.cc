// The parts of bench/router/router_bench.py, which says what is measured. usage, in the project's
// root:
//   router_load worker STEP_US               prints its port; ends with its standard input
//   router_load client PORT CONNECTIONS FILE sends the lines of FILE as chats
//   router_load open PORT CONNECTIONS RATE FILE TIMES  the same at RATE a second, at random times;
//                                            TIMES: a line of each one's index, ms from sending and
//                                            from being due to the first byte
//   router_load stages FILE                  the stages of these chats alone
//   router_load format FILE                  chunks of a stream of the text in FILE
//   router_load tokenize FILE ROUNDS
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "bench/router/fake_worker.h"
#include "bench/router/load_client.h"
#include "bench/router/stages.h"
#include "common/log.h"
#include "router/text/test_data.h"

namespace baton::bench {
namespace {

constexpr std::string_view kText =
    "The quick brown fox jumps over the lazy dog, and then it rests a while in the shade of an old "
    "oak tree before it goes on.\n";

std::vector<std::string> LinesOf(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

std::string TextOf(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

double Percentile(std::vector<absl::Duration>& times, double share) {
  std::sort(times.begin(), times.end());
  const auto last = static_cast<double>(times.size() - 1);
  return absl::ToDoubleMilliseconds(times.at(static_cast<size_t>(share * last)));
}

int Worker(const std::string& step_us) {
  const FakeWorker worker(router::RealTokenizer().Encode(kText, router::SpecialTokens::kPlain),
                          absl::Microseconds(std::atoi(step_us.c_str())));
  std::printf("%d\n", worker.port());
  std::fflush(stdout);
  while (std::getchar() != EOF) continue;
  return 0;
}

// `per_second` 0: each connection sends its next request when its answer is complete.
int Client(const std::string& port, const std::string& connections, double per_second,
           const std::string& path, const std::string& times) {
  const int number = std::atoi(port.c_str());
  const auto count = static_cast<size_t>(std::atoi(connections.c_str()));
  const std::string where = "/v1/chat/completions";
  const std::vector<std::string> bodies = LinesOf(path);
  LoadResult result = per_second > 0 ? RunOpenLoad(number, count, per_second, where, bodies)
                                     : RunLoad(number, count, where, bodies);
  if (!times.empty()) {
    std::ofstream file(times);
    for (size_t i = 0; i < result.first.size(); ++i)
      file << result.order[i] << ' ' << absl::ToDoubleMilliseconds(result.first_from_send[i]) << ' '
           << absl::ToDoubleMilliseconds(result.first[i]) << '\n';
  }
  std::printf(
      "{\"requests\":%zu,\"events\":%zu,\"wall_s\":%.3f,\"first_p50_ms\":%.3f,"
      "\"first_p90_ms\":%.3f,\"first_p99_ms\":%.3f,\"whole_p50_ms\":%.3f,"
      "\"whole_p99_ms\":%.3f}\n",
      result.whole.size(), result.num_events, absl::ToDoubleSeconds(result.wall),
      Percentile(result.first, 0.5), Percentile(result.first, 0.9), Percentile(result.first, 0.99),
      Percentile(result.whole, 0.5), Percentile(result.whole, 0.99));
  return 0;
}

int Stages(const std::string& path) {
  const std::vector<std::string> bodies = LinesOf(path);
  const StageSeconds s = TimeStages(bodies);
  const double ms = 1e3 / static_cast<double>(bodies.size());
  std::printf(
      "{\"parse_ms\":%.4f,\"messages_ms\":%.4f,\"render_ms\":%.4f,\"tokenize_ms\":%.4f,"
      "\"prompt_tokens\":%zu}\n",
      s.parse * ms, s.messages * ms, s.render * ms, s.tokenize * ms,
      s.prompt_tokens / bodies.size());
  return 0;
}

int Format(const std::string& path) {
  const auto tokens = router::RealTokenizer().Encode(TextOf(path), router::SpecialTokens::kPlain);
  std::printf("{\"us_per_token\":%.4f,\"tokens\":%zu}\n", FormatMicroseconds(tokens),
              tokens.size());
  return 0;
}

int Tokenize(const std::string& path, const std::string& rounds) {
  const TokenizeSpeed speed = TimeTokenizer(TextOf(path), std::atoi(rounds.c_str()));
  std::printf("{\"mb_per_s\":%.3f,\"ids\":%zu}\n", speed.mb_per_s, speed.num_ids);
  return 0;
}

int Run(const std::vector<std::string>& args) {
  InitLog("router_load", LogLevel::kError);
  if (args.size() == 2 && args[0] == "worker") return Worker(args[1]);
  if (args.size() == 4 && args[0] == "client") return Client(args[1], args[2], 0, args[3], "");
  if (args.size() == 6 && args[0] == "open")
    return Client(args[1], args[2], std::atof(args[3].c_str()), args[4], args[5]);
  if (args.size() == 2 && args[0] == "stages") return Stages(args[1]);
  if (args.size() == 2 && args[0] == "format") return Format(args[1]);
  if (args.size() == 3 && args[0] == "tokenize") return Tokenize(args[1], args[2]);
  std::fprintf(stderr, "usage: see the top of bench/router/router_load.cc\n");
  return 2;
}

}  // namespace
}  // namespace baton::bench

int main(int argc, char** argv) { return baton::bench::Run({argv + 1, argv + argc}); }
