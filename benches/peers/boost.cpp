// Objects by name in a managed segment of Boost.Interprocess: one process constructs them, another
// finds them. Prints nanoseconds: looking up one of few and one of many at random, looking all up,
// getting all large ones, storing all.

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

// Look-ups of one object each that a round makes, as in the bench.
static const std::size_t look_ups = 100000;

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
  if (argc != 9) return 2;
  std::size_t of[8];
  for (int n = 0; n < 8; ++n) of[n] = std::strtoull(argv[n + 1], nullptr, 10);
  const std::size_t few = of[0], many = of[1], keys = of[2], large = of[3], large_bytes = of[4];
  const std::size_t stored = of[5], stored_bytes = of[6], rounds = of[7];
  const std::string name = "iovcache-peers-" + std::to_string(getpid());
  struct Remove {
    std::string name;
    pid_t maker = getpid();
    ~Remove() {
      if (getpid() == maker) bip::shared_memory_object::remove(name.c_str());
    }
  } remove{name};
  const std::size_t bytes =
      (few + many + keys) * 512 + large * (large_bytes + 4096) + stored * (stored_bytes + 4096) + (16u << 20);
  bip::managed_shared_memory segment(bip::create_only, name.c_str(), bytes);
  const auto small_names = names("small", keys), large_names = names("large", large);
  for (const auto &one : small_names) segment.construct<unsigned char>(one.c_str())[64](7);
  for (const auto &one : large_names) {
    auto *place = segment.construct<unsigned char>(one.c_str())[large_bytes](0);
    std::memset(place, 7, large_bytes);
  }
  const auto few_names = names("few", few), many_names = names("many", many);
  for (const auto &one : few_names) segment.construct<unsigned char>(one.c_str())[64](7);
  for (const auto &one : many_names) segment.construct<unsigned char>(one.c_str())[64](7);
  std::fflush(stdout);
  const pid_t reader = fork();
  if (reader == 0) {
    bip::managed_shared_memory opened(bip::open_only, name.c_str());
    volatile unsigned long long sum = 0;
    const auto one_at_a_time = [&](const std::vector<std::string> &names) {
      return median(rounds, [&] {
        unsigned long long state = 1;
        for (std::size_t n = 0; n < look_ups; ++n) {
          const auto &one = names[(state >> 33) % names.size()];
          sum = sum + opened.find<unsigned char>(one.c_str()).first[0];
          state = state * 6364136223846793005ull + 1442695040888963407ull;
        }
      });
    };
    const long long of_few = one_at_a_time(few_names), of_many = one_at_a_time(many_names);
    const long long look_up = median(rounds, [&] {
      for (const auto &one : small_names) sum = sum + touch(opened, one);
    });
    const long long get = median(rounds, [&] {
      for (const auto &one : large_names) sum = sum + touch(opened, one);
    });
    std::printf("%lld %lld %lld %lld ", of_few, of_many, look_up, get);
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
