#include "kvtransfer/agent_thread.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::kvtransfer {
namespace {

constexpr size_t kCommandsPerRound = 256;
constexpr absl::Duration kMaxSleep = absl::Milliseconds(100);
constexpr absl::Duration kPollSleep =
    absl::Milliseconds(1);  // without a descriptor, or with events waiting

absl::Status AddToEpoll(int epoll_fd, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrFormat("epoll_ctl of descriptor %d: errno %d", fd, errno));
}

}  // namespace

AgentThread::AgentThread(const AgentThreadConfig& config, TransferAgent& agent,
                         Transport& transport, const Clock& clock)
    : config_(config),
      agent_(agent),
      transport_(transport),
      clock_(clock),
      commands_(config.max_commands),
      events_(config.max_events) {}

absl::StatusOr<std::unique_ptr<AgentThread>> AgentThread::Create(const AgentThreadConfig& config,
                                                                 TransferAgent& agent,
                                                                 Transport& transport,
                                                                 const Clock& clock,
                                                                 std::function<void()> on_events) {
  std::unique_ptr<AgentThread> self(new AgentThread(config, agent, transport, clock));
  self->on_events_ = std::move(on_events);
  if (absl::Status status = self->OpenDescriptors(); !status.ok()) return status;
  self->thread_ = std::thread([raw = self.get()] { raw->Loop(); });
  return self;
}

absl::Status AgentThread::OpenDescriptors() {
  wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  if (wake_fd_ < 0 || epoll_fd_ < 0)
    return absl::InternalError(
        absl::StrFormat("no descriptor for the transfer thread: errno %d", errno));
  absl::Status status = AddToEpoll(epoll_fd_, wake_fd_);
  if (status.ok() && transport_.WakeFd() >= 0) status = AddToEpoll(epoll_fd_, transport_.WakeFd());
  return status;
}

AgentThread::~AgentThread() {
  is_stopping_ = true;
  if (thread_.joinable()) {
    Wake();
    thread_.join();
  }
  if (wake_fd_ >= 0) close(wake_fd_);
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

absl::Status AgentThread::Execute(AgentCommand command) {
  if (!commands_.TryPush(std::move(command)))
    return absl::ResourceExhaustedError(
        absl::StrFormat("transfer queue is full: %d commands", commands_.limit()));
  if (is_sleeping_) Wake();
  return absl::OkStatus();
}

void AgentThread::Wake() {
  const uint64_t one = 1;
  // A full counter means it is awake already.
  const ssize_t written = write(wake_fd_, &one, sizeof(one));
  CHECK(written == sizeof(one) || errno == EAGAIN);
}

void AgentThread::Loop() {
  if (config_.on_start) config_.on_start();
  absl::Time last_work = clock_.Now();
  while (!is_stopping_) {
    const int work = DrainCommands() + agent_.RunOnce() + PushEvents();
    const absl::Time now = clock_.Now();
    if (work > 0) last_work = now;
    if (!agent_.MustPoll() && now - last_work >= config_.spin) Sleep();
  }
}

int AgentThread::DrainCommands() {
  if (!backlog_.empty()) return 0;
  batch_.clear();
  const size_t count = commands_.Drain(batch_, kCommandsPerRound, absl::ZeroDuration());
  for (AgentCommand& command : batch_) agent_.Execute(std::move(command));
  return static_cast<int>(count);
}

int AgentThread::PushEvents() {
  for (AgentEvent& event : agent_.TakeEvents()) backlog_.push_back(std::move(event));
  int pushed = 0;
  while (!backlog_.empty() && events_.TryPush(std::move(backlog_.front()))) {
    backlog_.pop_front();
    ++pushed;
  }
  if (pushed > 0 && on_events_) on_events_();
  return pushed;
}

void AgentThread::Sleep() {
  is_sleeping_ = true;
  // A command pushed before the flag was seen would wait for the timeout.
  const bool may_sleep = commands_.Size() == 0 && !is_stopping_;
  if (may_sleep || !backlog_.empty()) {
    absl::Duration timeout = std::min(kMaxSleep, agent_.NextTimer() - clock_.Now());
    if (transport_.WakeFd() < 0 || !backlog_.empty()) timeout = std::min(timeout, kPollSleep);
    timeout = std::max(timeout, absl::ZeroDuration());
    epoll_event events[2];
    epoll_wait(epoll_fd_, events, 2, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
  }
  is_sleeping_ = false;
  uint64_t count = 0;
  const ssize_t got = read(wake_fd_, &count, sizeof(count));
  CHECK(got == sizeof(count) || errno == EAGAIN);
}

}  // namespace baton::kvtransfer
