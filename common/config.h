#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"

namespace baton {

// Binds names like "transfer.window" to the fields of a config struct, then reads one YAML file and
// `--set a.b=c` assignments into them. A key nobody bound is refused; so is a value of the wrong
// type or out of its range. The fields' initial values are the defaults. One thread, at start.
class ConfigReader {
 public:
  // Integers and numbers are checked against [least, most].
  void Bind(std::string_view key, int* field, int least, int most, std::string_view help);
  void Bind(std::string_view key, int64_t* field, int64_t least, int64_t most,
            std::string_view help);
  void Bind(std::string_view key, uint64_t* field, uint64_t least, uint64_t most,
            std::string_view help);
  void Bind(std::string_view key, uint32_t* field, uint32_t least, uint32_t most,
            std::string_view help);
  void Bind(std::string_view key, double* field, double least, double most, std::string_view help);
  void Bind(std::string_view key, bool* field, std::string_view help);
  void Bind(std::string_view key, std::string* field, std::string_view help);
  // One of `choices`.
  void BindChoice(std::string_view key, std::string* field, const std::vector<std::string>& choices,
                  std::string_view help);
  void Bind(std::string_view key, std::vector<std::string>* field, std::string_view help);
  // Milliseconds in the file: the key must end in "_ms".
  void BindMs(std::string_view key, absl::Duration* field, absl::Duration least,
              absl::Duration most, std::string_view help);

  // Errors name file, key, value and limit.
  absl::Status ReadFile(const std::string& path);
  absl::Status ReadText(const std::string& yaml, const std::string& origin);
  absl::Status Set(
      std::string_view assignment);  // "key=value"; a list's items are separated by commas

  // "key=value" lines in the order of binding: what the program runs with.
  std::string Print() const;
  // A Markdown table of key, default, limits and meaning: the config reference.
  std::string Reference() const;

 private:
  struct Entry {
    std::string key, limits, help, initial;
    bool is_list = false;
    std::function<absl::Status(const std::vector<std::string>&)> assign;
    std::function<std::string()> print;
  };
  void Add(Entry entry);
  template <typename T>
  void BindInteger(std::string_view key, T* field, T least, T most, std::string_view help);
  absl::Status Assign(const std::string& key, const std::vector<std::string>& values,
                      const std::string& origin);

  std::vector<Entry> entries_;
};

}  // namespace baton
