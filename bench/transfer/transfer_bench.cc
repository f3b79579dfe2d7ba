// One transfer between two agents over UCX, each on its own transfer thread, digests on both sides
// included. usage: transfer_bench --machine TEXT --commit ID --csv FILE
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "kvtransfer/agent_thread.h"
#include "kvtransfer/ucx/test_node.h"

namespace baton::kvtransfer {
namespace {

constexpr const char* kTls = "tcp";
constexpr absl::Duration kLimit = absl::Minutes(2);

UcxConfig ConfigOf(uint64_t incarnation) {
  UcxConfig config;
  config.incarnation = Incarnation{incarnation};
  config.tls = kTls;
  return config;
}

// Seconds from connecting until the receiver holds every verified block; the bytes are checked
// afterwards.
double Transfer(const TestShape& shape) {
  const SteadyClock clock;
  TestNode source(shape, ConfigOf(1), TransferLimits::Dev());
  TestNode sink(shape, ConfigOf(2), TransferLimits::Dev());
  sink.OpenLandingWithCredit(shape.num_pages);
  source.OpenSendTo(sink.transport().Address(), Incarnation{2});
  source.OfferAll();
  const absl::Time start = clock.Now();
  absl::Time end = start;
  {
    auto from = AgentThread::Create({}, source.agent(), source.transport(), clock, nullptr);
    auto to = AgentThread::Create({}, sink.agent(), sink.transport(), clock, nullptr);
    CHECK(from.ok() && to.ok());
    size_t landed = 0;
    std::vector<AgentEvent> events;
    while (landed < shape.num_pages + size_t{1} && clock.Now() - start < kLimit) {
      events.clear();
      (*to)->events().Drain(events, 256, absl::Milliseconds(100));
      landed += static_cast<size_t>(std::ranges::count_if(
          events, [](const AgentEvent& e) { return std::holds_alternative<BlockLanded>(e); }));
    }
    end = clock.Now();
    CHECK(landed == shape.num_pages + size_t{1});
  }
  for (uint32_t slot = 0; slot <= shape.num_pages; ++slot)
    CHECK(HasPattern(sink.Bytes(sink.Memory(slot).place), slot));
  return absl::ToDoubleSeconds(end - start);
}

// GB/s of one thread's memcpy beyond the caches: what a copying receiver cannot exceed.
double MemcpyGbps() {
  constexpr size_t kBytes = 256 << 20;
  const std::vector<char> from(kBytes, 1);
  std::vector<char> to(kBytes, 0);
  const SteadyClock clock;
  double best = 0;
  for (int i = 0; i < 3; ++i) {
    const absl::Time start = clock.Now();
    std::memcpy(to.data(), from.data(), kBytes);
    best = std::max(best, kBytes / 1e9 / absl::ToDoubleSeconds(clock.Now() - start));
    CHECK(to[kBytes / 2] == 1);
  }
  return best;
}

int Main(int argc, char** argv) {
  std::map<std::string, std::string> options = {{"--machine", ""}, {"--commit", ""}, {"--csv", ""}};
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!options.contains(argv[i])) return 2;
    options[argv[i]] = argv[i + 1];
  }
  const double limit = MemcpyGbps();
  std::string rows;
  for (const uint64_t page_bytes : {uint64_t{110592}, uint64_t{995328}}) {
    const TestShape shape{.num_pages = 200, .page_bytes = page_bytes, .tail_bytes = 3751664};
    const double gbps = static_cast<double>(shape.num_pages * page_bytes + shape.tail_bytes) / 1e9 /
                        Transfer(shape);
    rows += absl::StrFormat("\"%s\",%s,transfer_bench,%s,%d,%d,%.3f,%.3f,%.3f\n",
                            options["--machine"], options["--commit"], kTls, page_bytes,
                            shape.num_pages, gbps, limit, gbps / limit);
  }
  std::fputs(rows.c_str(), stdout);
  if (options["--csv"].empty()) return 0;
  const bool is_new = !std::ifstream(options["--csv"]).good();
  std::ofstream file(options["--csv"], std::ios::app);
  if (is_new)
    file << "machine,commit,command,transport,page_bytes,pages,gbps,memcpy_gbps,share_of_memcpy\n";
  file << rows;
  return file.good() ? 0 : 1;
}

}  // namespace
}  // namespace baton::kvtransfer

int main(int argc, char** argv) { return baton::kvtransfer::Main(argc, argv); }
