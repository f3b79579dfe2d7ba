#include "kernels/cuda/lockstep.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/quantise.h"

namespace baton::kernels::cuda::testing {
namespace {

template <typename Options>
Options MakeOptions(const TestShape& shape, std::byte* pages) {
  Options options{.config = ConfigOf(shape), .layout = PageLayout(LayoutOf(shape))};
  options.pages = pages;
  options.num_pages = Lockstep::kPages;
  options.num_tail_slots = 4;
  options.max_rows = Lockstep::kMaxRows;
  options.max_sequences = 4;
  options.max_head_rows = 8;
  options.max_context = 1024;
  return options;
}

double ErrorOf(std::span<const float> x, std::span<const float> y) {
  double xy = 0, xx = 0, yy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xy += double{x[i]} * double{y[i]};
    xx += double{x[i]} * double{x[i]};
    yy += double{y[i]} * double{y[i]};
  }
  return xx + yy == 0 ? 0.0 : 1.0 - 2.0 * xy / (xx + yy);
}

}  // namespace

Lockstep::Lockstep(const TestShape& shape, Device& gpu_device, bool has_reference_linears)
    : shape_(shape),
      has_reference_linears_(has_reference_linears),
      device_(static_cast<CudaDevice&>(gpu_device)),
      cpu_device_(cpu::MakeCpuDevice(NumericsMode::kOfficial)),
      cpu_weights_(MakeWeights(shape, *cpu_device_)),
      gpu_weights_(MakeWeights(shape, gpu_device)),
      layout_(LayoutOf(shape)) {
  const size_t bytes = layout_.stride_bytes() * kPages;
  cpu_pages_ = *cpu_device_->Allocate(bytes);
  gpu_pages_ = *gpu_device.Allocate(bytes);
  auto cpu_ops = cpu::MakeCpuOps(MakeOptions<cpu::CpuOptions>(shape, cpu_pages_), *cpu_device_);
  auto gpu_options = MakeOptions<CudaOptions>(shape, gpu_pages_);
  gpu_options.has_reference_linears = has_reference_linears;
  auto gpu_ops = MakeCudaOps(std::move(gpu_options), gpu_device);
  CHECK(cpu_ops.ok() && gpu_ops.ok());
  cpu_ = *std::move(cpu_ops);
  gpu_ = *std::move(gpu_ops);
  for (int slot = 0; slot < 4; ++slot) {
    cpu_->ResetTail(slot);
    gpu_->ResetTail(slot);
  }
  AddFields();
}

void Lockstep::AddFields() {
  cpu::Activations& c = static_cast<cpu::CpuOps&>(*cpu_).activations();
  const Activations& g = static_cast<CudaOps&>(*gpu_).activations();
  fields_ = {
      {"streams", Kind::kBf16, &c.streams, nullptr, g.streams},
      {"post", Kind::kF32, &c.post, nullptr, g.post},
      {"comb", Kind::kF32, &c.comb, nullptr, g.comb},
      {"branch", Kind::kBf16, &c.branch, nullptr, g.branch},
      {"normed", Kind::kBf16, &c.normed, nullptr, g.normed},
      {"normed8", Kind::kBf16, &c.normed8.codes, nullptr, g.normed8, &c.normed8.scales},
      {"query_low", Kind::kBf16, &c.query_low, nullptr, g.query_low},
      {"query_low8", Kind::kBf16, &c.query_low8.codes, nullptr, g.query_low8, &c.query_low8.scales},
      {"kv", Kind::kBf16, &c.kv, nullptr, g.kv},
      {"compressor_kv", Kind::kF32, &c.compressor_kv, nullptr, g.compressor_kv},
      {"compressor_score", Kind::kF32, &c.compressor_score, nullptr, g.compressor_score},
      {"index_kv", Kind::kF32, &c.index_compressor_kv, nullptr, g.index_kv},
      {"index_score", Kind::kF32, &c.index_compressor_score, nullptr, g.index_score},
      {"index_weights", Kind::kF32, &c.index_weights, nullptr, g.index_weights},
      {"query", Kind::kBf16, &c.query, nullptr, g.query},
      {"index_query", Kind::kBf16, &c.index_query, nullptr, g.index_query},
      {"selected", Kind::kI32, nullptr, &c.selected, g.selected},
      {"num_selected", Kind::kI32, nullptr, &c.num_selected, g.num_selected},
      {"attended", Kind::kBf16, &c.attended, nullptr, g.attended},
      {"expert_ids", Kind::kI32, nullptr, &c.expert_ids, g.expert_ids},
      {"expert_weights", Kind::kF32, &c.expert_weights, nullptr, g.expert_weights},
      {"logits", Kind::kF32, &c.logits, nullptr, g.logits},
  };
}

const Lockstep::Field& Lockstep::Named(const std::string& name) const {
  const auto found = std::find_if(fields_.begin(), fields_.end(),
                                  [&name](const Field& field) { return field.name == name; });
  CHECK(found != fields_.end());
  return *found;
}

size_t Lockstep::WidthOf(const Field& field) const {
  if (field.name == "logits") return static_cast<size_t>(shape_.vocabulary);
  return (field.cpu != nullptr ? field.cpu->size() : field.cpu_ints->size()) / kMaxRows;
}

// Live rows (of logits: all eight) as fp32.
std::vector<float> Lockstep::ReadCpu(const Field& field) const {
  const size_t rows = field.name == "logits" ? 8 : static_cast<size_t>(num_rows_);
  const size_t count = rows * WidthOf(field);
  if (field.cpu == nullptr) return {field.cpu_ints->data(), field.cpu_ints->data() + count};
  std::vector<float> values(field.cpu->data(), field.cpu->data() + count);
  if (field.scales == nullptr) return values;
  for (size_t i = 0; i < count; ++i) values[i] *= (*field.scales)[i / 128];
  return values;
}

std::vector<float> Lockstep::ReadGpu(const Field& field) {
  const size_t rows = field.name == "logits" ? 8 : static_cast<size_t>(num_rows_);
  const size_t count = rows * WidthOf(field);
  std::vector<float> values;
  if (field.kind == Kind::kBf16) {
    for (const uint16_t code : Download<uint16_t>(device_, field.gpu, count)) {
      values.push_back(cpu::DecodeBf16(code));
    }
  } else if (field.kind == Kind::kI32) {
    for (const int32_t value : Download<int32_t>(device_, field.gpu, count)) {
      values.push_back(static_cast<float>(value));
    }
  } else {
    values = Download<float>(device_, field.gpu, count);
  }
  return values;
}

void Lockstep::Inject() {
  for (const Field& field : fields_) {
    const std::vector<float> values = ReadCpu(field);
    if (field.kind == Kind::kF32) {
      WriteTo(device_, field.gpu, values);
    } else if (field.kind == Kind::kI32) {
      WriteTo(device_, field.gpu, std::vector<int32_t>(values.begin(), values.end()));
    } else {
      std::vector<uint16_t> codes;
      for (const float value : values) codes.push_back(cpu::EncodeBf16(value));
      WriteTo(device_, field.gpu, codes);
    }
  }
}

void Lockstep::CompareExactly(const char* name, const std::string& field) {
  const std::vector<float> x = ReadCpu(Named(field)), y = ReadGpu(Named(field));
  const size_t width = WidthOf(Named(field));
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(x[i], y[i]) << name << ": " << field << ", row " << i / width << ", value "
                          << i % width;
  }
}

void Lockstep::CompareClosely(const char* name, const std::string& field, double limit) {
  const std::vector<float> x = ReadCpu(Named(field)), y = ReadGpu(Named(field));
  if (num_rows_ >= kManyRows) {
    const double error = ErrorOf(x, y);
    double& worst = errors_[std::string(name) + "." + field];
    worst = std::max(worst, error);
    ASSERT_LT(error, limit) << name << ": " << field;
  }
  const size_t width = WidthOf(Named(field));
  for (size_t first = 0; first < x.size(); first += width) {
    const double error = ErrorOf({&x[first], width}, {&y[first], width});
    ASSERT_LT(error, 100 * limit) << name << ": " << field << ", row " << first / width;
  }
}

void Lockstep::Compare(const char* name, const Expectation& expected) {
  for (const std::string& field : expected.exact) CompareExactly(name, field);
  for (const std::string& field : expected.close) {
    if (has_reference_linears_ && field != "attended") {
      CompareExactly(name, field);
    } else {
      CompareClosely(name, field, expected.limit);
    }
  }
}

void Lockstep::AdvanceBoth(const AdvanceArgs& args) {
  const absl::Status cpu_status = cpu_->AdvanceStep(args), gpu_status = gpu_->AdvanceStep(args);
  ASSERT_TRUE(cpu_status.ok()) << cpu_status.ToString();
  ASSERT_TRUE(gpu_status.ok()) << gpu_status.ToString();
  num_rows_ = 0;
  for (const SequenceRows& run : args.runs) num_rows_ += run.num_rows;
}

void Lockstep::Advance(std::span<const SequenceRows> runs) { AdvanceBoth({.runs = runs}); }

std::vector<int32_t> Lockstep::AdvanceFollowing(std::span<const SequenceRows> runs) {
  AdvanceBoth({.runs = runs, .follows = true});
  if (!::testing::Test::HasFatalFailure()) ExpectEqualViews();
  return {cpu_->view().token, cpu_->view().token + num_rows_};
}

void Lockstep::ExpectEqualPages(const char* where) {
  const size_t bytes = layout_.stride_bytes() * kPages;
  const auto gpu = Download<std::byte>(device_, gpu_pages_, bytes);
  for (size_t i = 0; i < bytes; ++i) {
    ASSERT_EQ(gpu[i], cpu_pages_[i]) << where << ": page " << i / layout_.stride_bytes()
                                     << ", byte " << i % layout_.stride_bytes();
  }
}

void Lockstep::AdvanceDrafter(DrafterRows rows) {
  ASSERT_TRUE(cpu_->AdvanceDrafter(rows).ok());
  const absl::Status status = gpu_->AdvanceDrafter(rows);
  ASSERT_TRUE(status.ok()) << status.ToString();
  ExpectEqualViews();
}

void Lockstep::ExpectEqualViews() {
  const StepView &cpu = cpu_->view(), &gpu = gpu_->view();
  num_rows_ = *cpu.num_rows;
  ASSERT_EQ(Download<int32_t>(device_, gpu.num_rows, 1)[0], num_rows_);
  const auto count = static_cast<size_t>(num_rows_);
  const auto position = Download<int32_t>(device_, gpu.position, count);
  const auto token = Download<int32_t>(device_, gpu.token, count);
  const auto sequence = Download<int32_t>(device_, gpu.sequence, count);
  const auto slot = Download<int32_t>(device_, gpu.tail_slot, 4);
  for (size_t i = 0; i < count; ++i) {
    ASSERT_EQ(position[i], cpu.position[i]) << "row " << i;
    ASSERT_EQ(token[i], cpu.token[i]) << "row " << i;
    ASSERT_EQ(sequence[i], cpu.sequence[i]) << "row " << i;
    ASSERT_EQ(slot[static_cast<size_t>(sequence[i])], cpu.tail_slot[cpu.sequence[i]]) << i;
  }
}

std::vector<int32_t> Lockstep::Harvest(size_t num_choices, size_t num_runs, size_t num_drafts) {
  struct Outcome {
    std::vector<TokenRecord> chosen;
    std::vector<uint8_t> is_empty;
    std::vector<int32_t> accepted, drafts;
  };
  const auto take = [&](Ops& ops) {
    Outcome outcome{std::vector<TokenRecord>(num_choices), std::vector<uint8_t>(num_choices),
                    std::vector<int32_t>(num_runs), std::vector<int32_t>(num_drafts * num_runs)};
    const absl::Status status = ops.Harvest({.chosen = outcome.chosen,
                                             .is_empty = outcome.is_empty,
                                             .accepted = outcome.accepted,
                                             .drafts = outcome.drafts});
    EXPECT_TRUE(status.ok()) << status.ToString();
    return outcome;
  };
  const Outcome cpu = take(*cpu_), gpu = take(*gpu_);
  for (size_t i = 0; i < num_choices; ++i) {
    EXPECT_EQ(gpu.is_empty[i], cpu.is_empty[i]) << "choice " << i;
    if (cpu.is_empty[i] != 0) continue;
    EXPECT_EQ(gpu.chosen[i], cpu.chosen[i]) << "choice " << i;
  }
  EXPECT_EQ(gpu.accepted, cpu.accepted);
  EXPECT_EQ(gpu.drafts, cpu.drafts);
  return cpu.accepted;
}

void Lockstep::MoveTail(int slot, uint64_t num_tokens, int to_slot) {
  std::vector<std::byte> cpu(MakeTailLayout(layout_, num_tokens, 0).total_bytes), gpu(cpu.size());
  ASSERT_TRUE(cpu_->PackTail({.tail_slot = slot, .num_tokens = num_tokens, .wire = cpu}).ok());
  const absl::Status status =
      gpu_->PackTail({.tail_slot = slot, .num_tokens = num_tokens, .wire = gpu});
  ASSERT_TRUE(status.ok()) << status.ToString();
  for (size_t i = TailHeader::kBytes; i < cpu.size(); ++i) {
    ASSERT_EQ(cpu[i], gpu[i]) << "tail of slot " << slot << " at " << num_tokens << ", byte " << i;
  }
  ASSERT_TRUE(cpu_->UnpackTail({.tail_slot = to_slot, .num_tokens = num_tokens, .wire = cpu}).ok());
  ASSERT_TRUE(gpu_->UnpackTail({.tail_slot = to_slot, .num_tokens = num_tokens, .wire = gpu}).ok());
  std::vector<std::byte> again(cpu.size());
  ASSERT_TRUE(gpu_->PackTail({.tail_slot = to_slot, .num_tokens = num_tokens, .wire = again}).ok());
  ASSERT_TRUE(
      std::equal(cpu.begin() + TailHeader::kBytes, cpu.end(), again.begin() + TailHeader::kBytes));
  ASSERT_TRUE(cpu_->PackTail({.tail_slot = to_slot, .num_tokens = num_tokens, .wire = again}).ok());
}

}  // namespace baton::kernels::cuda::testing
