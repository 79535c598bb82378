// All calls of the C++ header, once: a consumer of a service, and a device that hosts a cache.
//
//   walk consumer ATTACH_SOCKET < cells          cells: 40 bytes each, the second of them twice
//   walk host SOURCE PATH ATTACH_SOCKET [region FILE | fairmq SHMID]
#include "iovcache.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <vector>

// The Arrow C Data Interface: two structures that every program may define.
struct ArrowSchema {
  const char *format, *name, *metadata;
  std::int64_t flags, n_children;
  ArrowSchema **children, *dictionary;
  void (*release)(ArrowSchema*);
  void* private_data;
};
struct ArrowArray {
  std::int64_t length, null_count, offset, n_buffers, n_children;
  const void** buffers;
  ArrowArray **children, *dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};

#define CHECK(...)                                                                    \
  do {                                                                                \
    if (!(__VA_ARGS__)) {                                                             \
      std::fprintf(stderr, "line %d: %s\n%s\n", __LINE__, #__VA_ARGS__, iovc_last_error()); \
      return 1;                                                                       \
    }                                                                                 \
  } while (false)

static_assert(!std::is_copy_constructible_v<iovcache::Attachment>);
static_assert(std::is_nothrow_move_constructible_v<iovcache::Attachment>);
static_assert(!std::is_copy_constructible_v<iovcache::Cache>);

namespace
{
std::string text(const iovcache::Bytes& bytes)
{
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

int connected(const char* path)
{
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
  const auto* place = reinterpret_cast<const sockaddr*>(&address);
  return ::connect(socket, place, sizeof address) == 0 ? socket : -1;
}

int consumer(const char* path)
{
  std::vector<iovc_meta_header_t> cells(1);
  while (std::fread(&cells.back(), sizeof cells.back(), 1, stdin) == 1) {
    cells.emplace_back();
  }
  cells.pop_back();
  CHECK(cells.size() >= 2);

  auto attached = iovcache::Attachment::open(path, "by-path");
  CHECK(attached);
  auto other = iovcache::Attachment::of_socket(connected(path), "by-descriptor");
  CHECK(other);
  CHECK(!attached->session().empty() && attached->session() != other->session());
  CHECK(attached->epoch() == other->epoch() && attached->alive());

  const auto many = attached->resolve_many(cells.data(), cells.size());
  CHECK(many && many->size() == cells.size());
  for (std::size_t place = 0; place < cells.size(); ++place) {
    const auto one = other->resolve(cells[place]);
    CHECK(one && text(*one) == text((*many)[place]));
    CHECK(one->size() == cells[place].size && other->still_valid(&cells[place]));
    std::printf("%s\n", text(*one).c_str());
  }
  const auto id = attached->object_id(&cells[0]);
  CHECK(id);
  for (const auto byte : *id) {
    std::printf("%02x", byte);
  }
  std::printf("\n");

  // Each run once: rows 1 to 4 of a column whose first run ends after row 2.
  const std::int32_t ends[] = {3, 9};
  const auto rows = attached->resolve_runs(cells.data(), ends, 2, 1, 4);
  CHECK(rows && rows->size() == 4);
  CHECK((*rows)[0].data() == (*many)[0].data() && (*rows)[1].data() == (*many)[0].data());
  CHECK((*rows)[2].data() == (*many)[1].data() && (*rows)[3].data() == (*many)[1].data());

  // A null cell, and a wrong one among right ones.
  auto spoilt = cells;
  spoilt[0] = iovc_meta_header_t{};
  const auto with_null = attached->resolve_many(spoilt.data(), spoilt.size());
  CHECK(with_null && (*with_null)[0].data() == nullptr && (*with_null)[0].empty());
  spoilt[0] = cells[0];
  spoilt[0].hint += 1;
  const auto stale = attached->resolve_many(spoilt.data(), spoilt.size());
  CHECK(!stale && stale.status() == IOVC_FAILED_PRECONDITION);
  CHECK(iovcache::last_error().rfind("[IOV-4045]", 0) == 0);
  std::vector<const void*> data(spoilt.size());
  std::vector<std::size_t> sizes(spoilt.size());
  CHECK(iovc_resolve_many(attached->get(), spoilt.data(), spoilt.size(), data.data(),
                          sizes.data()) == IOVC_FAILED_PRECONDITION);
  CHECK(data[0] == nullptr && data[1] == (*many)[1].data() && sizes[1] == (*many)[1].size());

  // A moved-from handle is empty, and releases nothing twice.
  auto moved = std::move(*attached);
  CHECK(moved.resolve(cells[0]));
  CHECK(!attached->resolve(cells[0]) && !attached->alive());
  *attached = std::move(moved);
  CHECK(attached->resolve(cells[0]));
  attached->unmap_unused();
  CHECK(attached->resolve(cells[0]));
  return 0;
}

void release_array(ArrowArray* array)
{
  for (std::int64_t child = 0; child < array->n_children; ++child) {
    if (array->children[child]->release != nullptr) {
      array->children[child]->release(array->children[child]);
    }
  }
  array->release = nullptr;
}

void release_schema(ArrowSchema* schema)
{
  for (std::int64_t child = 0; child < schema->n_children; ++child) {
    if (schema->children[child]->release != nullptr) {
      schema->children[child]->release(schema->children[child]);
    }
  }
  schema->release = nullptr;
}

// A record batch with one column of timestamps in microseconds, as a struct array.
struct Batch {
  std::vector<std::int64_t> micros;
  const void* values[2] = {nullptr, nullptr};
  const void* none[1] = {nullptr};
  ArrowArray column{}, array{};
  ArrowSchema field{}, schema{};
  ArrowArray* columns[1] = {&column};
  ArrowSchema* fields[1] = {&field};

  explicit Batch(const std::vector<std::int64_t>& millis)
  {
    for (const auto at : millis) {
      micros.push_back(at * 1000 + 999);
    }
    const auto rows = static_cast<std::int64_t>(micros.size());
    values[1] = micros.data();
    column.length = array.length = rows;
    column.n_buffers = 2;
    column.buffers = values;
    array.n_buffers = array.n_children = schema.n_children = 1;
    array.buffers = none;
    array.children = columns;
    schema.children = fields;
    field.format = "tsu:UTC";
    field.name = "timestamp";
    schema.format = "+s";
    schema.name = "";
    column.release = array.release = release_array;
    field.release = schema.release = release_schema;
  }
};

int host(const char* source, const char* path, const char* socket, const std::string& where,
         const char* which)
{
  auto options = iovc_cache_options();
  options.memory_bytes = options.segment_bytes = 1 << 20;
  options.attach_path = socket;
  options.max_timeframes = 1;
  if (where == "region") {
    options.region_path = which;
    options.region_id = 77;
  } else if (where == "fairmq") {
    options.fairmq_shmid = which;
    options.fairmq_segment = 5;
  }
  const auto refused = iovcache::Cache::open({"ftp://nowhere"}, options);
  CHECK(!refused && refused.status() == IOVC_INVALID_ARGUMENT);
  auto cache = iovcache::Cache::open({source}, options);
  CHECK(cache);
  auto attached = cache->attach();
  CHECK(attached);

  const auto request = std::string(R"({"columns": {"object": ")") + path + R"("}, "consumers": ["me", "other"]})";
  Batch batch({1000, 3000, 1000});
  CHECK(cache->register_timeframe(7, &batch.array, &batch.schema, request) == IOVC_OK);
  CHECK(batch.array.release == nullptr && batch.schema.release == nullptr);
  // Ownership is taken also on failure: one timeframe is in flight, and there is no place for
  // another.
  Batch more({1000});
  CHECK(cache->register_timeframe(8, &more.array, &more.schema, request, 50) == IOVC_UNAVAILABLE);
  CHECK(more.array.release == nullptr && more.schema.release == nullptr);
  Batch again({1000, 3000});
  CHECK(cache->register_timeframe(7, &again.array, &again.schema, request) == IOVC_ALREADY_EXISTS);

  ArrowArray table;
  ArrowSchema schema;
  const auto wanted = R"({"timeframe": 7, "consumer": "me", "encoding": "run_end"})";
  const auto lease = cache->table(wanted, &table, &schema);
  CHECK(lease && !lease->empty());
  CHECK(table.length == 3 && table.n_children == 1 && std::string(schema.format) == "+s");
  const auto* column = table.children[0];
  CHECK(std::string(schema.children[0]->format) == "+r" && column->n_children == 2);
  const auto* ends = static_cast<const std::int32_t*>(column->children[0]->buffers[1]);
  const auto* cells = column->children[1]->buffers[1];
  const auto runs = static_cast<std::size_t>(column->children[0]->length);
  const auto rows = attached->resolve_runs(cells, ends, runs, 0, 3);
  CHECK(rows && runs == 3);
  for (const auto& row : *rows) {
    std::printf("%s\n", text(row).c_str());
  }
  iovc_meta_header_t first;
  std::memcpy(&first, cells, sizeof first);
  const auto old = first;
  CHECK(first.managed == (where != "region") && first.region_id == (where == "region" ? 77 : 0));
  CHECK(first.segment_id == (where == "fairmq" ? 5 : 0));
  // Another process finds the same through the socket.
  auto other = iovcache::Attachment::open(socket, "other");
  CHECK(other);
  const auto same = other->resolve(first);
  CHECK(same && text(*same) == text((*rows)[0]));

  const auto status = cache->status();
  CHECK(status && status->find(R"("me":"delivered")") != std::string::npos);
  CHECK(cache->consumed(7, "me") == IOVC_OK);
  CHECK(cache->consumed(7, "nobody") == IOVC_NOT_FOUND);
  CHECK(attached->still_valid(&first) && attached->resolve(first));
  CHECK(cache->oldest_possible("other", 8) == IOVC_OK);
  table.release(&table);
  schema.release(&schema);

  // The table has no holder now. The next objects take its memory, and it becomes stale.
  CHECK(iovc_cache_drop_timeframe(cache->get(), 7) == IOVC_NOT_FOUND);
  for (int round = 0; round < 2; ++round) {
    const auto big = R"({"columns": {"big": "Walk/Big)" + std::to_string(round) +
                     R"("}, "timestamps": [5], "encoding": "plain"})";
    const auto held = cache->table(big, &table, &schema);
    CHECK(held);
    table.release(&table);
    schema.release(&schema);
    CHECK(cache->release(*held) == IOVC_OK && cache->release(*held) == IOVC_NOT_FOUND);
  }
  // A holder of a lease resolves its cells, and releases it once, also after a move.
  const auto wide = R"({"columns": {"big": "Walk/Big1"}, "timestamps": [5], "encoding": "plain"})";
  const auto last = cache->table(wide, &table, &schema);
  CHECK(last);
  std::memcpy(&first, table.children[0]->buffers[1], sizeof first);
  {
    auto held = attached->hold(*last);
    const auto moved = std::move(held);
    CHECK(moved.lease() == *last && moved.resolve(first) && !held.resolve(first));
  }
  CHECK(cache->release(*last) == IOVC_NOT_FOUND);
  CHECK(iovc_release(attached->get(), last->c_str()) == IOVC_NOT_FOUND);
  CHECK(iovc_release(nullptr, last->c_str()) == IOVC_INVALID_ARGUMENT);
  table.release(&table);
  schema.release(&schema);
  // The cells below are those of the first table, whose objects were evicted.
  std::memcpy(&first, &old, sizeof first);
  CHECK(!attached->still_valid(&first) && !other->still_valid(&first));
  const auto gone = attached->resolve(first);
  CHECK(!gone && gone.status() == IOVC_FAILED_PRECONDITION);

  // When the cache is destroyed the session ends, and mapped memory stays readable.
  const auto nothing = cache->table("{", &table, &schema);
  CHECK(!nothing && nothing.status() == IOVC_INVALID_ARGUMENT && table.release == nullptr);
  *attached = std::move(*other);
  {
    const auto closing = std::move(*cache);
  }
  for (int tries = 0; attached->alive() && tries < 1000; ++tries) {
    ::usleep(10'000);
  }
  CHECK(!attached->alive() && ::access(socket, F_OK) != 0);
  return 0;
}
} // namespace

int main(int count, char** arguments)
{
  const std::string what = count > 2 ? arguments[1] : "";
  if (what == "consumer") {
    return consumer(arguments[2]);
  }
  if (what == "host" && count == 5) {
    return host(arguments[2], arguments[3], arguments[4], "", nullptr);
  }
  if (what == "host" && count == 7) {
    return host(arguments[2], arguments[3], arguments[4], arguments[5], arguments[6]);
  }
  return 2;
}
