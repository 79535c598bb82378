// The objects of the test's repository, by path and version, and what each test program needs.
#ifndef IOVCACHE_TESTS_OBJECTS_HPP
#define IOVCACHE_TESTS_OBJECTS_HPP

#include <iovcache.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#define CHECK(...)                                                                          \
  do {                                                                                      \
    if (!(__VA_ARGS__)) {                                                                   \
      std::fprintf(stderr, "line %d: %s\n%s\n", __LINE__, #__VA_ARGS__, iovc_last_error()); \
      std::exit(1);                                                                         \
    }                                                                                       \
  } while (false)

// Object p of version v, valid from v * 1000 for 1000 ms under the path Host/P<p>.
inline std::string object(unsigned path, unsigned version)
{
  std::uint64_t word = 0x9E3779B97F4A7C15u * (path * 1000u + version + 1u);
  std::string bytes(2000 + 37 * ((path * 31 + version * 17) % 900), '\0');
  for (auto& byte : bytes) {
    word ^= word << 13;
    word ^= word >> 7;
    word ^= word << 17;
    byte = static_cast<char>(word >> 24);
  }
  return bytes;
}

inline bool is_object(const iovcache::Bytes& bytes, unsigned path, unsigned version)
{
  const auto expected = object(path, version);
  return bytes.size() == expected.size() &&
         std::memcmp(bytes.data(), expected.data(), expected.size()) == 0;
}

#endif
