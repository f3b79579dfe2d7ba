// Real worker processes over gRPC and UCX: the router's part is played by hand.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <netinet/in.h>
#include <signal.h>
#include <string>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "common/clock.h"
#include "common/mutex.h"
#include "proto/session.grpc.pb.h"
#include "proto/wire.h"

namespace baton {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(100);

// A worker program; its log is read until it serves.
class Process {
 public:
  Process(const std::string& program, std::vector<std::string> arguments) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      arguments.insert(arguments.begin(), program);
      std::vector<char*> argv;
      for (std::string& argument : arguments) argv.push_back(argument.data());
      argv.push_back(nullptr);
      execv(program.c_str(), argv.data());
      _exit(127);
    }
    close(ends[1]);
    log_ = fdopen(ends[0], "r");
    char line[4096];
    while (port_ == 0 && fgets(line, sizeof(line), log_) != nullptr) {
      text_ += line;
      if (std::strstr(line, " serving ") == nullptr) continue;
      port_ = NumberAfter(line, "session_port=");
      metrics_port_ = NumberAfter(line, "metrics_port=");
    }
    reader_ = std::thread([this] {
      char more[4096];
      while (fgets(more, sizeof(more), log_) != nullptr) {
        MutexLock lock(mutex_);
        text_ += more;
      }
    });
  }
  ~Process() {
    if (pid_ > 0) Stop(SIGKILL);
    reader_.join();
    fclose(log_);
  }
  // The exit code, or 128 + signal.
  int Stop(int signal) {
    kill(pid_, signal);
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  int port() const { return port_; }
  int metrics_port() const { return metrics_port_; }
  std::string text() {
    MutexLock lock(mutex_);
    return text_;
  }

 private:
  static int NumberAfter(const char* line, const char* key) {
    const char* found = std::strstr(line, key);
    return found == nullptr ? 0 : std::atoi(found + std::strlen(key));
  }

  pid_t pid_ = 0;
  FILE* log_ = nullptr;
  int port_ = 0, metrics_port_ = 0;
  Mutex mutex_;
  std::string text_;
  std::thread reader_;
};

// The whole answer of the metrics port, head included.
std::string Get(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    char part[4096];
    for (ssize_t got = read(fd, part, sizeof(part)); got > 0; got = read(fd, part, sizeof(part)))
      answer.append(part, static_cast<size_t>(got));
  }
  close(fd);
  return answer;
}

// One session; answers collect in `said_`. A thread beats.
class Router {
 public:
  explicit Router(int port)
      : stub_(pb::Worker::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(port),
                                                      grpc::InsecureChannelCredentials()))),
        stream_(stub_->Session(&context_)) {
    wire::RouterMessage hello;
    hello.hello = wire::RouterHello{.router_id = "test", .incarnation = {5}};
    Send(hello);
    reader_ = std::thread([this] {
      pb::WorkerMessage message;
      while (stream_->Read(&message)) {
        auto parsed = wire::FromProto(message);
        EXPECT_TRUE(parsed.ok()) << parsed.status();
        MutexLock lock(mutex_);
        said_.push_back(std::move(*parsed));
      }
    });
    beater_ = std::thread([this] {
      for (uint64_t number = 1; !is_over_; ++number) {
        wire::RouterMessage beat;
        beat.beat = wire::Beat{.number = number};
        Send(beat);
        absl::SleepFor(absl::Milliseconds(200));
      }
    });
  }
  ~Router() {
    is_over_ = true;
    beater_.join();
    context_.TryCancel();
    reader_.join();
    (void)stream_->Finish();
  }
  void Send(const wire::RouterMessage& message) {
    pb::RouterMessage out;
    wire::ToProto(message, out);
    MutexLock lock(write_mutex_);
    stream_->Write(out);
  }
  // The first answer that `pick` takes; the test fails if none comes.
  template <typename T>
  T Await(const char* what, std::function<const T*(const wire::WorkerMessage&)> pick) {
    const SteadyClock clock;
    const absl::Time until = clock.Now() + kPatience;
    while (clock.Now() < until) {
      {
        MutexLock lock(mutex_);
        for (const wire::WorkerMessage& message : said_)
          if (const T* found = pick(message)) return *found;
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    ADD_FAILURE() << "no " << what << " came";
    return {};
  }
  std::vector<wire::WorkerMessage> said() {
    MutexLock lock(mutex_);
    return said_;
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<pb::Worker::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<pb::RouterMessage, pb::WorkerMessage>> stream_;
  Mutex mutex_, write_mutex_;
  std::vector<wire::WorkerMessage> said_;
  std::atomic<bool> is_over_ = false;
  std::thread reader_, beater_;
};

std::vector<std::string> Arguments(const std::string& serve) {
  return {"--serve", serve,
          "--set",   "checkpoint=models/demo",
          "--set",   "timers=dev",
          "--set",   "engine.pages=64",
          "--set",   "wedge_floor_ms=60000"};
}

struct Job {
  uint8_t transfer = 1;
  std::vector<int32_t> prompt;
  int64_t max_tokens = 24;
};

Job MakeJob(uint8_t transfer, int tokens) {
  Job job{.transfer = transfer, .prompt = {}};
  for (int i = 0; i < tokens; ++i) job.prompt.push_back(2 + (i * 37) % 3000);
  return job;
}

wire::Landing Reserve(Router& decode, const Job& job) {
  wire::RouterMessage message;
  wire::Reserve& reserve = message.reserves.emplace_back();
  reserve.transfer.bytes[0] = job.transfer;
  reserve.request_id = "r";
  reserve.prompt_tokens = static_cast<uint32_t>(job.prompt.size());
  reserve.num_pages = static_cast<uint32_t>((job.prompt.size() + kPageTokens - 1) / kPageTokens);
  reserve.sequences.push_back({.handle = {job.transfer}, .choice = 0, .received = {}});
  reserve.sampling.greedy = true;
  reserve.finish.max_tokens = job.max_tokens;
  message.prompt_chunks.push_back(
      {.transfer = reserve.transfer, .offset = 0, .tokens = job.prompt, .is_last = true});
  decode.Send(message);
  return decode
      .Await<wire::Reserved>("Reserved",
                             [&](const wire::WorkerMessage& m) -> const wire::Reserved* {
                               for (const auto& r : m.reserved)
                                 if (r.transfer == reserve.transfer) return &r;
                               return nullptr;
                             })
      .landing;
}

void StartRun(Router& prefill, const Job& job, const wire::Landing& landing) {
  wire::RouterMessage message;
  wire::Run& run = message.runs.emplace_back();
  run.transfer.bytes[0] = job.transfer;
  run.attempt = landing.attempt;
  run.request_id = "r";
  run.landing = landing;
  run.prompt_tokens = static_cast<uint32_t>(job.prompt.size());
  run.sequences.push_back({.handle = {job.transfer}, .choice = 0, .received = {}});
  run.sampling.greedy = true;
  run.finish.max_tokens = job.max_tokens;
  message.prompt_chunks.push_back(
      {.transfer = run.transfer, .offset = 0, .tokens = job.prompt, .is_last = true});
  prefill.Send(message);
}

// All tokens of a job, by position, once it is finished.
std::map<uint32_t, int32_t> Text(Router& decode, const Job& job) {
  decode.Await<wire::Finished>("Finished",
                               [&](const wire::WorkerMessage& m) -> const wire::Finished* {
                                 for (const auto& f : m.finished)
                                   if (f.handle.value == job.transfer) return &f;
                                 return nullptr;
                               });
  std::map<uint32_t, int32_t> text;
  for (const wire::WorkerMessage& m : decode.said()) {
    for (const wire::Landed& landed : m.landed)
      if (landed.transfer.bytes[0] == job.transfer)
        text[static_cast<uint32_t>(job.prompt.size())] = landed.tokens.at(0).token;
    if (!m.tokens) continue;
    for (const wire::SequenceStep& step : m.tokens->sequences) {
      if (step.handle.value != job.transfer) continue;
      for (size_t i = 0; i < step.tokens.size(); ++i)
        text[step.first_position + static_cast<uint32_t>(i)] = step.tokens[i].token;
    }
  }
  return text;
}

TEST(WorkerProcesses, APairGivesTheTokensOfOneMixedWorker) {
  Process prefill(BATON_PREFILL, Arguments("prefill")), decode(BATON_DECODE, Arguments("decode")),
      mixed(BATON_DECODE, Arguments("prefill,decode"));
  ASSERT_NE(prefill.port(), 0) << prefill.text();
  ASSERT_NE(decode.port(), 0) << decode.text();
  ASSERT_NE(mixed.port(), 0) << mixed.text();
  Router p(prefill.port()), d(decode.port()), m(mixed.port());
  for (const auto& [transfer, tokens] : std::map<uint8_t, int>{{1, 5}, {2, 300}, {3, 256}}) {
    const Job job = MakeJob(transfer, tokens);
    StartRun(p, job, Reserve(d, job));
    StartRun(m, job, Reserve(m, job));
    const auto text = Text(d, job);
    EXPECT_EQ(text, Text(m, job)) << tokens;
    EXPECT_EQ(text.size(), 24u);
    EXPECT_EQ(text.begin()->first, job.prompt.size());
  }
  EXPECT_NE(Get(decode.metrics_port(), "/ready").find("200 OK"), std::string::npos);
  absl::SleepFor(absl::Milliseconds(600));  // gauges are taken every 250 ms
  const std::string metrics = Get(decode.metrics_port(), "/metrics");
  EXPECT_NE(metrics.find("baton_worker_finished_total 3"), std::string::npos) << metrics;
  EXPECT_NE(metrics.find("baton_kv_blocks_landed_total 7"), std::string::npos) << metrics;
  EXPECT_NE(metrics.find("baton_worker_pages{state=\"leased\"} 0"), std::string::npos) << metrics;
  EXPECT_EQ(decode.Stop(SIGTERM), 0) << decode.text();
  EXPECT_EQ(prefill.Stop(SIGTERM), 0) << prefill.text();
}

TEST(WorkerProcesses, APrefillWorkerKilledInMidPromptIsReplaced) {
  Process first(BATON_PREFILL, Arguments("prefill")), second(BATON_PREFILL, Arguments("prefill")),
      decode(BATON_DECODE, Arguments("prefill,decode"));
  ASSERT_NE(first.port() * second.port() * decode.port(), 0);
  Router q(second.port()), d(decode.port());
  const Job job = MakeJob(1, 3000), same = MakeJob(2, 3000);
  wire::Landing landing = Reserve(d, job);
  {
    Router p(first.port());
    StartRun(p, job, landing);
    p.Await<wire::Progress>("Progress", [](const wire::WorkerMessage& m) {
      return m.progress.empty() ? nullptr : &m.progress[0];
    });
    EXPECT_EQ(first.Stop(SIGKILL), 128 + SIGKILL);
  }
  wire::RouterMessage retarget;
  wire::Retarget& request = retarget.retargets.emplace_back();
  request.transfer.bytes[0] = job.transfer;
  request.attempt = landing.attempt = 2;
  d.Send(retarget);
  d.Await<wire::Retargeted>("Retargeted", [](const wire::WorkerMessage& m) {
    return m.retargeted.empty() ? nullptr : &m.retargeted[0];
  });
  StartRun(q, job, landing);
  const auto text = Text(d, job);
  StartRun(d, same, Reserve(d, same));
  EXPECT_EQ(text, Text(d, same));
}

TEST(WorkerProcesses, ABadCheckpointIsNamed) {
  Process worker(BATON_DECODE, {"--set", "checkpoint=models/no-such-folder"});
  EXPECT_EQ(worker.port(), 0);
  EXPECT_EQ(worker.Stop(0), 1);
  EXPECT_NE(worker.text().find("no-such-folder"), std::string::npos) << worker.text();
}

}  // namespace
}  // namespace baton
