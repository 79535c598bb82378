/* A device in C that gives its own memory to a cache: headers, limits, refusals, the end.
 *
 *   memory SOURCE PATH
 */
#include "arrow.h"
#include "iovcache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(...)                                                                          \
  do {                                                                                      \
    if (!(__VA_ARGS__)) {                                                                   \
      fprintf(stderr, "line %d: %s\n%s\n", __LINE__, #__VA_ARGS__, iovc_last_error());      \
      exit(1);                                                                              \
    }                                                                                       \
  } while (0)

struct memory {
  int allocated, released;
  int refuse;
  size_t last_size;
};

static int allocate(void *context, size_t size, size_t align, void **data,
                    iovc_meta_header_t *header)
{
  struct memory *memory = context;
  if (memory->refuse) {
    return 1;
  }
  *data = aligned_alloc(align, (size + align - 1) / align * align);
  if (*data == NULL) {
    return 1;
  }
  memset(header, 0, sizeof *header);
  header->size = size;
  header->hint = 4711;
  header->handle = (int64_t)(uintptr_t)*data;
  header->shared = -1;
  header->region_id = 77;
  memory->last_size = size;
  ++memory->allocated;
  return 0;
}

static void release(void *context, const iovc_meta_header_t *header)
{
  struct memory *memory = context;
  CHECK(header->hint == 4711 && header->region_id == 77);
  free((void *)(uintptr_t)header->handle);
  ++memory->released;
}

/* The cell of the only row. */
static iovc_meta_header_t cell_of(const struct ArrowArray *table)
{
  iovc_meta_header_t header;
  memcpy(&header, table->children[0]->buffers[1], sizeof header);
  return header;
}

int main(int count, char **arguments)
{
  CHECK(count == 3);
  const char *const sources[] = {arguments[1]};
  struct memory memory = {0, 0, 0, 0};
  const iovc_host_memory_t functions = {&memory, allocate, release};
  iovc_cache_options_t options = iovc_cache_options();
  iovc_cache_t *cache = NULL;
  options.sources = sources;
  options.source_count = 1;
  options.memory_bytes = 1 << 20;
  options.host_memory = &functions;
  options.append_headers = true;

  /* One place for the objects, and both functions. */
  options.fairmq_shmid = "12345678";
  CHECK(iovc_cache_open(&options, &cache) == IOVC_INVALID_ARGUMENT && cache == NULL);
  CHECK(strstr(iovc_last_error(), "host_memory") != NULL);
  options.fairmq_shmid = NULL;
  const iovc_host_memory_t half = {&memory, allocate, NULL};
  options.host_memory = &half;
  CHECK(iovc_cache_open(&options, &cache) == IOVC_INVALID_ARGUMENT && cache == NULL);
  CHECK(strstr(iovc_last_error(), "release is null") != NULL);
  options.host_memory = &functions;

  CHECK(iovc_cache_open(&options, &cache) == IOVC_OK);
  char request[512];
  snprintf(request, sizeof request,
           "{\"columns\": {\"c\": \"%s\"}, \"timestamps\": [1000], \"encoding\": \"plain\", "
           "\"wait_ms\": 300}",
           arguments[2]);
  struct ArrowArray table;
  struct ArrowSchema schema;
  char lease[IOVC_LEASE_BYTES];

  /* No memory: the request waits for it, and says so. */
  memory.refuse = 1;
  CHECK(iovc_cache_table(cache, request, &table, &schema, lease) == IOVC_UNAVAILABLE);
  CHECK(memory.allocated == 0);
  memory.refuse = 0;

  CHECK(iovc_cache_table(cache, request, &table, &schema, lease) == IOVC_OK);
  const iovc_meta_header_t header = cell_of(&table);
  CHECK(header.region_id == 77 && header.managed == 0 && header.hint != 4711 && header.hint != 0);
  CHECK(header.size == memory.last_size);
  const char *bytes = (const char *)(uintptr_t)header.handle;
  CHECK((uintptr_t)bytes % 64 == 0);
  CHECK(memcmp(bytes, "drift 1", 7) == 0);
  const char *end = bytes + header.size;
  CHECK(memcmp(end - 9, "$HEADER$", 9) == 0);
  int32_t length;
  memcpy(&length, end - 13, sizeof length);
  CHECK((size_t)length == header.size - 7);
  CHECK(strcmp(end - length, "Content-Length") == 0);
  CHECK(strcmp(end - length + 15, "7") == 0);

  /* Nothing can be registered or attached. */
  iovc_segment_t segment;
  size_t segments = 5;
  CHECK(iovc_cache_segments(cache, &segment, 1, &segments) == IOVC_OK && segments == 0);
  CHECK(iovc_cache_segments(cache, NULL, 1, &segments) == IOVC_INVALID_ARGUMENT);

  table.release(&table);
  schema.release(&schema);
  CHECK(iovc_cache_release(cache, lease) == IOVC_OK);
  CHECK(memory.allocated == 1 && memory.released == 0);
  iovc_cache_close(cache);
  CHECK(memory.released == memory.allocated);
  puts("done");
  return 0;
}
