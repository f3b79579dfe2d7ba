#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "router/text/unicode_classes.h"

namespace baton::router {

// Splits a text run into the pieces that BPE works on: the three Split(Isolated) passes of
// protocol.md 1.3, written out by hand. Linear in the text. Immutable; any thread.
class Pretokenizer {
 public:
  // Appends the end offset of each piece, ascending, the last being text.size(). A byte that is no
  // well-formed UTF-8 counts as a character of no class.
  void Split(std::string_view text, std::vector<size_t>& ends) const;

 private:
  UnicodeClasses classes_;
};

}  // namespace baton::router
