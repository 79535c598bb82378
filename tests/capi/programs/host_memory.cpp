// A device that keeps its objects in its own FairMQ memory, and a consumer with a transport of its
// own that resolves every cell and checks every byte.
//
//   host_memory SOURCE SESSION segment|region PATHS VERSIONS ROUNDS
//
// More objects than the memory holds are asked for, so that they are evicted.
#include <iovcache/fairmq.hpp>

#include "objects.hpp"
#include "transport.hpp"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace
{
std::atomic<long> allocated{0};
std::atomic<long> released{0};
std::atomic<long> refused{0};

// Counts what passes through to the memory of the transport.
struct Counted {
  const iovc_host_memory_t* inner;
  iovc_host_memory_t functions{this, &allocate, &release};

  static int allocate(void* context, std::size_t size, std::size_t align, void** data,
                      iovc_meta_header_t* header)
  {
    const auto* inner = static_cast<Counted*>(context)->inner;
    const int status = inner->allocate(inner->context, size, align, data, header);
    ++(status == 0 ? allocated : refused);
    return status;
  }
  static void release(void* context, const iovc_meta_header_t* header)
  {
    const auto* inner = static_cast<Counted*>(context)->inner;
    inner->release(inner->context, header);
    ++released;
  }
};

void give_back(ArrowArray& array, ArrowSchema& schema)
{
  array.release(&array);
  schema.release(&schema);
}

constexpr unsigned held_versions = 5;

std::string request_of(unsigned path, unsigned count)
{
  auto request = "{\"columns\": {\"c\": \"Host/P" + std::to_string(path) +
                 "\"}, \"encoding\": \"plain\", \"timestamps\": [";
  for (unsigned version = 0; version < count; ++version) {
    request += (version == 0 ? "" : ", ") + std::to_string(version * 1000 + 1);
  }
  return request + "]}";
}

// The cells of a table whose lease is not released.
std::vector<char> hold(const iovcache::Cache& cache)
{
  ArrowArray table{};
  ArrowSchema schema{};
  CHECK(cache.table(request_of(0, held_versions), &table, &schema));
  const auto* cells = static_cast<const char*>(table.children[0]->buffers[1]);
  std::vector<char> held(cells, cells + held_versions * sizeof(iovc_meta_header_t));
  give_back(table, schema);
  return held;
}

void load(const iovcache::Cache& cache, unsigned path, unsigned versions)
{
  for (unsigned count = 1; count <= versions; count += 7) {
    ArrowArray table{};
    ArrowSchema schema{};
    const auto lease = cache.table(request_of(path, count), &table, &schema);
    CHECK(lease);
    give_back(table, schema);
    CHECK(cache.release(*lease) == IOVC_OK);
  }
}
} // namespace

int main(int count, char** arguments)
{
  CHECK(count == 7);
  const std::string source = arguments[1];
  const std::string session = arguments[2];
  const bool in_region = std::string(arguments[3]) == "region";
  const auto paths = static_cast<unsigned>(std::atoi(arguments[4]));
  const auto versions = static_cast<unsigned>(std::atoi(arguments[5]));
  const int rounds = std::atoi(arguments[6]);
  const std::size_t memory_bytes = 1 << 20;

  auto device = transport(session, "device", 8 << 20);
  auto consumer = transport(session, "consumer", 8 << 20);
  fair::mq::UnmanagedRegionPtr region;
  std::unique_ptr<iovcache::fairmq::SegmentMemory> segment_memory;
  std::unique_ptr<iovcache::fairmq::RegionMemory> region_memory;
  Counted counted{nullptr};
  if (in_region) {
    region = make_region(*device, memory_bytes);
    region_memory = std::make_unique<iovcache::fairmq::RegionMemory>(*region);
    counted.inner = region_memory->functions();
  } else {
    segment_memory = std::make_unique<iovcache::fairmq::SegmentMemory>(*device);
    counted.inner = segment_memory->functions();
  }
  auto options = iovc_cache_options();
  options.memory_bytes = memory_bytes;
  options.host_memory = &counted.functions;
  long cells = 0;
  long wrong = 0;
  iovcache::fairmq::Resolver resolver(*consumer);
  std::vector<char> held;
  {
    auto cache = iovcache::Cache::open({source}, options);
    CHECK(cache);
    size_t segments = 1;
    CHECK(iovc_cache_segments(cache->get(), nullptr, 0, &segments) == IOVC_OK && segments == 0);
    auto attached = cache->attach();
    CHECK(attached);
    const char* encodings[] = {"run_end", "dictionary", "plain"};
    const char* kinds[] = {"binary", "struct", "o2"};
    for (int round = 0; round < rounds; ++round) {
      const unsigned path = static_cast<unsigned>(round) % paths;
      const bool o2 = round % 3 == 2;
      if (o2 && in_region) {
        continue; // an o2 cell names managed segments only
      }
      std::string request = "{\"columns\": {\"c\": \"Host/P" + std::to_string(path) +
                            "\"}, \"timestamps\": [";
      for (unsigned row = 0; row < 2 * versions; ++row) {
        request += (row == 0 ? "" : ", ") + std::to_string(row * 500 + 1);
      }
      request += std::string("], \"cell\": \"") + kinds[round % 3] + "\", \"encoding\": \"" +
                 encodings[round / 3 % 3] + "\"}";
      ArrowArray table{};
      ArrowSchema schema{};
      auto lease = cache->table(request, &table, &schema);
      CHECK(lease);
      const auto found = resolver.resolve_array(*schema.children[0], *table.children[0]);
      CHECK(found);
      CHECK(found->size() == 2 * versions);
      for (unsigned row = 0; row < 2 * versions; ++row) {
        ++cells;
        wrong += is_object((*found)[row], path, row / 2) ? 0 : 1;
      }
      const auto runs = resolver.resolve_runs(*schema.children[0], *table.children[0]);
      CHECK(runs && runs->size() >= versions);
      if (std::string(encodings[round / 3 % 3]) == "plain" && round % 3 == 0) {
        // This process resolves by its own cache as well, generation and size checked.
        const auto* cell = static_cast<const char*>(table.children[0]->buffers[1]);
        const auto own = attached->resolve(cell);
        CHECK(own && is_object(*own, path, 0));
        auto stale = std::string(cell, 40);
        ++stale[8];
        CHECK(attached->resolve(stale.data()).status() == IOVC_FAILED_PRECONDITION);
      }
      give_back(table, schema);
      CHECK(cache->release(*lease) == IOVC_OK);
    }
    auto status = cache->status();
    CHECK(status);
    std::fprintf(stderr, "%s\n", status->c_str());
    held = hold(*cache);
  }
  // A consumer may still read what a table holds when the cache ends: it stays, whatever is loaded
  // by the next cache in the same memory.
  CHECK(allocated - released == held_versions);
  {
    auto next = iovcache::Cache::open({source}, options);
    CHECK(next);
    for (unsigned path = 1; path < paths; ++path) {
      load(*next, path, versions);
    }
  }
  for (unsigned version = 0; version < held_versions; ++version) {
    const auto found = resolver.resolve(held.data() + version * sizeof(iovc_meta_header_t));
    CHECK(found && is_object(*found, 0, version));
  }
  CHECK(allocated - released == held_versions);
  released += held_versions;
  std::printf("%ld cells, %ld wrong, %ld allocated, %ld released\n", cells, wrong,
              allocated.load(), released.load());
  return wrong == 0 ? 0 : 1;
}
