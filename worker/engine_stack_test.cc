#include "worker/engine_stack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/clock.h"
#include "worker/hardware.h"

// Which back end a worker takes, and what it says of its memory before it takes it.
namespace baton::worker {
namespace {

using testing::HasSubstr;

WorkerConfig Config() {
  WorkerConfig config;
  config.checkpoint = "models/demo";
  config.serve = {"decode"};
  config.threads = 2;
  return config;
}

// A back end whose device is never there.
ComputeBackend Absent() {
  ComputeBackend backend;
  backend.name = "cuda";
  backend.make_device =
      [](const DeviceRequest&) -> absl::StatusOr<std::unique_ptr<kernels::Device>> {
    return absl::UnavailableError("no GPU here");
  };
  return backend;
}

std::string MessageOf(const WorkerConfig& config, const Backend& backend) {
  const SteadyClock clock;
  return std::string(EngineStack::Create(config, backend, clock).status().message());
}

TEST(EngineStackTest, AutoTakesTheFirstBackendThatHasADevice) {
  Backend backend = BuiltInBackend();
  backend.compute.insert(backend.compute.begin(), Absent());
  WorkerConfig config = Config();
  config.mode = "float32";  // no GPU computes it
  const SteadyClock clock;
  const auto stack = EngineStack::Create(config, backend, clock);
  ASSERT_TRUE(stack.ok()) << stack.status();
  EXPECT_EQ((*stack)->backend(), "cpu");
  EXPECT_EQ((*stack)->num_pages(), config.pages);
}

TEST(EngineStackTest, ABackendAskedForByNameIsTakenOrRefused) {
  WorkerConfig config = Config();
  config.backend = "cuda";
  Backend backend;
  backend.compute.push_back(Absent());
  EXPECT_THAT(MessageOf(config, backend), HasSubstr("no GPU here"));
  backend.compute[0].name = "cpu";
  EXPECT_THAT(MessageOf(config, backend),
              HasSubstr("engine.backend is cuda, this program was built with: cpu"));
}

TEST(EngineStackTest, PagesByMemoryNeedAGpu) {
  WorkerConfig config = Config();
  config.backend = "cpu";
  config.pages = 0;
  EXPECT_THAT(MessageOf(config, BuiltInBackend()), HasSubstr("engine.pages is 0"));
}

TEST(EngineStackTest, AContextBeyondThePagesIsRefused) {
  WorkerConfig config = Config();
  config.backend = "cpu";
  config.pages = 8;
  config.limits.max_context = 4096;
  EXPECT_THAT(MessageOf(config, BuiltInBackend()),
              HasSubstr("limits.max_context is 4096, engine.pages 8"));
}

}  // namespace
}  // namespace baton::worker
