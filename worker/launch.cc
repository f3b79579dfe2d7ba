#include "worker/launch.h"

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>
#include <vector>

namespace baton::worker {
namespace {

// The folder of the program that runs, with its last slash; empty where the system does not say.
std::string OwnFolder() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  if (length <= 0) return "";
  const std::string whole(path, static_cast<size_t>(length));
  return whole.substr(0, whole.rfind('/') + 1);
}

}  // namespace

int RunWorkerAs(const std::string& role, int argc, char** argv) {
  const std::string program = OwnFolder() + "baton-worker";
  // Read when UCX is loaded. It must ask the driver what memory is: its cache of what it saw
  // allocated takes pages of a GPU for the host's, and copying them ends the process.
  setenv("UCX_MEMTYPE_CACHE", "n", /*overwrite=*/0);
  std::string name = "baton-" + role, as = "--as=" + role;
  std::vector<char*> arguments = {name.data(), as.data()};
  for (int i = 1; i < argc; ++i) arguments.push_back(argv[i]);
  arguments.push_back(nullptr);
  execv(program.c_str(), arguments.data());
  std::fprintf(stderr, "%s: cannot run %s: %s\n", name.c_str(), program.c_str(),
               std::strerror(errno));
  return 1;
}

}  // namespace baton::worker
