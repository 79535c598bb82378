// Registers the segments of an iovcache service with FairMQ, so that its devices can open them.
//
// FairMQ opens a managed segment by its number only if the session's registry, the segment
// fmq_<shmid>_mng, lists it. The registry is a C++ structure of FairMQ, so FairMQ itself writes it.
// Run this once per session, when the service is ready and before the first device starts:
//
//   iovcache serve --source … --fairmq-session NAME --fairmq-segment 8 > ready.json &
//   ./register $(jq -r '.fairmq | .shmid, (.segments[] | "\(.id):\(.size)")' ready.json)
//   fairmq-device --session NAME --transport shmem --shm-no-cleanup true …
//
// Needs FairMQ and Boost; built only where they are installed:
//
//   c++ -std=c++17 register.cpp -I "$FAIRMQ_ROOT/include" -L "$FAIRMQ_ROOT/lib" -lFairMQ -o register
#include <fairmq/shmem/Segment.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>

namespace
{
// Without this check FairMQ would create a missing segment, and the service could not create its
// own.
bool is_segment_of_iovcache(const std::string& name)
{
  std::ifstream file("/dev/shm/" + name, std::ios::binary);
  char magic[8] = {};
  return file.seekg(256).read(magic, sizeof magic) && std::memcmp(magic, "IOVCACHE", 8) == 0;
}
} // namespace

int main(int count, char** arguments)
{
  if (count < 3) {
    std::cerr << "usage: register SHMID NUMBER:BYTES [NUMBER:BYTES …]\n";
    return 2;
  }
  const std::string shmid = arguments[1];
  for (int place = 2; place < count; ++place) {
    char* rest = nullptr;
    const auto number = std::strtoul(arguments[place], &rest, 10);
    const auto bytes = *rest == ':' ? std::strtoull(rest + 1, &rest, 10) : 0;
    if (bytes == 0 || *rest != '\0' || number > UINT16_MAX) {
      std::cerr << arguments[place] << ": expected NUMBER:BYTES\n";
      return 2;
    }
    const auto name = "fmq_" + shmid + "_m_" + std::to_string(number);
    if (!is_segment_of_iovcache(name)) {
      std::cerr << "/dev/shm/" << name << " is no segment of a service that runs\n";
      return 1;
    }
    try {
      fair::mq::shmem::Segment segment(shmid, static_cast<std::uint16_t>(number), bytes,
                                       fair::mq::shmem::rbTreeBestFit);
      std::cout << name << ": " << segment.GetSize() << " bytes registered\n";
    } catch (const std::exception& error) {
      std::cerr << name << ": " << error.what() << '\n';
      return 1;
    }
  }
  return 0;
}
