#include "tests/golden/golden_file.h"

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "engine/load/views.h"

namespace baton::golden {
namespace {

constexpr int kMaxSequences = 100;  // numbers tried; a trimmed file has gaps
constexpr int kMaxLayers = 100;
constexpr int kAnyIndex = 1 << 30;

// Reads tensors by name; a missing one leaves its value empty.
class Reader {
 public:
  Reader(const engine::SafetensorsFile& file, int number) : file_(file), number_(number) {}

  absl::StatusOr<std::vector<int32_t>> Integers(const std::string& name) const {
    const engine::HostTensor* tensor = Find(name);
    if (tensor == nullptr) return std::vector<int32_t>();
    return engine::IndicesOf(*tensor, kAnyIndex);
  }

  absl::StatusOr<std::vector<float>> Floats(const std::string& name) const {
    const engine::HostTensor* tensor = Find(name);
    if (tensor == nullptr) return std::vector<float>();
    return engine::FloatsOf(*tensor);
  }

  absl::StatusOr<std::vector<std::vector<float>>> Layers(const std::string& prefix) const {
    std::vector<std::vector<float>> layers;
    for (int i = 0; i < kMaxLayers; ++i) {
      ASSIGN_OR_RETURN(std::vector<float> streams, Floats(absl::StrFormat("%s%d", prefix, i)));
      if (streams.empty()) break;
      layers.push_back(std::move(streams));
    }
    return layers;
  }

 private:
  const engine::HostTensor* Find(const std::string& name) const {
    return file_.Find(absl::StrFormat("s%d.%s", number_, name));
  }

  const engine::SafetensorsFile& file_;
  const int number_;
};

absl::StatusOr<GoldenSequence> ReadSequence(const Reader& reader, int number) {
  GoldenSequence s;
  s.number = number;
  ASSIGN_OR_RETURN(s.tokens, reader.Integers("tokens"));
  ASSIGN_OR_RETURN(s.argmax, reader.Integers("argmax"));
  ASSIGN_OR_RETURN(const std::vector<int32_t> positions, reader.Integers("positions"));
  ASSIGN_OR_RETURN(const std::vector<int32_t> mtp_positions, reader.Integers("mtp_positions"));
  ASSIGN_OR_RETURN(s.logits.values, reader.Floats("logits"));
  ASSIGN_OR_RETURN(s.official_logits.values, reader.Floats("official_logits"));
  ASSIGN_OR_RETURN(s.mtp_logits.values, reader.Floats("mtp_logits"));
  ASSIGN_OR_RETURN(s.mtp_official_logits.values, reader.Floats("mtp_official_logits"));
  ASSIGN_OR_RETURN(s.layers, reader.Layers("layer"));
  ASSIGN_OR_RETURN(s.official_streams, reader.Layers("official_streams"));
  ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, reader.Integers("prompt_tokens"));
  s.logits.positions = s.official_logits.positions = positions;
  s.mtp_logits.positions = s.mtp_official_logits.positions = mtp_positions;
  s.is_trained = !prompt.empty();
  return s;
}

}  // namespace

absl::StatusOr<std::vector<GoldenSequence>> ReadGoldens(const std::string& path) {
  ASSIGN_OR_RETURN(const engine::SafetensorsFile file, engine::SafetensorsFile::Open(path));
  std::vector<GoldenSequence> sequences;
  for (int number = 0; number < kMaxSequences; ++number) {
    ASSIGN_OR_RETURN(GoldenSequence sequence, ReadSequence(Reader(file, number), number));
    if (!sequence.tokens.empty()) sequences.push_back(std::move(sequence));
  }
  if (sequences.empty()) {
    return absl::NotFoundError(
        absl::StrFormat("%s: no tensor s0.tokens .. s%d.tokens", path, kMaxSequences - 1));
  }
  return sequences;
}

}  // namespace baton::golden
