#include "kvtransfer/frame.h"

#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "common/rng.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data,
                                      size_t size);  // tests/fuzz/kv_frame_fuzz.cc

namespace baton::kvtransfer {
namespace {

template <typename Id>
Id Filled(uint8_t start) {
  Id id;
  for (size_t i = 0; i < id.bytes.size(); ++i) id.bytes[i] = static_cast<uint8_t>(start + i);
  return id;
}

FrameHead Head() {
  return {.transfer = Filled<TransferId>(0x10),
          .attempt = 3,
          .sender = Incarnation{0x1122334455667788u},
          .receiver = Incarnation{0x99aabbccddeeff00u},
          .secret = Filled<Secret>(0x40)};
}

FrameHead BeatHead() {
  return {.sender = Incarnation{0x1122334455667788u}, .receiver = Incarnation{0x99aabbccddeeff00u}};
}

std::vector<Frame> OneOfEach() {
  return {{Head(), AnnounceBody{.block = 7,
                                .shard = 1,
                                .num_shards = 2,
                                .bytes = 995328,
                                .layout = Filled<LayoutId>(0x80),
                                .name = Filled<PageName>(0x90),
                                .digest = Filled<Digest128>(0xa0)}},
          {Head(), AckBody{.block = kTailBlock, .shard = 1}},
          {Head(), RefuseBody{.block = 5, .shard = 0, .reason = RefuseReason::kDataLoss}},
          {Head(), AbortBody{.reason = AbortReason::kFailed}},
          {BeatHead(), PingBody{.nonce = 0x0102030405060708u, .micros = 9}},
          {BeatHead(), PongBody{.nonce = 0x0102030405060708u, .micros = 9}}};
}

std::string Hex(const FrameBytes& bytes) {
  return ToHex(reinterpret_cast<const uint8_t*>(bytes.data.data()), bytes.size);
}

FrameError ErrorOf(const FrameBytes& bytes) {
  const auto decoded = DecodeFrame(bytes.view());
  EXPECT_TRUE(std::holds_alternative<FrameError>(decoded));
  return std::holds_alternative<FrameError>(decoded) ? std::get<FrameError>(decoded)
                                                     : FrameError{99};
}

FrameBytes With(FrameBytes bytes, size_t at, uint8_t value) {
  bytes.data[at] = std::byte{value};
  return bytes;
}

TEST(Frame, EncodesToTheBytesOfTheContract) {
  const std::string head =
      "010000"
      "101112131415161718191a1b1c1d1e1f"
      "03000000"
      "00000000"
      "8877665544332211"
      "00ffeeddccbbaa99"
      "404142434445464748494a4b4c4d4e4f";
  const std::string beat_head =
      "010000"
      "00000000000000000000000000000000"
      "00000000"
      "00000000"
      "8877665544332211"
      "00ffeeddccbbaa99"
      "00000000000000000000000000000000";
  auto prefix = [](const std::string& type, const std::string& rest) {
    return "42544e31" + type + rest;
  };
  const std::vector<std::string> expected = {prefix("01", head) +
                                                 "07000000"
                                                 "0100"
                                                 "0200"
                                                 "00300f0000000000"
                                                 "8081828384858687"
                                                 "909192939495969798999a9b9c9d9e9f"
                                                 "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
                                             prefix("02", head) +
                                                 "ffffffff"
                                                 "0100"
                                                 "0000",
                                             prefix("03", head) +
                                                 "05000000"
                                                 "0000"
                                                 "0600",
                                             prefix("04", head) +
                                                 "02000000"
                                                 "00000000",
                                             prefix("05", beat_head) +
                                                 "0807060504030201"
                                                 "0900000000000000",
                                             prefix("06", beat_head) +
                                                 "0807060504030201"
                                                 "0900000000000000"};
  const std::vector<Frame> frames = OneOfEach();
  for (size_t i = 0; i < frames.size(); ++i) EXPECT_EQ(Hex(EncodeFrame(frames[i])), expected[i]);
}

TEST(Frame, DecodesWhatItEncodes) {
  for (const Frame& frame : OneOfEach()) {
    const auto decoded = DecodeFrame(EncodeFrame(frame).view());
    ASSERT_TRUE(std::holds_alternative<Frame>(decoded));
    EXPECT_EQ(std::get<Frame>(decoded), frame);
  }
}

TEST(Frame, NamesTheReasonForEveryKindOfDamage) {
  const std::vector<Frame> frames = OneOfEach();
  const FrameBytes announce = EncodeFrame(frames[0]), ack = EncodeFrame(frames[1]);
  const FrameBytes refuse = EncodeFrame(frames[2]), abort = EncodeFrame(frames[3]);
  const FrameBytes ping = EncodeFrame(frames[4]);
  struct Case {
    FrameBytes bytes;
    FrameError error;
  };
  FrameBytes cut = announce, tiny = announce;
  cut.size = 119;
  tiny.size = 63;
  const std::vector<Case> cases = {
      {tiny, FrameError::kShort},
      {With(announce, 0, 0x43), FrameError::kMagic},
      {With(announce, 5, 2), FrameError::kVersion},
      {With(announce, 4, 0), FrameError::kType},
      {With(announce, 4, 7), FrameError::kType},
      {cut, FrameError::kLength},
      {With(announce, 4, 2), FrameError::kLength},
      {With(announce, 6, 1), FrameError::kReserved},
      {With(announce, 28, 1), FrameError::kReserved},
      {With(announce, 24, 0), FrameError::kField},  // attempt 0
      {With(announce, 70, 1), FrameError::kField},  // shard 1 of 1
      {With(ack, 70, 1), FrameError::kReserved},
      {With(refuse, 70, 7), FrameError::kField},
      {With(refuse, 70, 0), FrameError::kField},
      {With(abort, 68, 1), FrameError::kReserved},
      {With(ping, 24, 1), FrameError::kReserved},  // a beat names no attempt
      {With(ping, 8, 1), FrameError::kReserved},
      {With(ping, 48, 1), FrameError::kReserved}};
  for (size_t i = 0; i < cases.size(); ++i)
    EXPECT_EQ(ErrorOf(cases[i].bytes), cases[i].error) << "case " << i;
  Frame empty = frames[0];
  std::get<AnnounceBody>(empty.body).bytes = 0;
  EXPECT_EQ(ErrorOf(EncodeFrame(empty)), FrameError::kField);
}

TEST(Frame, SurvivesSeededMutations) {
  SeededRng rng(20);
  const std::vector<Frame> frames = OneOfEach();
  for (int i = 0; i < 8000; ++i) {
    const FrameBytes bytes = EncodeFrame(frames[rng.Below(frames.size())]);
    std::vector<uint8_t> input(rng.Below(8) == 0 ? rng.Below(130) : bytes.size);
    for (size_t j = 0; j < input.size() && j < bytes.size; ++j)
      input[j] = std::to_integer<uint8_t>(bytes.data[j]);
    for (uint64_t flips = rng.Below(4); flips > 0 && !input.empty(); --flips)
      input[rng.Below(input.size())] = static_cast<uint8_t>(rng.Next());
    EXPECT_EQ(LLVMFuzzerTestOneInput(input.data(), input.size()), 0);
  }
}

}  // namespace
}  // namespace baton::kvtransfer
