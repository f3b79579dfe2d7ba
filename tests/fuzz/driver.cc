// Runs a libFuzzer target without libFuzzer: seeded mutations of the given files. With clang the
// same targets link with -fsanitize=fuzzer instead. Usage: TARGET ROUNDS [FILE...]
#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "common/rng.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace baton {
namespace {

constexpr size_t kMaxInput = 256 << 10;  // longer seeds are cut, so that a round stays short

void Mutate(Rng& rng, std::string& input) {
  for (uint64_t edits = 1 + rng.Below(8); edits > 0; --edits) {
    const size_t at = rng.Below(input.size() + 1);
    switch (rng.Below(4)) {
      case 0:
        input.insert(at, 1, static_cast<char>(rng.Next()));
        break;
      case 1:
        input.erase(at, 1 + rng.Below(16));
        break;
      case 2:
        input.insert(at, input.substr(rng.Below(input.size() + 1), rng.Below(64)));
        break;
      default:
        if (at < input.size()) input[at] = static_cast<char>(rng.Next());
    }
  }
}

int Run(int argc, char** argv) {
  int rounds = 0;
  const std::string text = argc > 1 ? argv[1] : "";
  if (std::from_chars(text.data(), text.data() + text.size(), rounds).ec != std::errc()) {
    std::fprintf(stderr, "usage: %s ROUNDS [FILE...]\n", argv[0]);
    return 2;
  }
  std::vector<std::string> seeds = {""};
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot read %s\n", argv[i]);
      return 2;
    }
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    seeds.back().resize(std::min(seeds.back().size(), kMaxInput));
  }
  SeededRng rng(1);
  for (int round = 0; round < rounds; ++round) {
    std::string input = seeds[rng.Below(seeds.size())];
    if (round >= static_cast<int>(seeds.size())) Mutate(rng, input);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  }
  std::printf("%d inputs\n", rounds);
  return 0;
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) { return baton::Run(argc, argv); }
