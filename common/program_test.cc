#include "common/program.h"

#include <csignal>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace baton {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ReadArgumentsTest : public testing::Test {
 protected:
  ReadArgumentsTest() { reader_.Bind("port", &port_, 0, 65'535, "a port"); }
  absl::Status Read(std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "program");
    return ReadArguments(static_cast<int>(arguments.size()), arguments.data(), reader_,
                         {{"--model",
                           [this](const std::string& value) {
                             models_.push_back(value);
                             return absl::OkStatus();
                           }}},
                         read_);
  }

  int port_ = 1;
  ConfigReader reader_;
  std::vector<std::string> models_;
  ProgramArguments read_;
};

TEST_F(ReadArgumentsTest, TakesBothFormsInTheirOrder) {
  ASSERT_TRUE(Read({"--set", "port=2", "--model", "a", "--set=port=3", "--model=b=c"}).ok());
  EXPECT_EQ(port_, 3);
  EXPECT_THAT(models_, ElementsAre("a", "b=c"));
  EXPECT_FALSE(read_.wants_help || read_.wants_version || read_.wants_keys);
}

TEST_F(ReadArgumentsTest, TakesFlags) {
  ASSERT_TRUE(Read({"-h", "--version", "--keys"}).ok());
  EXPECT_TRUE(read_.wants_help && read_.wants_version && read_.wants_keys);
}

TEST_F(ReadArgumentsTest, NamesWhatItDoesNotTake) {
  EXPECT_EQ(Read({"--modle=x"}).message(), "argument --modle=x is not known");
  EXPECT_EQ(Read({"port=2"}).message(), "argument port=2 is not known");
  EXPECT_EQ(Read({"--model"}).message(), "--model needs a value");
  EXPECT_THAT(std::string(Read({"--set=port=70000"}).message()), HasSubstr("port"));
  EXPECT_EQ(port_, 1);
}

TEST(StopSignals, AreSeenByWhoeverWaits) {
  const sigset_t signals = BlockStopSignals();
  EXPECT_FALSE(WaitForSignal(signals, absl::Milliseconds(1)));
  std::raise(SIGTERM);
  EXPECT_TRUE(WaitForSignal(signals, absl::Seconds(1)));
  EXPECT_FALSE(WaitForSignal(signals, absl::Milliseconds(1)));
}

}  // namespace
}  // namespace baton
