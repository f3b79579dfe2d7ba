// libFuzzer target: both message kinds of the session from arbitrary bytes.
#include <cstddef>
#include <cstdint>

#include "proto/session.pb.h"
#include "proto/wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int bytes = static_cast<int>(size);
  baton::pb::RouterMessage router;
  if (router.ParseFromArray(data, bytes)) (void)baton::wire::FromProto(router).ok();
  baton::pb::WorkerMessage worker;
  if (worker.ParseFromArray(data, bytes)) (void)baton::wire::FromProto(worker).ok();
  return 0;
}
