#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "router/text/reasoning_parser.h"

namespace baton::router {

// Finds markup by its text where token ids are not known: cuts <think>, </think> and ｜DSML｜ out,
// drops the end-of-sentence literal, holds back what may still become one. One thread.
class MarkupScanner {
 public:
  struct Piece {
    std::string text;
    Markup markup = Markup::kNone;
  };
  std::vector<Piece> Push(std::string_view text);
  // What is held, as text.
  std::vector<Piece> Finish();

 private:
  std::string held_;
};

}  // namespace baton::router
