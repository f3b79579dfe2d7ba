// vectors_check DIR [--tokenizer=FILE] [--except=ID]...: runs the files of a folder laid out like
// tests/data/vectors (spec/protocol.md 9.1) through the router's own code and prints what passed
// and failed per file. FILE: a tokenizer.json; without it DeepSeek-V4's. ID: a case that may fail.
// Exits 1 where another case failed or a file is of no known kind, 2 where it could not run.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/log.h"
#include "router/text/test_data.h"
#include "tests/vectors/vector_file.h"

namespace baton::vectors {
namespace {

namespace fs = std::filesystem;
using Check = FileResult (*)(const JsonValue&, const router::Tokenizer&);

bool HasDeltas(const JsonValue& file) {
  const JsonValue* cases = file.Find("cases");
  return cases != nullptr && !cases->items().empty() && cases->items()[0].Find("deltas") != nullptr;
}

// What 9.1 has in the folder; by the kind that the file names, or by what it holds.
Check CheckFor(const std::string& folder, const JsonValue& file) {
  if (folder == "tokenizer") return HasDeltas(file) ? CheckStreamDecode : CheckEncode;
  const std::map<std::string, Check> known = {
      {"chat/render", CheckRenderEncoder},
      {"chat/render-request", CheckRenderRequest},
      {"chat/parse", CheckParse},
      {"api/api-validation", CheckValidation},
  };
  const JsonValue* meta = file.Find("meta");
  const auto found = known.find(folder + "/" + (meta == nullptr ? "" : TextOf(*meta, "kind")));
  if (found != known.end()) return found->second;
  return folder == "chat" && file.Find("tools_block") != nullptr ? CheckWireStrings : nullptr;
}

FileResult CheckFile(const fs::path& path, const std::string& folder,
                     const router::Tokenizer& tokenizer) {
  FileResult result;
  std::ifstream in(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const auto parsed = JsonValue::Parse(text);
  if (!in || !parsed.ok()) {
    result.Count("file", "no JSON: " + std::string(parsed.status().message()));
    return result;
  }
  const Check check = CheckFor(folder, *parsed);
  if (check != nullptr) return check(*parsed, tokenizer);
  result.Count("file", "its meta.kind is of no check");
  return result;
}

std::vector<fs::path> JsonFiles(const fs::path& folder) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.path().extension() == ".json") paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

struct Options {
  std::string folder, tokenizer;
  std::set<std::string> excepted;
};

// Prints a file's line and its first failure; returns the number of failures that count.
size_t Report(const fs::path& name, const FileResult& result, const Options& options) {
  const auto is_excepted = [&](const FileResult::Failed& failed) {
    return options.excepted.contains(failed.id);
  };
  const auto first = std::find_if_not(result.failures.begin(), result.failures.end(), is_excepted);
  const auto excepted = static_cast<size_t>(
      std::count_if(result.failures.begin(), result.failures.end(), is_excepted));
  const size_t failed = result.failures.size() - excepted;
  std::printf("%-42s %4zu passed %4zu failed", name.c_str(), result.passed, failed);
  if (excepted > 0) std::printf("  (%zu excepted)", excepted);
  if (result.respelled > 0)
    std::printf("  (%zu but for numbers that the file respells)", result.respelled);
  std::printf("\n");
  if (failed > 0) std::printf("    first: %s: %s\n", first->id.c_str(), first->what.c_str());
  return failed;
}

int Run(const Options& options, const router::Tokenizer& tokenizer) {
  const fs::path root(options.folder);
  size_t passed = 0, failed = 0, files = 0;
  for (const char* folder : {"tokenizer", "chat", "api"}) {
    for (const fs::path& path : JsonFiles(root / folder)) {
      const FileResult result = CheckFile(path, folder, tokenizer);
      failed += Report(fs::path(folder) / path.filename(), result, options);
      passed += result.passed;
      ++files;
    }
  }
  std::printf("%zu files: %zu passed, %zu failed\n", files, passed, failed);
  if (files == 0) {
    std::fprintf(stderr, "%s has no tokenizer/, chat/ or api/ with .json files\n", root.c_str());
    return 2;
  }
  return failed == 0 ? 0 : 1;
}

std::optional<Options> ParseArguments(const std::vector<std::string>& args) {
  constexpr std::string_view kTokenizer = "--tokenizer=", kExcept = "--except=";
  Options options;
  for (const std::string& arg : args) {
    if (arg.starts_with(kTokenizer)) {
      options.tokenizer = arg.substr(kTokenizer.size());
    } else if (arg.starts_with(kExcept)) {
      options.excepted.insert(arg.substr(kExcept.size()));
    } else if (options.folder.empty() && !arg.starts_with("-")) {
      options.folder = arg;
    } else {
      return std::nullopt;
    }
  }
  if (options.folder.empty()) return std::nullopt;
  return options;
}

int Main(const std::vector<std::string>& args) {
  const std::optional<Options> options = ParseArguments(args);
  if (!options) {
    std::fprintf(stderr, "usage: vectors_check DIR [--tokenizer=FILE] [--except=ID]...\n");
    return 2;
  }
  InitLog("vectors_check", LogLevel::kError);
  if (options->tokenizer.empty()) return Run(*options, router::RealTokenizer());
  const auto tokenizer = router::Tokenizer::Load(options->tokenizer);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", std::string(tokenizer.status().message()).c_str());
    return 2;
  }
  return Run(*options, *tokenizer);
}

}  // namespace
}  // namespace baton::vectors

int main(int argc, char** argv) {
  return baton::vectors::Main(std::vector<std::string>(argv + 1, argv + argc));
}
