// A device with a cache in segments of its own FairMQ session, and consumers in other transports.
//
//   renewal reset SOURCE SESSION SHMID REGISTER ROUNDS      the cache is destroyed and made anew
//   renewal renew SOURCE SESSION SHMID REGISTER removed|overwritten
//
// REGISTER is examples/fairmq/register.cpp, compiled. The repository has 6 paths of 30 versions, three
// times what the memory holds.
#include <iovcache/fairmq.hpp>

#include "objects.hpp"
#include "transport.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace
{
constexpr unsigned paths = 6;
constexpr unsigned versions = 30;
constexpr std::size_t cell_bytes = sizeof(iovc_meta_header_t);

// Calls the program that writes FairMQ's registry, and counts.
struct Registry {
  std::string program;
  std::string shmid;
  std::set<std::uint16_t> numbers;
  std::set<std::uint16_t> seen;
  bool is_refusing = false;

  iovc_segment_registry_t functions() { return {this, &add, &remove}; }

  int run(const std::string& options, std::uint16_t number, std::uint64_t size) const
  {
    const auto command = program + options + " " + shmid + " " + std::to_string(number) + ":" +
                         std::to_string(size) + " > /dev/null";
    return std::system(command.c_str());
  }
  static int add(void* context, const iovc_segment_t* segment)
  {
    auto* self = static_cast<Registry*>(context);
    // A number is used once in a session.
    CHECK(self->seen.insert(segment->number).second);
    if (self->is_refusing) {
      return 7;
    }
    CHECK(segment->managed == 1 && segment->size > 0);
    CHECK(self->run("", segment->number, segment->size) == 0);
    CHECK(self->numbers.insert(segment->number).second);
    return 0;
  }
  static void remove(void* context, std::uint16_t number)
  {
    auto* self = static_cast<Registry*>(context);
    CHECK(self->numbers.erase(number) == 1);
    CHECK(self->run(" --remove", number, 1) == 0);
  }
};

iovcache::Cache open(const std::string& source, Registry& registry)
{
  auto options = iovc_cache_options();
  options.memory_bytes = 1 << 20;
  options.segment_bytes = 1 << 18;
  options.fairmq_shmid = registry.shmid.c_str();
  options.fairmq_segment = 8;
  auto cache = iovcache::Cache::open({source}, options);
  CHECK(cache);
  const auto segments = cache->segments();
  CHECK(segments && segments->size() == 4);
  for (const auto& segment : *segments) {
    CHECK(Registry::add(&registry, &segment) == 0);
  }
  return std::move(*cache);
}

struct Cell {
  iovc_meta_header_t header;
  unsigned path;
  unsigned version;
};

std::vector<Cell> cells_of(const ArrowArray& table, unsigned path, unsigned first, unsigned count)
{
  std::vector<Cell> cells;
  const auto* values = static_cast<const char*>(table.children[0]->buffers[1]);
  for (unsigned row = 0; row < count; ++row) {
    cells.push_back({{}, path, first + row});
    std::memcpy(&cells.back().header, values + row * cell_bytes, cell_bytes);
  }
  return cells;
}

std::string columns(unsigned path)
{
  return "{\"columns\": {\"c\": \"Host/P" + std::to_string(path) + "\"}";
}

void give_back(ArrowArray& array, ArrowSchema& schema)
{
  array.release(&array);
  schema.release(&schema);
}

std::vector<Cell> table(const iovcache::Cache& cache, unsigned path, unsigned first, unsigned count,
                        std::string& lease)
{
  auto request = columns(path) + ", \"encoding\": \"plain\", \"timestamps\": [";
  for (unsigned row = 0; row < count; ++row) {
    request += (row == 0 ? "" : ", ") + std::to_string((first + row) * 1000 + 1);
  }
  ArrowArray array{};
  ArrowSchema schema{};
  auto held = cache.table(request + "]}", &array, &schema);
  CHECK(held);
  lease = *held;
  auto cells = cells_of(array, path, first, count);
  give_back(array, schema);
  return cells;
}

long right_cells = 0;
long stale_cells = 0;

// Every cell gives its own object, or an error. `with_o2`: also as AliceO2's cell, which has no
// generation.
void read(iovcache::fairmq::Resolver& resolver, const std::vector<Cell>& cells, bool with_o2)
{
  for (const auto& cell : cells) {
    const auto& header = cell.header;
    const auto found = resolver.resolve(header);
    CHECK(!found || is_object(*found, cell.path, cell.version));
    ++(found ? right_cells : stale_cells);
    if (with_o2) {
      const auto o2 = resolver.resolve_o2(header.handle, header.segment_id,
                                          static_cast<std::int64_t>(header.size));
      CHECK(!o2 || is_object(*o2, cell.path, cell.version));
    }
  }
}

bool all(iovcache::fairmq::Resolver& resolver, const std::vector<Cell>& cells, iovc_status_t status)
{
  return std::all_of(cells.begin(), cells.end(), [&](const Cell& cell) {
    const auto found = resolver.resolve(cell.header);
    return found.status() == status && (!found || is_object(*found, cell.path, cell.version));
  });
}

// FairMQ's RESET and INIT, again and again, in one process and beside living consumers.
int reset(const std::string& source, const std::string& session, Registry registry, unsigned rounds)
{
  auto living = transport(session, "living", 4 << 20);
  iovcache::fairmq::Resolver resolver(*living);
  std::vector<Cell> earlier;
  for (unsigned round = 0; round < rounds; ++round) {
    {
      auto cache = open(source, registry);
      // More than the memory holds, so that places are reused within the segments.
      std::string lease;
      std::vector<Cell> evicted;
      for (unsigned path = 0; path < paths; ++path) {
        const auto cells = table(cache, path, 0, 10, lease);
        // A device looks segments up at most once in 100 ms.
        ::usleep(path == 0 ? 110'000 : 0);
        CHECK(all(resolver, cells, IOVC_OK));
        read(resolver, evicted, false);
        read(resolver, earlier, false);
        evicted = cells;
        CHECK(cache.release(lease) == IOVC_OK);
      }
      // These are held at the RESET.
      const auto held = table(cache, round % paths, 12, 8, lease);
      read(resolver, held, true);
      earlier.insert(earlier.end(), held.begin(), held.end());
    }
    for (const auto number : std::set<std::uint16_t>(registry.numbers)) {
      Registry::remove(&registry, number);
    }
    read(resolver, earlier, true);
    auto fresh = transport(session, "fresh", 4 << 20);
    iovcache::fairmq::Resolver other(*fresh);
    read(other, earlier, true);
  }
  CHECK(registry.seen.size() == rounds * 4 && stale_cells > 0);
  return 0;
}

// Timestamps for the Arrow C Data Interface.
void timestamps(std::vector<std::int64_t>& values, const void* (&buffers)[2], ArrowArray& array,
                ArrowSchema& schema)
{
  buffers[0] = nullptr;
  buffers[1] = values.data();
  array = ArrowArray{};
  array.length = static_cast<std::int64_t>(values.size());
  array.n_buffers = 2;
  array.buffers = buffers;
  array.release = [](ArrowArray* released) { released->release = nullptr; };
  schema = ArrowSchema{};
  schema.format = "l";
  schema.name = "timestamp";
  schema.release = [](ArrowSchema* released) { released->release = nullptr; };
}

std::vector<Cell> timeframe(const iovcache::Cache& cache, const std::string& consumer)
{
  ArrowArray array{};
  ArrowSchema schema{};
  const auto request =
    "{\"timeframe\": 1, \"encoding\": \"plain\", \"consumer\": \"" + consumer + "\"}";
  CHECK(cache.table(request, &array, &schema));
  auto cells = cells_of(array, 0, 0, 4);
  give_back(array, schema);
  return cells;
}

// Loses a segment as an operator's `fairmq-shmmonitor` does while devices run.
void lose(const Registry& registry, std::uint16_t number, bool is_removed)
{
  const auto file = "/dev/shm/fmq_" + registry.shmid + "_m_" + std::to_string(number);
  if (is_removed) {
    CHECK(::unlink(file.c_str()) == 0);
    return;
  }
  const int descriptor = ::open(file.c_str(), O_WRONLY);
  const std::string reset(512, '\0');
  CHECK(::pwrite(descriptor, reset.data(), reset.size(), 0) == 512);
  ::close(descriptor);
}

int renew(const std::string& source, const std::string& session, Registry registry, bool is_removed)
{
  auto cache = open(source, registry);
  const auto functions = registry.functions();
  const auto quiet = cache.renew(&functions);
  CHECK(quiet && quiet->lost == 0 && quiet->made == 0 && quiet->waiting == 0);

  std::vector<std::int64_t> times{1, 1001, 2001, 3001};
  const void* buffers[2];
  ArrowArray array;
  ArrowSchema schema;
  timestamps(times, buffers, array, schema);
  CHECK(cache.register_timeframe(1, &array, &schema, columns(0) +
                                 ", \"consumers\": [\"a\", \"b\"]}") == IOVC_OK);
  auto living = transport(session, "living", 4 << 20);
  iovcache::fairmq::Resolver resolver(*living);
  const auto delivered = timeframe(cache, "a");
  CHECK(all(resolver, delivered, IOVC_OK));
  std::string lease;
  const auto leased = table(cache, 1, 0, 2, lease);
  CHECK(all(resolver, leased, IOVC_OK));
  const auto number = delivered[0].header.segment_id;
  CHECK(number == 8 && leased[0].header.segment_id == 8);

  lose(registry, number, is_removed);
  const auto status = cache.status();
  CHECK(status && status->find("m_8") != std::string::npos);
  const auto lost = cache.renew(&functions);
  CHECK(lost && lost->lost == 1 && lost->made == 0 && lost->waiting == 1);
  CHECK(registry.numbers.count(8) == 0);
  // Consumers of earlier tables read on where the bytes stay what they are, and are told else.
  const auto kept = is_removed ? IOVC_OK : IOVC_FAILED_PRECONDITION;
  CHECK(all(resolver, delivered, kept) && all(resolver, leased, kept));
  auto started = transport(session, "started", 4 << 20);
  iovcache::fairmq::Resolver other(*started);
  CHECK(all(other, delivered, IOVC_FAILED_PRECONDITION));
  ::usleep(110'000);
  // The timeframe is issued anew, for the consumer that waits for it and for the other.
  const auto again = timeframe(cache, "b");
  CHECK(again[0].header.segment_id != 8);
  CHECK(all(other, again, IOVC_OK) && all(resolver, again, IOVC_OK));
  CHECK(all(other, timeframe(cache, "a"), IOVC_OK));
  std::string other_lease;
  CHECK(all(other, table(cache, 1, 0, 2, other_lease), IOVC_OK));

  // The segment is replaced when nothing is held in it, and if the new one can be registered.
  CHECK(cache.consumed(1, "a") == IOVC_OK);
  const auto held = cache.renew(&functions);
  CHECK(held && held->lost == 0 && held->made == 0 && held->waiting == 1);
  CHECK(cache.release(lease) == IOVC_OK);
  registry.is_refusing = true;
  const auto refused = cache.renew(&functions);
  CHECK(!refused && refused.status() == IOVC_UNAVAILABLE);
  CHECK(iovcache::last_error().find("status 7") != std::string::npos);
  registry.is_refusing = false;
  const auto made = cache.renew(&functions);
  CHECK(made && made->made == 1 && made->waiting == 0 && registry.numbers.size() == 4);
  CHECK(all(resolver, delivered, IOVC_FAILED_PRECONDITION));
  CHECK(all(resolver, leased, IOVC_FAILED_PRECONDITION));
  CHECK(all(resolver, again, IOVC_OK) && all(other, again, IOVC_OK));
  CHECK(cache.consumed(1, "b") == IOVC_OK);

  // All at once, as by `fairmq-shmmonitor --cleanup`: the new ones get other numbers.
  for (const auto segment : std::set<std::uint16_t>(registry.numbers)) {
    lose(registry, segment, is_removed);
  }
  CHECK(cache.release(other_lease) == IOVC_OK);
  const auto anew = cache.renew(&functions);
  CHECK(anew && anew->lost == 4 && anew->made == 4 && anew->waiting == 0);
  ::usleep(110'000);
  const auto last = table(cache, 2, 0, 3, lease);
  CHECK(all(resolver, last, IOVC_OK));
  CHECK(all(resolver, again, IOVC_FAILED_PRECONDITION));
  CHECK(iovc_cache_renew(nullptr, nullptr, nullptr) == IOVC_INVALID_ARGUMENT);
  CHECK(iovc_cache_renew(cache.get(), nullptr, nullptr) == IOVC_OK);
  return 0;
}
} // namespace

int main(int count, char** arguments)
{
  CHECK(count == 7);
  const std::string what = arguments[1];
  const std::string last = arguments[6];
  const Registry registry{arguments[5], arguments[4], {}, {}, false};
  const int status =
    what == "reset"
      ? reset(arguments[2], arguments[3], registry, static_cast<unsigned>(std::stoi(last)))
      : renew(arguments[2], arguments[3], registry, last == "removed");
  std::printf("%ld right, %ld stale\n", right_cells, stale_cells);
  return status;
}
