// Registers the segments of an iovcache service with FairMQ, so that its devices find them, and takes
// them out of FairMQ's book again.
//
// FairMQ opens a managed segment by its number only if the session's own book, the segment
// fmq_<shmid>_mng, has it. The book is a C++ structure of FairMQ, so FairMQ's own types read and write
// it here. The service runs this program itself, at its start and at its end:
//
//   iovcache serve --source … --fairmq-session NAME --fairmq-segment 8 --fairmq-register ./register
//
// By hand, when the service is ready and before the first device starts, and after it has ended:
//
//   ./register $(jq -r '.fairmq | .shmid, (.segments[] | "\(.id):\(.size)")' ready.json)
//   ./register --remove $(jq -r '.fairmq | .shmid, (.segments[] | "\(.id):\(.size)")' ready.json)
//
// Either way, entries whose segment has no file any more go too: a killed service leaves such, and
// each device that subscribes to region events would log them again and again.
//
// Needs FairMQ and Boost; built only where they are installed:
//
//   c++ -std=c++17 register.cpp -o register -I "$FAIRMQ_ROOT/include"
//     -L "$FAIRMQ_ROOT/lib" -Wl,-rpath,"$FAIRMQ_ROOT/lib" -lfairmq -lFairLogger -lfmt
#include <fairmq/shmem/Common.h>
#include <fairmq/shmem/Segment.h>

#include <boost/interprocess/managed_shared_memory.hpp>
#include <boost/interprocess/sync/interprocess_mutex.hpp>
#include <boost/interprocess/sync/scoped_lock.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

namespace
{
namespace bi = boost::interprocess;
namespace fmq = fair::mq::shmem;

struct Entry {
  std::uint16_t number;
  std::uint64_t bytes;
};

std::string name_of(const std::string& shmid, std::uint16_t number)
{
  return "fmq_" + shmid + "_m_" + std::to_string(number);
}

// Where there is no segment of that name FairMQ would make one, and the service could not.
bool is_segment_of_iovcache(const std::string& name)
{
  std::ifstream file("/dev/shm/" + name, std::ios::binary);
  char magic[8] = {};
  return file.seekg(256).read(magic, sizeof magic) && std::memcmp(magic, "IOVCACHE", 8) == 0;
}

bool parse(const char* text, Entry& entry)
{
  char* rest = nullptr;
  const auto number = std::strtoul(text, &rest, 10);
  entry.bytes = rest != text && *rest == ':' ? std::strtoull(rest + 1, &rest, 10) : 0;
  entry.number = static_cast<std::uint16_t>(number);
  return entry.bytes != 0 && *rest == '\0' && number <= UINT16_MAX;
}

// Removes `gone` and entries without a file from the book. Without a book nothing is done.
void remove_from_book(const std::string& shmid, const std::vector<Entry>& gone)
{
  const std::string book_name = "fmq_" + shmid + "_mng";
  if (!std::ifstream("/dev/shm/" + book_name)) {
    return;
  }
  bi::managed_shared_memory book(bi::open_only, book_name.c_str());
  auto* segments = book.find<fmq::Uint16SegmentInfoHashMap>(bi::unique_instance).first;
  auto* mutex = book.find<bi::interprocess_mutex>(bi::unique_instance).first;
  auto* events = book.find<fmq::EventCounter>(bi::unique_instance).first;
  if (segments == nullptr) {
    return;
  }
  bi::scoped_lock<bi::interprocess_mutex> lock;
  if (mutex != nullptr) {
    lock = bi::scoped_lock<bi::interprocess_mutex>(*mutex, bi::try_to_lock);
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    while (!lock && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      lock.try_lock();
    }
    if (!lock) {
      // A device that was killed may have held it; it is never free again then.
      std::cerr << "session " << shmid << ": FairMQ's book is locked, nothing is removed from it\n";
      return;
    }
  }
  for (auto entry = segments->begin(); entry != segments->end();) {
    const auto number = entry->first;
    const bool is_gone = std::any_of(gone.begin(), gone.end(),
                                     [number](const Entry& one) { return one.number == number; });
    const auto name = name_of(shmid, number);
    if (is_gone || !std::ifstream("/dev/shm/" + name)) {
      entry = segments->erase(entry);
      std::cout << name << ": removed from the book\n";
      if (events != nullptr) {
        ++events->fCount;
      }
    } else {
      ++entry;
    }
  }
}

void add_to_book(const std::string& shmid, const std::vector<Entry>& added)
{
  for (const auto& [number, bytes] : added) {
    fmq::Segment segment(shmid, number, bytes, fmq::rbTreeBestFit);
    std::cout << name_of(shmid, number) << ": " << segment.GetSize() << " bytes registered\n";
  }
}
} // namespace

int main(int count, char** arguments)
{
  const bool is_removal = count > 1 && std::strcmp(arguments[1], "--remove") == 0;
  const int first = is_removal ? 2 : 1;
  if (count < first + 2) {
    std::cerr << "usage: register [--remove] SHMID NUMBER:BYTES [NUMBER:BYTES …]\n";
    return 2;
  }
  const std::string shmid = arguments[first];
  std::vector<Entry> entries;
  for (int place = first + 1; place < count; ++place) {
    Entry entry{};
    if (!parse(arguments[place], entry)) {
      std::cerr << arguments[place] << ": expected NUMBER:BYTES\n";
      return 2;
    }
    const auto name = name_of(shmid, entry.number);
    if (!is_removal && !is_segment_of_iovcache(name)) {
      std::cerr << "/dev/shm/" << name << " is no segment of a service that runs\n";
      return 1;
    }
    entries.push_back(entry);
  }
  try {
    remove_from_book(shmid, is_removal ? entries : std::vector<Entry>{});
    if (!is_removal) {
      add_to_book(shmid, entries);
    }
  } catch (const std::exception& error) {
    std::cerr << "session " << shmid << ": " << error.what() << '\n';
    return 1;
  }
  return 0;
}
