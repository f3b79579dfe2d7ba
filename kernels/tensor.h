#pragma once

#include <cstddef>
#include <cstdint>

namespace baton::kernels {

// How activations are rounded (contracts.md 1.1).
enum class NumericsMode { kOfficial, kFloat32 };

enum class WeightFormat { kF32, kBf16, kFp8Block128, kFp4Group32 };

// A weight matrix as it lies in the checkpoint: y = x W^T, W is [rows, cols] = [out, in].
struct HostMatrix {
  WeightFormat format = WeightFormat::kF32;
  int rows = 0;
  int cols = 0;
  const std::byte* values =
      nullptr;  // f32, bf16, e4m3 codes, or packed e2m1 (low nibble first, cols / 2 bytes a row)
  const float* scales =
      nullptr;  // fp8: [rows / 128, cols / 128]; fp4: [rows, cols / 32]; powers of two; else null
};

// A weight matrix in the back end's own form. Made by Device::Upload, lives as long as the device.
class Matrix {
 public:
  virtual ~Matrix() = default;
  int rows() const { return rows_; }
  int cols() const { return cols_; }

 protected:
  Matrix(int rows, int cols) : rows_(rows), cols_(cols) {}

 private:
  int rows_, cols_;
};

// Small fp32 parameters in device memory.
struct Vector {
  const float* data = nullptr;
  size_t size = 0;
};

}  // namespace baton::kernels
