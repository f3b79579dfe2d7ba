#include "kvtransfer/digester.h"

#include <utility>

#include "absl/strings/str_format.h"

#include "common/digest.h"

namespace baton::kvtransfer {

void CpuDigester::AddRegion(RegionId region, std::span<const std::byte> memory) {
  if (regions_.size() <= region.value) regions_.resize(region.value + size_t{1});
  regions_[region.value] = memory;
}

void CpuDigester::Begin(DigestJob job, const Place& place, const Secret& secret,
                        std::span<const std::byte> header) {
  const size_t region_bytes =
      place.region.value < regions_.size() ? regions_[place.region.value].size() : 0;
  if (place.offset > region_bytes || place.bytes > region_bytes - place.offset) {
    done_.push_back({job, absl::InternalError(absl::StrFormat(
                              "digest of %d bytes at %d of region %d, which has %d", place.bytes,
                              place.offset, place.region.value, region_bytes))});
    return;
  }
  const auto data = regions_[place.region.value].subspan(place.offset, place.bytes);
  done_.push_back({job, NhDigest(secret).Of(header, data)});
}

void CpuDigester::Poll(std::vector<DigestDone>& done) {
  for (DigestDone& d : done_) done.push_back(std::move(d));
  done_.clear();
}

}  // namespace baton::kvtransfer
