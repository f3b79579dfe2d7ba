#include "cli/up.h"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <signal.h>
#include <stdlib.h>
#include <thread>
#include <unistd.h>
#include <utility>

#include "absl/strings/str_format.h"
#include "cli/child.h"
#include "cli/http_client.h"
#include "cli/replies.h"
#include <nlohmann/json.hpp>

#include "common/clock.h"
#include "common/status.h"

namespace baton::cli {
namespace {

using nlohmann::json;

constexpr absl::Duration kTick = absl::Milliseconds(100);
constexpr absl::Duration kStopTime = absl::Seconds(10);  // for a drain; then SIGKILL
constexpr int kTailLines = 15;

class Cluster {
 public:
  Cluster(const UpOptions& options, const std::string& program_folder)
      : options_(options), program_folder_(program_folder), port_(options.port) {
    sigemptyset(&signals_);
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals_, number);
    sigprocmask(SIG_BLOCK, &signals_, nullptr);
  }

  int Run() {
    if (const absl::Status status = Start(); !status.ok()) {
      std::fprintf(stderr, "baton up: %s\n", std::string(status.message()).c_str());
      Stop();
      return 1;
    }
    const bool is_ready = WaitUntilReady();
    if (is_ready) Announce();
    while (is_ready && !is_stopped_ && !has_failed_) Watch();
    Stop();
    return has_failed_ ? 1 : 0;
  }

 private:
  absl::Status Start();
  absl::Status CheckSettings() const;
  absl::Status StartWorker(const std::string& role, int index);
  absl::Status StartRouter();
  absl::Status StartChild(const std::string& name, const std::string& role,
                          std::vector<std::string> settings, json ports);
  bool WaitUntilReady();
  void ShowProgress();
  void Announce();
  absl::Status WriteState() const;
  // Waits a tick for a stop signal and looks at the children. Sets is_stopped_ and has_failed_.
  void Watch();
  void OnEnd(const Child& child);
  void Stop();
  bool WaitForSignal(absl::Duration timeout) const;
  int NumRunning(const std::string& role) const {
    const auto is_one = [&](const Child& child) {
      return child.role() == role && child.is_running();
    };
    return static_cast<int>(std::count_if(children_.begin(), children_.end(), is_one));
  }
  HttpUrl Endpoint(const std::string& path) const {
    return {.host = options_.host == "0.0.0.0" ? "127.0.0.1" : options_.host,
            .port = std::to_string(port_),
            .path = path};
  }

  const UpOptions& options_;
  const std::string program_folder_;
  const SteadyClock clock_;
  sigset_t signals_;
  int port_;
  std::set<int> given_ports_;
  std::string log_folder_;
  std::vector<Child> children_;
  std::vector<json> ports_;  // of each child
  std::vector<std::string> sessions_;
  absl::Time started_ = clock_.Now();
  std::string shown_;
  bool is_ready_ = false, is_stopped_ = false, has_failed_ = false;
};

absl::Status Cluster::CheckSettings() const {
  for (const std::string& setting : options_.settings) {
    const std::string target = setting.substr(0, setting.find('.'));
    if (target != "router" && target != "prefill" && target != "decode")
      return absl::InvalidArgumentError(absl::StrFormat(
          "--set %s: want router.KEY=VALUE, prefill.KEY=VALUE or decode.KEY=VALUE", setting));
  }
  return absl::OkStatus();
}

absl::Status Cluster::Start() {
  RETURN_IF_ERROR(CheckSettings());
  // Before anything starts: who holds the port would answer /ready in the router's place.
  if (port_ != 0) RETURN_IF_ERROR(CheckPortIsFree(options_.host, port_));
  given_ports_.insert(port_);
  log_folder_ = options_.log_folder;
  if (log_folder_.empty()) {
    std::string pattern = (std::filesystem::temp_directory_path() / "baton-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr)
      return absl::UnavailableError(absl::StrFormat("%s cannot be created", pattern));
    log_folder_ = pattern;
  }
  std::error_code error;
  std::filesystem::create_directories(log_folder_, error);
  if (error) return absl::UnavailableError(absl::StrFormat("%s: %s", log_folder_, error.message()));
  std::printf("starting 1 router, %d prefill and %d decode worker(s) with %s; logs in %s\n",
              options_.num_prefill, options_.num_decode, options_.model.c_str(),
              log_folder_.c_str());
  for (int i = 0; i < options_.num_prefill; ++i) RETURN_IF_ERROR(StartWorker("prefill", i));
  for (int i = 0; i < options_.num_decode; ++i) RETURN_IF_ERROR(StartWorker("decode", i));
  return StartRouter();
}

absl::Status Cluster::StartWorker(const std::string& role, int index) {
  ASSIGN_OR_RETURN(const int session_port, FreePort(given_ports_));
  ASSIGN_OR_RETURN(const int metrics_port, FreePort(given_ports_));
  // The two pools share the machine's cores; the workers of one pool divide them.
  const int pool = role == "prefill" ? options_.num_prefill : options_.num_decode;
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const std::string name = absl::StrFormat("%s-%d", role, index);
  sessions_.push_back(absl::StrFormat("127.0.0.1:%d", session_port));
  // timers=dev: on a machine whose cores are all computing, a beat may be late without anybody
  // being dead.
  return StartChild(
      name, role,
      {"checkpoint=" + options_.model, "worker_id=" + name, "listen=" + sessions_.back(),
       absl::StrFormat("metrics_listen=127.0.0.1:%d", metrics_port), "kv.listen=127.0.0.1:0",
       absl::StrFormat("engine.threads=%d", std::max(1, (cores + pool - 1) / pool)), "timers=dev"},
      {{"session_port", session_port}, {"metrics_port", metrics_port}});
}

absl::Status Cluster::StartRouter() {
  if (port_ == 0) {
    ASSIGN_OR_RETURN(port_, FreePort(given_ports_));
  }
  std::string workers;
  for (const std::string& session : sessions_) workers += (workers.empty() ? "" : ",") + session;
  return StartChild("router", "router",
                    {"model=" + options_.model, "workers=" + workers, "http.host=" + options_.host,
                     absl::StrFormat("http.port=%d", port_), "sessions.beat_interval_ms=1000",
                     "sessions.silence_ms=10000", "plan.suspect_after_ms=5000"},
                    {{"http_port", port_}});
}

absl::Status Cluster::StartChild(const std::string& name, const std::string& role,
                                 std::vector<std::string> settings, json ports) {
  const std::string prefix = role + ".";
  for (const std::string& setting : options_.settings)
    if (setting.rfind(prefix, 0) == 0) settings.push_back(setting.substr(prefix.size()));
  std::vector<std::string> arguments;
  for (std::string& setting : settings) {
    arguments.push_back("--set");
    arguments.push_back(std::move(setting));
  }
  ASSIGN_OR_RETURN(Child child, Child::Start({.name = name,
                                              .role = role,
                                              .program = program_folder_ + "/baton-" + role,
                                              .arguments = std::move(arguments),
                                              .log_path = log_folder_ + "/" + name + ".log"}));
  children_.push_back(std::move(child));
  ports_.push_back(std::move(ports));
  return absl::OkStatus();
}

bool Cluster::WaitForSignal(absl::Duration timeout) const {
  const timespec wait = absl::ToTimespec(timeout);
  return sigtimedwait(&signals_, nullptr, &wait) > 0;
}

bool Cluster::WaitUntilReady() {
  while (!is_ready_ && !is_stopped_ && !has_failed_) {
    Watch();
    ShowProgress();
  }
  std::printf("\n");
  return is_ready_;
}

// Ready means that all workers are, not only enough of them.
void Cluster::ShowProgress() {
  const auto reply = Fetch({.url = Endpoint("/ready"), .timeout = absl::Seconds(5)});
  const ReadyWorkers ready = reply.ok() ? ReadyWorkersOf(reply->body) : ReadyWorkers{};
  is_ready_ = ready.prefill >= options_.num_prefill && ready.decode >= options_.num_decode;
  const std::string state =
      absl::StrFormat("router %s, prefill %d/%d, decode %d/%d", reply.ok() ? "up" : "starting",
                      ready.prefill, options_.num_prefill, ready.decode, options_.num_decode);
  const bool is_terminal = isatty(STDOUT_FILENO) != 0;
  if (!is_terminal && state == shown_) return;
  shown_ = state;
  std::printf("%s%s (%.0f s)", is_terminal ? "\r" : "\n", state.c_str(),
              absl::ToDoubleSeconds(clock_.Now() - started_));
  std::fflush(stdout);
}

void Cluster::Announce() {
  if (const absl::Status status = WriteState(); !status.ok()) {
    std::fprintf(stderr, "baton up: %s\n", std::string(status.message()).c_str());
    has_failed_ = true;
    return;
  }
  const HttpUrl url = Endpoint("");
  std::printf(
      "ready: http://%s:%s/v1\n\n"
      "  curl -s http://%s:%s/v1/chat/completions -H 'Content-Type: application/json' -d "
      "'{\"messages\": [{\"role\": \"user\", "
      "\"content\": \"What is the capital of France?\"}], \"temperature\": 0, "
      "\"reasoning_effort\": \"none\"}'\n\n"
      "  %s/baton chat --url http://%s:%s      talk to it\n"
      "  %s/baton inspect http://%s:%s         look at it\n\n"
      "Ctrl-C stops everything.\n",
      url.host.c_str(), url.port.c_str(), url.host.c_str(), url.port.c_str(),
      program_folder_.c_str(), url.host.c_str(), url.port.c_str(), program_folder_.c_str(),
      url.host.c_str(), url.port.c_str());
  std::fflush(stdout);
}

absl::Status Cluster::WriteState() const {
  if (options_.state_file.empty()) return absl::OkStatus();
  json processes = json::array();
  for (size_t i = 0; i < children_.size(); ++i) {
    json entry = ports_[i];
    entry["name"] = children_[i].name();
    entry["role"] = children_[i].role();
    entry["pid"] = children_[i].pid();
    entry["log"] = children_[i].log_path();
    processes.push_back(std::move(entry));
  }
  const HttpUrl url = Endpoint("");
  const json state = {{"endpoint", "http://" + url.host + ":" + url.port},
                      {"port", port_},
                      {"processes", processes}};
  const std::string next = options_.state_file + ".next";  // a reader sees all of it or nothing
  std::ofstream(next) << state.dump(2) << "\n";
  std::error_code error;
  std::filesystem::rename(next, options_.state_file, error);
  if (error)
    return absl::UnavailableError(absl::StrFormat("%s: %s", options_.state_file, error.message()));
  return absl::OkStatus();
}

void Cluster::Watch() {
  if (WaitForSignal(kTick)) is_stopped_ = true;
  for (Child& child : children_)
    if (child.Reap()) OnEnd(child);
}

// A worker that is lost while another of its kind runs is what the cluster is built for: it goes
// on.
void Cluster::OnEnd(const Child& child) {
  std::fprintf(stderr, "\n%s (pid %d) %s\n", child.name().c_str(), child.pid(),
               child.HowItEnded().c_str());
  if (is_ready_ && NumRunning(child.role()) > 0) {
    std::fprintf(stderr, "%d %s worker(s) left, going on\n", NumRunning(child.role()),
                 child.role().c_str());
    return;
  }
  if (std::exchange(has_failed_, true)) return;  // the first end says why
  std::fprintf(stderr, "the end of %s:\n%s", child.log_path().c_str(),
               child.LogTail(kTailLines).c_str());
}

// The router first, so that it can finish what is open; a second signal, or time, kills.
void Cluster::Stop() {
  bool is_hard = false;
  for (const bool is_router : {true, false}) {
    const auto is_group = [&](const Child& child) {
      return (child.role() == "router") == is_router;
    };
    for (const Child& child : children_)
      if (is_group(child)) child.Signal(SIGTERM);
    const absl::Time until = clock_.Now() + kStopTime;
    const auto runs = [&](Child& child) {
      return is_group(child) && (child.Reap(), child.is_running());
    };
    while (std::any_of(children_.begin(), children_.end(), runs)) {
      is_hard = is_hard || WaitForSignal(absl::Milliseconds(20)) || clock_.Now() > until;
      if (!is_hard) continue;
      for (const Child& child : children_) child.Signal(SIGKILL);
      WaitForSignal(absl::Milliseconds(20));
    }
  }
  std::printf("stopped\n");
}

}  // namespace

int RunUp(const UpOptions& options, const std::string& program_folder) {
  return Cluster(options, program_folder).Run();
}

}  // namespace baton::cli
