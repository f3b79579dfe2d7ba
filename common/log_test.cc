#include "common/log.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

TEST(QuotedForLog, IsOneValue) {
  EXPECT_EQ(QuotedForLog("/v1/models/a status=200"), "\"/v1/models/a status=200\"");
  EXPECT_EQ(QuotedForLog("a\" b=\"\\"), "\"a\\\" b=\\\"\\\\\"");
  EXPECT_EQ(QuotedForLog(std::string(300, 'x')), "\"" + std::string(256, 'x') + "...\"");
}

}  // namespace
}  // namespace baton
