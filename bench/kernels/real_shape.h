#pragma once

// Sizes of the real model (docs/spec/model.md 1.1).
namespace baton::bench {

inline constexpr int kHidden = 4096, kStreams = 4;
inline constexpr int kHeads = 64, kHeadDim = 512, kRopeDim = 64, kQueryLow = 1024;
inline constexpr int kOutputGroups = 8, kOutputLow = 1024, kWindow = 128;
inline constexpr int kIndexHeads = 64, kIndexDim = 128, kIndexTopk = 512;
inline constexpr int kExperts = 256, kExpertsPerToken = 6, kIntermediate = 2048;
inline constexpr int kVocabulary = 129280;

}  // namespace baton::bench
