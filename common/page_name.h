#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "common/ids.h"

// Names of full pages (contracts.md 1.5): a SHA-256 chain over what a page's bits depend on. Router
// and workers compute them alike.
namespace baton {

// The start of every chain of one model, layout and cache salt.
PageName RootName(const WeightsId& weights, const LayoutId& layout, std::string_view salt);

// A maximal stretch of positions of one page computed by one class.
struct ClassRun {
  uint16_t count = 0;
  ClassId class_id;
};

// The name of the page after `previous`. The runs' counts add up to 256 = tokens.size();
// neighbouring runs differ in class.
PageName NextName(const PageName& previous, std::span<const ClassRun> runs,
                  std::span<const int32_t> tokens);

// Extends a chain token by token: a page gets its name when its 256th token is in. One thread.
class PageNamer {
 public:
  explicit PageNamer(const PageName& root) : last_(root) {}

  // Tokens of the next positions, all computed by `class_id`.
  void Append(const ClassId& class_id, std::span<const int32_t> tokens);

  // Names of the full pages so far, in order.
  const std::vector<PageName>& names() const { return names_; }
  // Tokens of the page that is not full yet, 0..255.
  int open_tokens() const { return static_cast<int>(tokens_.size()); }

 private:
  PageName last_;
  std::vector<PageName> names_;
  std::vector<int32_t> tokens_;  // of the open page
  std::vector<ClassRun> runs_;   // of the open page
};

// Names of a prompt's full pages, all of one class: what a lookup asks for.
std::vector<PageName> PromptPageNames(const PageName& root, const ClassId& prompt_class,
                                      std::span<const int32_t> tokens);

}  // namespace baton
