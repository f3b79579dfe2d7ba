#include "worker/worker_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton::worker {
namespace {

using testing::HasSubstr;

WorkerConfig Valid() {
  WorkerConfig config;
  config.checkpoint = "models/demo";
  config.serve = {"decode"};
  return config;
}

TEST(WorkerConfig, ReadsNestedKeysAndRefusesWhatItDoesNotKnow) {
  WorkerConfig config;
  ConfigReader reader;
  BindConfig(reader, config);
  const absl::Status status = reader.ReadText(
      "checkpoint: here\nserve: [prefill, decode]\nengine:\n  pages: 77\nwedge_floor_ms: 500\n",
      "test.yaml");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(config.pages, 77);
  EXPECT_TRUE(config.serves("prefill") && config.serves("decode"));
  EXPECT_EQ(config.wedge_floor, absl::Milliseconds(500));
  EXPECT_THAT(std::string(reader.Set("engine.page=1").message()), HasSubstr("engine.page"));
  EXPECT_THAT(std::string(reader.Set("engine.num_drafts=4").message()), HasSubstr("3"));
}

TEST(WorkerConfig, DevTimersAreTheContracts) {
  WorkerConfig config = Valid();
  EXPECT_EQ(config.silence(), absl::Seconds(2));
  config.timers = "dev";
  EXPECT_EQ(config.silence(), absl::Seconds(10));
  EXPECT_EQ(config.beat(), absl::Seconds(1));
}

TEST(WorkerConfig, ChecksNameTheKeys) {
  EXPECT_TRUE(Validate(Valid()).ok());
  auto message_of = [](auto change) {
    WorkerConfig config = Valid();
    change(config);
    return std::string(Validate(config).message());
  };
  EXPECT_THAT(message_of([](auto& c) { c.checkpoint.clear(); }), HasSubstr("checkpoint"));
  EXPECT_THAT(message_of([](auto& c) { c.serve = {"train"}; }), HasSubstr("\"train\""));
  EXPECT_THAT(message_of([](auto& c) { c.serve.clear(); }), HasSubstr("serve"));
  EXPECT_THAT(message_of([](auto& c) { c.chunk_tokens = 300; }), HasSubstr("300"));
  EXPECT_THAT(message_of([](auto& c) { c.chunk_tokens = 2048; }), HasSubstr("max_rows 1024"));
}

TEST(WorkerConfig, ARequiredTransportMustCarryTheBlocks) {
  WorkerConfig config = Valid();
  EXPECT_TRUE(CheckTransports(config, "tcp").ok());
  config.kv_required = "rc";
  config.kv_transports = "rc,tcp";
  EXPECT_TRUE(CheckTransports(config, "tcp,rc_mlx5").ok());
  EXPECT_TRUE(CheckTransports(config, "rc").ok());
  EXPECT_THAT(std::string(CheckTransports(config, "tcp").message()),
              HasSubstr("kv.required is rc, but of kv.transports rc,tcp it is tcp"));
  EXPECT_FALSE(CheckTransports(config, "rcx").ok());
  EXPECT_FALSE(CheckTransports(config, "").ok());
}

}  // namespace
}  // namespace baton::worker
