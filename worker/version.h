#pragma once

namespace baton::worker {

// As the hello and --version say it. The numerics class, not this, decides who may go on with whose
// pages.
inline constexpr char kVersion[] = "0.1.0";

}  // namespace baton::worker
