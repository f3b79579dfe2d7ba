#include "engine/load/safetensors.h"

#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace baton::engine {
namespace {

using ::testing::HasSubstr;

// A file with that header and so many data bytes; the header is padded to 8.
std::vector<std::byte> File(std::string header, size_t data_bytes) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  std::vector<std::byte> file(8 + header.size() + data_bytes);
  std::memcpy(file.data(), &length, 8);
  std::memcpy(file.data() + 8, header.data(), header.size());
  for (size_t i = 0; i < data_bytes; ++i) file[8 + header.size() + i] = static_cast<std::byte>(i);
  return file;
}

std::string ErrorOf(const std::string& header, size_t data_bytes) {
  const std::vector<std::byte> file = File(header, data_bytes);
  const auto tensors = ParseSafetensors(file, "shard");
  if (tensors.ok()) return "accepted";
  EXPECT_EQ(tensors.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(tensors.status().message(), HasSubstr("shard: "));
  return std::string(tensors.status().message());
}

constexpr char kGood[] =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
    R"("a":{"dtype":"I8","shape":[3,1],"data_offsets":[8,11]}})";

TEST(Safetensors, GivesTensorsByName) {
  const std::vector<std::byte> file = File(kGood, 11);
  const auto tensors = ParseSafetensors(file, "shard");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[0].dtype, DType::kI8);
  EXPECT_EQ((*tensors)[0].shape, (std::vector<int64_t>{3, 1}));
  ASSERT_EQ((*tensors)[0].bytes.size(), 3u);
  EXPECT_EQ(std::to_integer<int>((*tensors)[0].bytes[0]), 8);
  EXPECT_EQ((*tensors)[1].name, "b");
}

TEST(Safetensors, TruncatedFilesAreRefusedAtEveryLength) {
  const std::vector<std::byte> file = File(kGood, 11);
  for (size_t size = 0; size < file.size(); ++size)
    EXPECT_FALSE(ParseSafetensors(std::span(file).first(size), "shard").ok()) << size;
}

TEST(Safetensors, HeaderLengthHasALimit) {
  std::vector<std::byte> file = File(kGood, 11);
  const uint64_t length = 100'000'001;
  std::memcpy(file.data(), &length, 8);
  EXPECT_THAT(ParseSafetensors(file, "shard").status().ToString(),
              HasSubstr("header length 100000001, at most"));
}

TEST(Safetensors, HeadersThatAreNoneAreRefused) {
  EXPECT_THAT(ErrorOf("{", 0), HasSubstr("no JSON object"));
  EXPECT_THAT(ErrorOf("[]", 0), HasSubstr("no JSON object"));
  EXPECT_THAT(ErrorOf(R"({"a":[[[[1]]]]})", 0), HasSubstr("nested deeper than 3"));
  EXPECT_THAT(ErrorOf(R"({"a":1})", 0), HasSubstr("tensor a: entry is no JSON object"));
}

TEST(Safetensors, BadNamesAreRefused) {
  const std::string entry = R"(:{"dtype":"I8","shape":[1],"data_offsets":[0,1]})";
  EXPECT_THAT(ErrorOf("{\"a b\"" + entry + "}", 1), HasSubstr("tensor a b: name has a space"));
  EXPECT_THAT(ErrorOf("{\"a\\nb\"" + entry + "}", 1), HasSubstr("tensor a?b: name has a space"));
  EXPECT_THAT(ErrorOf("{\"\"" + entry + "}", 1), HasSubstr("name has 0 bytes"));
  EXPECT_THAT(ErrorOf("{\"a\"" + entry + ",\"a\"" + entry + "}", 1),
              HasSubstr("tensor a: appears twice"));
}

TEST(Safetensors, BadEntriesAreRefusedByTensor) {
  const auto error = [](const std::string& entry) { return ErrorOf("{\"w\":{" + entry + "}}", 8); };
  EXPECT_THAT(error(R"("shape":[8],"data_offsets":[0,8])"),
              HasSubstr("tensor w: dtype is missing"));
  EXPECT_THAT(error(R"("dtype":"F64","shape":[1],"data_offsets":[0,8])"),
              HasSubstr("dtype F64 is not known"));
  EXPECT_THAT(error(R"("dtype":"F32","data_offsets":[0,8])"), HasSubstr("shape is missing"));
  EXPECT_THAT(error(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), HasSubstr("no size"));
  EXPECT_THAT(error(R"("dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,8])"),
              HasSubstr("no size"));
  EXPECT_THAT(error(R"("dtype":"I8","shape":[1,1,1,1,1,1,1,1,8],"data_offsets":[0,8])"),
              HasSubstr("9 dimensions, at most 8"));
  EXPECT_THAT(error(R"("dtype":"F32","shape":[2])"), HasSubstr("data_offsets are missing"));
  EXPECT_THAT(error(R"("dtype":"F32","shape":[2],"data_offsets":[0,9])"),
              HasSubstr("data_offsets 0..9, the file has 8"));
  EXPECT_THAT(error(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"),
              HasSubstr("data_offsets 8..0"));
  EXPECT_THAT(error(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"),
              HasSubstr("has 8 bytes, its shape and dtype need 4"));
}

TEST(Safetensors, TensorsTileTheData) {
  const auto two = [](const std::string& first, const std::string& second, size_t bytes) {
    return ErrorOf(R"({"a":{"dtype":"I8","shape":[4],"data_offsets":)" + first +
                       R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)" + second + "}}",
                   bytes);
  };
  EXPECT_EQ(two("[0,4]", "[4,8]", 8), "accepted");
  EXPECT_THAT(two("[0,4]", "[0,4]", 8), HasSubstr("inside another tensor"));
  EXPECT_THAT(two("[0,4]", "[3,7]", 8), HasSubstr("tensor b: starts at data byte 3, inside"));
  EXPECT_THAT(two("[0,4]", "[5,9]", 9), HasSubstr("tensor b: starts at data byte 5, after a gap"));
  EXPECT_THAT(two("[0,4]", "[4,8]", 9), HasSubstr("1 bytes after the last tensor"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},)"
                      R"("b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
                      5),
              HasSubstr("tensor b: starts at data byte 1, not aligned to 4"));
}

TEST(SafetensorsFile, ThatIsNoneIsRefusedByPath) {
  EXPECT_EQ(SafetensorsFile::Open("no/such/file").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(SafetensorsFile::Open("no/such/file").status().ToString(), HasSubstr("no/such/file"));
  EXPECT_FALSE(SafetensorsFile::Open("tests").ok());
}

TEST(SafetensorsFile, FindsTheGoldenTensors) {
  const auto file = SafetensorsFile::Open("tests/data/golden/tiny-a/golden.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  const HostTensor* tokens = file->Find("s1.tokens");
  ASSERT_NE(tokens, nullptr);
  EXPECT_EQ(tokens->dtype, DType::kI32);
  EXPECT_EQ(tokens->shape, (std::vector<int64_t>{5}));
  EXPECT_EQ(file->Find("s1.token"), nullptr);
}

}  // namespace
}  // namespace baton::engine
