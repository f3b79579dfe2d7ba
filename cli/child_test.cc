#include "cli/child.h"

#include <gtest/gtest.h>
#include <set>

namespace baton::cli {
namespace {

// Of 22,528 ports drawn 500 times some come twice (all but 1 time in 250).
TEST(FreePort, GivesNoPortTwice) {
  std::set<int> given;
  for (int i = 1; i <= 500; ++i) {
    ASSERT_TRUE(FreePort(given).ok());
    ASSERT_EQ(given.size(), static_cast<size_t>(i));
  }
}

}  // namespace
}  // namespace baton::cli
