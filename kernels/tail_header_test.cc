#include "kernels/tail_header.h"

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/test_layout.h"

namespace baton::kernels {
namespace {

using ::testing::HasSubstr;

template <typename Id>
Id Counting(uint8_t first) {
  Id id;
  for (size_t i = 0; i < id.bytes.size(); ++i) id.bytes[i] = static_cast<uint8_t>(first + i);
  return id;
}

TailHeader Header() {
  TailHeader header;
  header.has_no_drafter_state = true;
  header.num_tokens = 0x0102;
  header.layout = SmallLayout().Id();
  header.weights = Counting<WeightsId>(0x20);
  header.prompt_class = Counting<ClassId>(0x40);
  header.num_sequences = 2;
  header.total_bytes = static_cast<uint32_t>(MakeTailLayout(SmallLayout(), 0x0102, 2).total_bytes);
  header.last_full_page = Counting<PageName>(0x60);
  return header;
}

std::vector<std::byte> Wire(const TailHeader& header) {
  std::vector<std::byte> wire(header.total_bytes);
  EncodeTailHeader(header, wire);
  return wire;
}

std::string DecodeError(std::vector<std::byte> wire, size_t offset, uint8_t value) {
  wire[offset] = std::byte{value};
  const auto header = DecodeTailHeader(wire);
  EXPECT_EQ(header.status().code(), absl::StatusCode::kDataLoss);
  return std::string(header.status().message());
}

TEST(TailHeader, LiesInTheBytesOfTheContract) {
  const std::vector<std::byte> wire = Wire(Header());
  const auto at = [&wire](size_t i) { return std::to_integer<int>(wire[i]); };
  EXPECT_EQ(at(0), 'B');
  EXPECT_EQ(at(1), 'A');
  EXPECT_EQ(at(2), 'T');
  EXPECT_EQ(at(3), 'L');
  EXPECT_EQ(at(4), 1);  // version
  EXPECT_EQ(at(6), 2);  // flags: no drafter state
  EXPECT_EQ(at(8), 2);  // N = 0x0102
  EXPECT_EQ(at(9), 1);
  EXPECT_EQ(at(16), SmallLayout().Id().bytes[0]);
  EXPECT_EQ(at(24), 0x20);  // weights
  EXPECT_EQ(at(40), 0x40);  // class
  EXPECT_EQ(at(48), 2);     // sequences
  EXPECT_EQ(at(56), 0x60);  // last full page
  EXPECT_EQ(at(71), 0x6f);
  for (size_t i = 72; i < 128; ++i) EXPECT_EQ(at(i), 0) << i;
}

TEST(TailHeader, ComesBackAsItWent) {
  const TailHeader header = Header();
  const auto back = DecodeTailHeader(Wire(header));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->is_boundary, false);
  EXPECT_EQ(back->has_no_drafter_state, true);
  EXPECT_EQ(back->num_tokens, header.num_tokens);
  EXPECT_EQ(back->layout, header.layout);
  EXPECT_EQ(back->weights, header.weights);
  EXPECT_EQ(back->prompt_class, header.prompt_class);
  EXPECT_EQ(back->num_sequences, 2u);
  EXPECT_EQ(back->total_bytes, header.total_bytes);
  EXPECT_EQ(back->last_full_page, header.last_full_page);
}

TEST(TailHeader, NamesTheFieldThatIsWrong) {
  const std::vector<std::byte> wire = Wire(Header());
  EXPECT_THAT(DecodeError(wire, 0, 'X'), HasSubstr("magic"));
  EXPECT_THAT(DecodeError(wire, 4, 2), HasSubstr("version"));
  EXPECT_THAT(DecodeError(wire, 6, 4), HasSubstr("flags"));
  EXPECT_THAT(DecodeError(wire, 6, 1), HasSubstr("num_sequences"));
  EXPECT_THAT(DecodeError(wire, 55, 1), HasSubstr("total_bytes"));
  EXPECT_THAT(DecodeError(wire, 127, 1), HasSubstr("padding"));
  std::vector<std::byte> empty = wire;
  empty[9] = std::byte{0};
  EXPECT_THAT(DecodeError(empty, 8, 0), HasSubstr("num_tokens"));
  const std::vector<std::byte> cut(100);
  EXPECT_EQ(DecodeTailHeader(cut).status().code(), absl::StatusCode::kDataLoss);
}

TEST(TailHeader, OfAnotherLayoutOrModelIsRefused) {
  const PageLayout pages = SmallLayout();
  EXPECT_TRUE(CheckTailHeader(Header(), pages, Header().weights).ok());
  EXPECT_THAT(CheckTailHeader(Header(), pages, WeightsId{}).ToString(), HasSubstr("weights_id"));
  TailHeader header = Header();
  header.layout = LayoutId{};
  EXPECT_THAT(CheckTailHeader(header, pages, header.weights).ToString(), HasSubstr("layout_id"));
  header = Header();
  header.num_tokens += 1;
  EXPECT_THAT(CheckTailHeader(header, pages, header.weights).ToString(), HasSubstr("total_bytes"));
}

TEST(FirstTokens, ComeBackAsTheyWent) {
  std::vector<std::byte> wire = Wire(Header());
  const TokenRecord plain = {.token = 129'279, .logprob = 0, .top = {}};
  TokenRecord full = {.token = 7, .logprob = -0.5f, .top = {}};
  for (int i = 0; i < kMaxTopLogprobs; ++i)
    full.top.push_back({.token = 100 + i, .logprob = -0.25f * static_cast<float>(i)});
  const std::span<std::byte> section = std::span(wire).last(2 * kFirstTokenBytes);
  EncodeFirstToken(plain, section.first(kFirstTokenBytes));
  EncodeFirstToken(full, section.last(kFirstTokenBytes));
  const auto records = DecodeFirstTokens(Header(), wire);
  ASSERT_TRUE(records.ok()) << records.status();
  EXPECT_EQ(*records, (std::vector<TokenRecord>{plain, full}));
}

TEST(FirstTokens, WithAWrongFieldAreRefused) {
  std::array<std::byte, kFirstTokenBytes> entry;
  const auto error = [&entry](size_t offset, uint8_t value) {
    EncodeFirstToken({.token = 3, .logprob = -1, .top = {{.token = 3, .logprob = -1}}}, entry);
    entry[offset] = std::byte{value};
    return DecodeFirstToken(entry).status().ToString();
  };
  EXPECT_THAT(error(8, 21), HasSubstr("count is 21, limit 20"));
  EXPECT_THAT(error(3, 0x80), HasSubstr("token is 2147483651"));
  EXPECT_THAT(error(12, 1), HasSubstr("zero field"));
  EXPECT_THAT(error(19, 0xff), HasSubstr("top token"));
  EXPECT_THAT(error(175, 1), HasSubstr("unused entries"));
}

}  // namespace
}  // namespace baton::kernels
