#pragma once

#include <cstddef>
#include <cstdint>

// Made-up contents for device memory: hashes of the index. Device pointers; on the default stream.
namespace baton::bench {

// e4m3 codes of magnitude below 2, or any bytes.
void FillFp8(void* data, size_t bytes, uint32_t seed);
void FillBytes(void* data, size_t bytes, uint32_t seed);
// Bytes first .. first + count - 1: e8m0 scales.
struct ByteRange {
  uint32_t first, count;
};
void FillRange(void* data, size_t bytes, ByteRange range, uint32_t seed);
// Uniform in -size .. size.
void FillBf16(void* data, size_t values, float size, uint32_t seed);
void FillF32(void* data, size_t values, float size, uint32_t seed);
void SetF32(void* data, size_t values, float value);

// `pieces` stretches of `bytes` bytes, `stride` apart: the rows of one kind in all pages.
struct Pieces {
  size_t count, bytes, stride;
};
void FillPiecesFp8(void* data, const Pieces& pieces, uint32_t seed);
void FillPiecesRange(void* data, const Pieces& pieces, ByteRange range, uint32_t seed);
void SetPiecesF32(void* data, const Pieces& pieces, float value);

// One block that does nothing: what a launch costs.
void QueueEmptyKernel(struct CUstream_st* stream);

// Waits; ends the process with the error's name if anything failed.
void FinishFills();

}  // namespace baton::bench
