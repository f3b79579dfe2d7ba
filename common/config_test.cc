#include "common/config.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

struct Example {
  int window = 64;
  double ratio = 0.5;
  bool is_on = false;
  std::string mode = "fast";
  std::vector<std::string> names;
  absl::Duration silence = absl::Seconds(2);
};

ConfigReader Reader(Example& e) {
  ConfigReader reader;
  reader.Bind("transfer.window", &e.window, 1, 128, "blocks in flight");
  reader.Bind("ratio", &e.ratio, 0.0, 1.0, "share");
  reader.Bind("is_on", &e.is_on, "switch");
  reader.BindChoice("mode", &e.mode, {"fast", "slow"}, "speed");
  reader.Bind("names", &e.names, "workers");
  reader.BindMs("silence_ms", &e.silence, absl::Milliseconds(100), absl::Seconds(60), "silence");
  return reader;
}

TEST(ConfigReader, ReadsEveryKindOfField) {
  Example e;
  ConfigReader reader = Reader(e);
  ASSERT_TRUE(reader
                  .ReadText("transfer: {window: 8}\nratio: 0.25\nis_on: true\nmode: slow\nnames: "
                            "[a, b]\nsilence_ms: 500\n",
                            "file.yaml")
                  .ok());
  EXPECT_EQ(e.window, 8);
  EXPECT_EQ(e.ratio, 0.25);
  EXPECT_TRUE(e.is_on);
  EXPECT_EQ(e.mode, "slow");
  EXPECT_EQ(e.names, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(e.silence, absl::Milliseconds(500));
}

TEST(ConfigReader, NamesKeyValueAndLimitInErrors) {
  Example e;
  ConfigReader reader = Reader(e);
  EXPECT_EQ(reader.ReadText("transfer: {window: 129}", "f").message(),
            "f: transfer.window: 129 is outside 1..128");
  EXPECT_EQ(reader.ReadText("windo: 1", "f").message(), "f: unknown key windo");
  EXPECT_EQ(reader.Set("mode=medium").message(), "--set: mode: 'medium' is none of fast,slow");
  EXPECT_EQ(reader.Set("transfer.window=x").message(),
            "--set: transfer.window: 'x' is not a number");
  EXPECT_EQ(reader.Set("ratio").message(), "--set ratio: want key=value");
  EXPECT_FALSE(reader.ReadText("a: [", "f").ok());
  EXPECT_FALSE(reader.ReadText("mode: [fast, slow]", "f").ok());
  EXPECT_FALSE(reader.ReadFile("no/such/file.yaml").ok());
  EXPECT_EQ(e.window, 64);
}

TEST(ConfigReader, SetSplitsListsAndPrintsWhatRuns) {
  Example e;
  ConfigReader reader = Reader(e);
  ASSERT_TRUE(reader.Set("names=x:1,y:2").ok());
  EXPECT_NE(reader.Print().find("names=x:1,y:2\n"), std::string::npos);
  EXPECT_NE(reader.Reference().find("| `transfer.window` | `64` | 1..128 | blocks in flight |"),
            std::string::npos);
}

}  // namespace
}  // namespace baton
