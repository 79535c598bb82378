// Opens one of our segments as Boost.Interprocess opens its own, and finds objects by its handles.
//
//   boost NAME < cells        cells: 40 bytes each
//
// prints the size of the segment, and for each cell its size and its bytes, found through FairMQ's
// and through Boost's usual type of segment, opened for writing and for reading.
#include <boost/interprocess/indexes/null_index.hpp>
#include <boost/interprocess/managed_shared_memory.hpp>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace bi = boost::interprocess;

// FairMQ's default type of managed segments.
using BestFit = bi::basic_managed_shared_memory<
  char, bi::rbtree_best_fit<bi::mutex_family, bi::offset_ptr<void>>, bi::null_index>;

// The fields that FairMQ's shared-memory transport sends, in its order, on x86-64.
struct Header {
  std::size_t size;
  std::size_t hint;
  bi::managed_shared_memory::handle_t handle;
  bi::managed_shared_memory::handle_t shared;
  std::uint16_t region;
  std::uint16_t segment;
  bool managed;
};
static_assert(sizeof(Header) == 40);
static_assert(offsetof(Header, hint) == 8 && offsetof(Header, handle) == 16);
static_assert(offsetof(Header, shared) == 24 && offsetof(Header, region) == 32);
static_assert(offsetof(Header, segment) == 34 && offsetof(Header, managed) == 36);

// The fields before the payload lead to it: the offset of the counts, and from their end the offset
// of the payload.
const char* payload(const char* chunk)
{
  std::uint16_t to_counts = 0, counts[2] = {};
  std::memcpy(&to_counts, chunk, sizeof to_counts);
  std::memcpy(counts, chunk + sizeof to_counts + to_counts, sizeof counts);
  const auto [to_payload, references] = counts;
  const std::size_t part = sizeof to_counts + alignof(std::uint16_t) + sizeof counts;
  return references == 1 ? chunk + part + to_payload : nullptr;
}

template <typename Segment, typename Open>
int find(Open open, const char* name, const std::vector<Header>& cells, std::string& told)
{
  Segment segment(open, name);
  told = std::to_string(segment.get_size()) + "\n";
  for (const auto& cell : cells) {
    const auto* chunk = static_cast<const char*>(segment.get_address_from_handle(cell.handle));
    const auto* bytes = payload(chunk);
    if (bytes == nullptr || bytes != chunk + 16) {
      return 3;
    }
    told += std::to_string(cell.size) + " " + std::string(bytes, cell.size) + "\n";
  }
  return 0;
}

int main(int count, char** arguments)
{
  // Identical to the bytes of the same fields in C++; the last three are padding.
  if (count == 2 && std::strcmp(arguments[1], "header") == 0) {
    Header header;
    std::memset(&header, 0, sizeof header);
    header.size = 0x0102030405060708;
    header.hint = 0x1112131415161718;
    header.handle = 0x2122232425262730;
    header.shared = -1;
    header.segment = 0x3132;
    header.managed = true;
    return std::fwrite(&header, sizeof header, 1, stdout) == 1 ? 0 : 1;
  }
  if (count != 2) {
    return 2;
  }
  const auto* name = arguments[1];
  std::vector<Header> cells(1);
  while (std::fread(&cells.back(), sizeof(Header), 1, stdin) == 1) {
    cells.emplace_back();
  }
  cells.pop_back();
  std::string first, told;
  if (const int bad = find<BestFit>(bi::open_only, name, cells, first)) {
    return bad;
  }
  if (find<BestFit>(bi::open_read_only, name, cells, told) != 0 || told != first ||
      find<bi::managed_shared_memory>(bi::open_only, name, cells, told) != 0 || told != first) {
    return 4;
  }
  // The heap is full: an accidental allocation in it fails and changes nothing.
  BestFit full(bi::open_only, name);
  for (const std::size_t bytes : {1, 64, 4096, 1 << 20}) {
    try {
      full.allocate(bytes);
      return 5;
    } catch (const bi::bad_alloc&) {
    }
  }
  if (!full.check_sanity() || full.all_memory_deallocated() ||
      full.get_free_memory() != 16) {
    return 6;
  }
  std::fputs(first.c_str(), stdout);
  return 0;
}
