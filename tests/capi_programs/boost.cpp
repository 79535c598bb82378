// Opens a segment of ours as Boost.Interprocess opens its own, and finds objects by its handles.
//
//   boost NAME SIZE < cells        SIZE: bytes of the segment; cells: 40 bytes each
//
// prints for each cell its size and its bytes.
#include <boost/interprocess/managed_shared_memory.hpp>

#include <cstdint>
#include <cstdio>
#include <cstring>

// The fields that FairMQ's shared-memory transport sends, in its order, on x86-64.
struct Header {
  std::size_t size;
  std::size_t hint;
  boost::interprocess::managed_shared_memory::handle_t handle;
  boost::interprocess::managed_shared_memory::handle_t shared;
  std::uint16_t region;
  std::uint16_t segment;
  bool managed;
};
static_assert(sizeof(Header) == 40);
static_assert(offsetof(Header, hint) == 8 && offsetof(Header, handle) == 16);
static_assert(offsetof(Header, shared) == 24 && offsetof(Header, region) == 32);
static_assert(offsetof(Header, segment) == 34 && offsetof(Header, managed) == 36);

// What stands in front of a payload there: the payload begins behind it.
struct Chunk {
  std::uint16_t count;
  std::uint16_t reserved;
  std::uint16_t offset;
  std::uint16_t flags;
  std::uint64_t rest;
};
static_assert(sizeof(Chunk) == 16);

int main(int count, char** arguments)
{
  namespace bi = boost::interprocess;
  // Byte for byte what the same fields in C++ give; the two last are padding.
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
  bi::managed_shared_memory segment(bi::open_read_only, arguments[1]);
  std::printf("%zu\n", segment.get_size());
  Header header;
  while (std::fread(&header, sizeof header, 1, stdin) == 1) {
    const auto* chunk = static_cast<const Chunk*>(segment.get_address_from_handle(header.handle));
    if (chunk->count != 2 || chunk->offset != 8 || chunk->flags != 1) {
      return 3;
    }
    const auto* payload = reinterpret_cast<const char*>(chunk + 1);
    std::printf("%zu %.*s\n", header.size, static_cast<int>(header.size), payload);
  }
  return 0;
}
