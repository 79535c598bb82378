// Forged headers through iovc_resolve: no crash, and no byte outside of a live block.
//
//   forged ATTACH_SOCKET COUNT SEED < cells        cells: 40 bytes each, of live objects
//
// Each header is a real one with some of its fields changed, or random. A missing segment is
// requested from the service, which is slow, so it is tried rarely. A header that resolves must
// yield exactly the bytes of a real one, and they are read.
#include "iovcache.hpp"

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

int main(int count, char** arguments)
{
  if (count != 4) {
    return 2;
  }
  auto attached = iovcache::Attachment::open(arguments[1], "forger");
  if (!attached) {
    std::fprintf(stderr, "%s\n", iovcache::last_error().c_str());
    return 1;
  }
  std::vector<iovc_meta_header_t> real;
  iovc_meta_header_t header;
  while (std::fread(&header, sizeof header, 1, stdin) == 1) {
    real.push_back(header);
  }
  std::vector<iovcache::Bytes> wanted;
  for (const auto& one : real) {
    const auto bytes = attached->resolve(one);
    if (!bytes) {
      std::fprintf(stderr, "a real header: %s\n", iovcache::last_error().c_str());
      return 1;
    }
    wanted.push_back(*bytes);
  }
  const auto rounds = std::strtoull(arguments[2], nullptr, 10);
  std::mt19937_64 random(std::strtoull(arguments[3], nullptr, 10));
  unsigned long long resolved = 0, refused = 0;
  std::uint64_t sum = 0;
  for (unsigned long long round = 0; round < rounds; ++round) {
    const auto dice = random();
    auto forged = real[(dice >> 40) % real.size()];
    const auto value = random();
    switch (dice % 16) {
      case 0: forged.size = value; break;
      case 1: forged.size += static_cast<std::int64_t>(value % 257) - 128; break;
      case 2: forged.hint = value; break;
      case 3: forged.hint += static_cast<std::int64_t>(value % 5) - 2; break;
      case 4: forged.handle = static_cast<std::int64_t>(value); break;
      case 5: forged.handle += (static_cast<std::int64_t>(value % 2049) - 1024) * 16; break;
      case 6: forged.handle += static_cast<std::int64_t>(value % 257) - 128; break;
      case 7: forged.handle = INT64_MAX - static_cast<std::int64_t>(value % 512); break;
      case 8: forged.handle = INT64_MIN + static_cast<std::int64_t>(value % 512); break;
      case 9: forged.size = UINT64_MAX - value % 512; break;
      case 10: forged.managed ^= value % 4096 == 0 ? 1 : 0; break;
      case 11: forged.managed = static_cast<std::uint8_t>(2 + value % 254); break;
      case 12: forged.handle = real[value % real.size()].handle; break;
      case 13: forged.size = real[value % real.size()].size; break;
      // A missing segment is requested from the service, which is slow: rarely.
      case 14:
        if (value % 4096 == 0) {
          auto& number = value & 4096 ? forged.segment_id : forged.region_id;
          number = static_cast<std::uint16_t>(value >> 20);
        }
        break;
      default:
        forged.size = value >> (dice >> 8) % 64;
        forged.handle = static_cast<std::int64_t>(random() >> (dice >> 16) % 64);
        forged.hint = random();
    }
    const auto bytes = attached->resolve(forged);
    if (!bytes) {
      ++refused;
      continue;
    }
    ++resolved;
    bool known = false;
    for (std::size_t place = 0; place < real.size() && !known; ++place) {
      known = wanted[place].data() == bytes->data() && wanted[place].size() == bytes->size() &&
              real[place].hint == forged.hint;
    }
    if (!known) {
      std::fprintf(stderr, "%zu bytes that no object has, for a header made from seed %s\n",
                   bytes->size(), arguments[3]);
      return 1;
    }
    // Long objects are read completely now and then, otherwise at their ends.
    const auto step = bytes->size() > 4096 && round % 64 != 0 ? bytes->size() - 1 : 1;
    for (std::size_t place = 0; place < bytes->size(); place += step) {
      sum += static_cast<std::uint8_t>((*bytes)[place]);
    }
  }
  std::printf("%llu resolved, %llu refused, sum %" PRIu64 "\n", resolved, refused, sum);
  return 0;
}
