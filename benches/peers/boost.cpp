// Objects by name in a managed segment of Boost.Interprocess: one process constructs them, another
// finds them. Prints nanoseconds: looking all up, getting all large ones, storing all.

#include <algorithm>
#include <boost/interprocess/managed_shared_memory.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace bip = boost::interprocess;
using Clock = std::chrono::steady_clock;

static std::vector<std::string> names(const char *kind, std::size_t count) {
  std::vector<std::string> names;
  for (std::size_t n = 0; n < count; ++n) names.push_back(std::string(kind) + "/" + std::to_string(n));
  return names;
}

static unsigned long long touch(bip::managed_shared_memory &segment, const std::string &name) {
  auto found = segment.find<unsigned char>(name.c_str());
  if (found.first == nullptr) std::abort();
  unsigned long long sum = 0;
  for (std::size_t at = 0; at < found.second; at += 4096) sum += found.first[at];
  return sum;
}

template <typename Turn> static long long median(std::size_t rounds, Turn turn) {
  std::vector<long long> took;
  for (std::size_t round = 0; round <= rounds; ++round) {
    auto began = Clock::now();
    turn();
    auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - began).count();
    if (round > 0) took.push_back(ns);
  }
  std::sort(took.begin(), took.end());
  return took[took.size() / 2];
}

int main(int argc, char **argv) {
  if (argc != 7) return 2;
  std::size_t of[6];
  for (int n = 0; n < 6; ++n) of[n] = std::strtoull(argv[n + 1], nullptr, 10);
  const std::size_t keys = of[0], large = of[1], large_bytes = of[2];
  const std::size_t stored = of[3], stored_bytes = of[4], rounds = of[5];
  const std::string name = "iovcache-peers-" + std::to_string(getpid());
  struct Remove {
    std::string name;
    pid_t maker = getpid();
    ~Remove() {
      if (getpid() == maker) bip::shared_memory_object::remove(name.c_str());
    }
  } remove{name};
  const std::size_t bytes =
      keys * 512 + large * (large_bytes + 4096) + stored * (stored_bytes + 4096) + (16u << 20);
  bip::managed_shared_memory segment(bip::create_only, name.c_str(), bytes);
  const auto small_names = names("small", keys), large_names = names("large", large);
  for (const auto &one : small_names) segment.construct<unsigned char>(one.c_str())[64](7);
  for (const auto &one : large_names) {
    auto *place = segment.construct<unsigned char>(one.c_str())[large_bytes](0);
    std::memset(place, 7, large_bytes);
  }
  std::fflush(stdout);
  const pid_t reader = fork();
  if (reader == 0) {
    bip::managed_shared_memory opened(bip::open_only, name.c_str());
    volatile unsigned long long sum = 0;
    const long long look_up = median(rounds, [&] {
      for (const auto &one : small_names) sum = sum + touch(opened, one);
    });
    const long long get = median(rounds, [&] {
      for (const auto &one : large_names) sum = sum + touch(opened, one);
    });
    std::printf("%lld %lld ", look_up, get);
    std::fflush(stdout);
    _exit(0);
  }
  int status = 0;
  if (waitpid(reader, &status, 0) != reader || status != 0) return 1;
  const std::vector<unsigned char> object(stored_bytes, 9);
  const auto stored_names = names("stored", stored);
  std::vector<long long> took;
  for (std::size_t round = 0; round <= rounds; ++round) {
    auto began = Clock::now();
    for (const auto &one : stored_names)
      segment.construct_it<unsigned char>(one.c_str())[stored_bytes](object.data());
    auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - began).count();
    if (round > 0) took.push_back(ns);
    for (const auto &one : stored_names) segment.destroy<unsigned char>(one.c_str());
  }
  std::sort(took.begin(), took.end());
  std::printf("%lld\n", took[took.size() / 2]);
  return 0;
}
