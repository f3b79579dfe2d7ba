#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/check.h"
#include "common/config.h"

namespace baton {
namespace {

// A field of each kind.
struct Fields {
  int small = 1;
  int64_t large = 2;
  uint64_t size = 3;
  double number = 0.5;
  bool is_on = false;
  std::string text = "t";
  std::string choice = "a";
  std::vector<std::string> list;
  absl::Duration time = absl::Seconds(1);

  void Bind(ConfigReader& reader) {
    reader.Bind("small", &small, -5, 5, "h");
    reader.Bind("a.large", &large, int64_t{-1} << 40, int64_t{1} << 40, "h");
    reader.Bind("a.size", &size, uint64_t{0}, uint64_t{1} << 40, "h");
    reader.Bind("a.number", &number, 0.0, 1e9, "h");
    reader.Bind("a.is_on", &is_on, "h");
    reader.Bind("text", &text, "h");
    reader.BindChoice("choice", &choice, {"a", "b"}, "h");
    reader.Bind("list", &list, "h");
    reader.BindMs("time_ms", &time, absl::Milliseconds(1), absl::Hours(1), "h");
  }
};

// Any bytes as a YAML file and as an assignment: refused with a reason, or values within limits.
void ReadOne(const std::string& text) {
  Fields fields;
  ConfigReader reader;
  fields.Bind(reader);
  const absl::Status read = reader.ReadText(text, "fuzz");
  CHECK(read.ok() || !read.message().empty());
  const absl::Status set = reader.Set(text);
  CHECK(set.ok() || !set.message().empty());
  CHECK(fields.small >= -5 && fields.small <= 5);
  CHECK(fields.size <= uint64_t{1} << 40 && fields.number >= 0 && fields.number <= 1e9);
  CHECK(fields.choice == "a" || fields.choice == "b");
  CHECK(fields.time >= absl::Milliseconds(1) && fields.time <= absl::Hours(1));
  CHECK(!reader.Print().empty());
}

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kMaxInput = 16 << 10;
  if (size <= kMaxInput) baton::ReadOne(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
