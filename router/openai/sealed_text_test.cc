#include "router/openai/sealed_text.h"

#include <gtest/gtest.h>

namespace baton::router {
namespace {

TEST(TextSealer, OpensWhatItSealed) {
  const TextSealer sealer("a secret of the router's");
  const TextSealer same("a secret of the router's");
  for (const std::string& text :
       {std::string(), std::string("what it thought"), std::string(100'000, 'x')}) {
    const std::string blob = sealer.Seal(text);
    EXPECT_EQ(blob.substr(0, 4), "bt1.");
    EXPECT_EQ(blob.find("what it"), std::string::npos);
    EXPECT_NE(blob, sealer.Seal(text));  // each has its nonce
    const auto opened = same.Open(blob);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(opened->value_or("nothing"), text);
  }
}

TEST(TextSealer, NoticesEveryChangeOfAByte) {
  const TextSealer sealer("a secret of the router's");
  const std::string blob = sealer.Seal("reasoning");
  for (size_t i = 0; i < blob.size(); ++i) {
    std::string changed = blob;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    const auto opened = sealer.Open(changed);
    EXPECT_TRUE(!opened.ok() || !opened->has_value()) << i;
  }
  for (size_t size = 4; size < blob.size(); ++size) {
    const auto opened = sealer.Open(blob.substr(0, size));
    EXPECT_TRUE(!opened.ok() || !opened->has_value()) << size;
  }
}

TEST(TextSealer, PassesOverWhatOthersSealed) {
  const TextSealer sealer(""), other("");
  for (const std::string& blob : {other.Seal("x"), std::string("gAAAA"), std::string()}) {
    const auto opened = sealer.Open(blob);
    ASSERT_TRUE(opened.ok()) << blob;
    EXPECT_FALSE(opened->has_value()) << blob;
  }
  EXPECT_FALSE(sealer.Open("bt1.====").ok());
  EXPECT_FALSE(sealer.Open("bt1.!!!!").ok());
}

}  // namespace
}  // namespace baton::router
