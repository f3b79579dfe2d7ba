// A library to preload into a process that uses UCX over TCP: what it writes to its sockets is cut
// into pieces, held back, changed or ended, by seed (contracts.md 7, row 4.6). Environment:
// BATON_SOCKET_SEED, and BATON_SOCKET_FAULT = pieces | stall | flip | cut. A process that ends
// without one such fault exits with status 9, so that no test passes for want of them.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string_view>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/rng.h"

namespace baton::kvtransfer {
namespace {

constexpr size_t kLarge = 2048;        // smaller writes are frames and UCX's own handshakes
constexpr size_t kHeaders = 512;       // of a large write: UCX's and our headers, never changed
constexpr size_t kMaxPiece = 1 << 20;  // of one write
constexpr int kStalledWrites = 300;
constexpr uint64_t kMaxBytesBeforeCut = 16u << 20;

// One per process. UCX's transfer thread is the only one that writes to sockets.
class Faults {
 public:
  Faults() : rng_(Number("BATON_SOCKET_SEED")) {
    const char* fault = std::getenv("BATON_SOCKET_FAULT");
    fault_ = fault == nullptr ? "" : fault;
    bytes_before_cut_ = rng_.Next() % kMaxBytesBeforeCut;
  }
  ~Faults() {
    if (num_faults_ == 0) _exit(9);
  }

  // Sends the first bytes of `message` on, or fails with errno set, as sendmsg may.
  template <typename Send>
  ssize_t Write(int socket, const msghdr& message, Send send) {
    size_t size = Gather(message);
    if (size < kLarge) return send(buffer_.data(), size);
    if (fault_ == "stall" && IsStalled()) {
      errno = EAGAIN;
      return -1;
    }
    if (fault_ == "cut" && (written_ += size) > bytes_before_cut_) {
      ++num_faults_;
      shutdown(socket, SHUT_RDWR);
    } else if (fault_ == "pieces") {
      ++num_faults_;
      size = kLarge / 2 + rng_.Next() % (size - kLarge / 2);
    } else if (fault_ == "flip" && rng_.Next() % 256 == 0) {
      ++num_faults_;
      buffer_[kHeaders + rng_.Next() % (size - kHeaders)] ^= uint8_t{1};
    }
    return send(buffer_.data(), size);
  }

 private:
  static uint64_t Number(const char* name) {
    const char* text = std::getenv(name);
    return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
  }

  // Copies as much of the message as one piece holds.
  size_t Gather(const msghdr& message) {
    size_t size = 0;
    for (size_t i = 0; i < message.msg_iovlen; ++i) {
      const iovec& part = message.msg_iov[i];
      const size_t taken = std::min(part.iov_len, kMaxPiece - size);
      std::memcpy(buffer_.data() + size, part.iov_base, taken);
      size += taken;
    }
    return size;
  }

  bool IsStalled() {
    if (stalled_ == 0 && rng_.Next() % 50 == 0) stalled_ = kStalledWrites;
    if (stalled_ == 0) return false;
    ++num_faults_;
    --stalled_;
    return true;
  }

  SeededRng rng_;
  std::string_view fault_;
  int stalled_ = 0;
  uint64_t written_ = 0;
  uint64_t bytes_before_cut_ = 0;
  uint64_t num_faults_ = 0;
  std::array<uint8_t, kMaxPiece> buffer_{};
};

// The functions below replace the C library's: they have nowhere else to keep their state.
Faults& TheFaults() {
  static Faults faults;
  return faults;
}

bool IsStream(int socket) {
  int type = 0;
  socklen_t size = sizeof type;
  return getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

template <typename Function>
Function Next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace
}  // namespace baton::kvtransfer

extern "C" {

__attribute__((visibility("default"))) ssize_t send(int socket, const void* data, size_t size,
                                                    int flags) {
  static const auto next = baton::kvtransfer::Next<decltype(&send)>("send");
  if (!baton::kvtransfer::IsStream(socket)) return next(socket, data, size, flags);
  iovec part{const_cast<void*>(data), size};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  return baton::kvtransfer::TheFaults().Write(
      socket, message,
      [&](const void* bytes, size_t count) { return next(socket, bytes, count, flags); });
}

__attribute__((visibility("default"))) ssize_t sendmsg(int socket, const msghdr* message,
                                                       int flags) {
  static const auto next_message = baton::kvtransfer::Next<decltype(&sendmsg)>("sendmsg");
  static const auto next = baton::kvtransfer::Next<decltype(&send)>("send");
  if (!baton::kvtransfer::IsStream(socket) || message->msg_controllen > 0)
    return next_message(socket, message, flags);
  return baton::kvtransfer::TheFaults().Write(
      socket, *message,
      [&](const void* bytes, size_t count) { return next(socket, bytes, count, flags); });
}
}
