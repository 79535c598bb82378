/*
 * A device in C that hosts a cache and reads its objects, and a second process that attaches to it:
 * no daemon, no copy.
 *
 *   cc device.c -I ../../schemas -liovcache -lpthread -ldl -lm -o device
 *   ./device file:///path/of/a/repository SOCKET PATH MS [MS ...]
 *
 * prints for each time: the time, the size of the object valid then, and its first bytes.
 */
#include "iovcache.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The Arrow C Data Interface: two structures that every program may define. */
struct ArrowSchema {
  const char *format, *name, *metadata;
  int64_t flags, n_children;
  struct ArrowSchema **children, *dictionary;
  void (*release)(struct ArrowSchema *);
  void *private_data;
};
struct ArrowArray {
  int64_t length, null_count, offset, n_buffers, n_children;
  const void **buffers;
  struct ArrowArray **children, *dictionary;
  void (*release)(struct ArrowArray *);
  void *private_data;
};

static void release_schema(struct ArrowSchema *schema) { schema->release = NULL; }

static void release_times(struct ArrowArray *array)
{
  free((void *)array->buffers[1]);
  free(array->buffers);
  array->release = NULL;
}

static int failed(const char *what)
{
  fprintf(stderr, "%s: %s\n", what, iovc_last_error());
  return 1;
}

/* One line per row; the cells are 40 bytes each, one after the other. */
static int read_rows(const iovc_attach_t *attach, const unsigned char *cells, size_t rows,
                     const int64_t *times)
{
  const void **data = calloc(rows, sizeof *data);
  size_t *sizes = calloc(rows, sizeof *sizes);
  int bad = 0;
  if (iovc_resolve_many(attach, (const iovc_meta_header_t *)cells, rows, data, sizes) != IOVC_OK) {
    bad = failed("resolve");
  }
  for (size_t row = 0; !bad && row < rows; ++row) {
    printf("%" PRId64 " %zu %.*s\n", times[row], sizes[row], (int)(sizes[row] < 24 ? sizes[row] : 24),
           (const char *)data[row]);
    if (iovc_still_valid(attach, (const iovc_meta_header_t *)(cells + 40 * row)) != IOVC_OK) {
      bad = failed("read too late");
    }
  }
  free(data);
  free(sizes);
  fflush(stdout);
  return bad;
}

/* The other process: it receives only the cells and the path of the socket. */
static int consumer(const char *socket, int cells, size_t rows, const int64_t *times)
{
  unsigned char *copy = malloc(40 * rows);
  iovc_attach_t *attach = NULL;
  int bad = 0;
  for (size_t got = 0; got < 40 * rows;) {
    const ssize_t more = read(cells, copy + got, 40 * rows - got);
    if (more <= 0) {
      free(copy);
      return 1;
    }
    got += (size_t)more;
  }
  if (iovc_attach(socket, "consumer", NULL, &attach) != IOVC_OK) {
    bad = failed("attach");
  } else {
    bad = read_rows(attach, copy, rows, times);
  }
  iovc_detach(attach);
  free(copy);
  return bad;
}

static int run(iovc_cache_t *cache, const char *path, size_t rows, const int64_t *times, int out)
{
  int64_t *values = malloc(rows * sizeof *values);
  memcpy(values, times, rows * sizeof *values);
  const void **buffers = calloc(2, sizeof *buffers);
  buffers[1] = values;
  struct ArrowSchema schema = {.format = "l", .name = "timestamp", .release = release_schema};
  struct ArrowArray array = {.length = (int64_t)rows, .n_buffers = 2, .buffers = buffers,
                             .release = release_times};
  char request[512];
  snprintf(request, sizeof request, "{\"columns\": {\"object\": \"%s\"}, \"consumers\": [\"me\"]}",
           path);
  if (iovc_cache_register(cache, 42, &array, &schema, request, 0) != IOVC_OK) {
    return failed("register");
  }
  struct ArrowArray table;
  struct ArrowSchema described;
  const char *wanted = "{\"timeframe\": 42, \"consumer\": \"me\", \"encoding\": \"plain\"}";
  if (iovc_cache_table(cache, wanted, &table, &described, NULL) != IOVC_OK) {
    return failed("table");
  }
  const struct ArrowArray *column = table.children[0];
  const unsigned char *cells = (const unsigned char *)column->buffers[1] + 40 * column->offset;
  iovc_attach_t *attach = NULL;
  int bad = 0;
  if (iovc_cache_attach(cache, &attach) != IOVC_OK) {
    bad = failed("attach");
  } else {
    bad = read_rows(attach, cells, rows, times);
  }
  iovc_detach(attach);
  for (size_t sent = 0; !bad && sent < 40 * rows;) {
    const ssize_t more = write(out, cells + sent, 40 * rows - sent);
    bad = more <= 0;
    sent += more > 0 ? (size_t)more : 0;
  }
  close(out);
  int status = 0;
  if (wait(&status) < 0 || status != 0) {
    bad = 1;
  }
  table.release(&table);
  described.release(&described);
  if (iovc_cache_consumed(cache, 42, "me") != IOVC_OK) {
    bad = failed("consumed");
  }
  return bad;
}

int main(int count, char **arguments)
{
  if (count < 5 || iovc_abi_version() != IOVC_ABI_VERSION) {
    fprintf(stderr, "usage: device SOURCE SOCKET PATH MS [MS ...]\n");
    return 2;
  }
  const size_t rows = (size_t)(count - 4);
  int64_t *times = calloc(rows, sizeof *times);
  for (size_t row = 0; row < rows; ++row) {
    times[row] = strtoll(arguments[row + 4], NULL, 10);
  }
  /* The consumer is a separate process, forked before this one has any thread. */
  int pipes[2];
  if (pipe(pipes) != 0) {
    return 1;
  }
  if (fork() == 0) {
    close(pipes[1]);
    const int bad = consumer(arguments[2], pipes[0], rows, times);
    close(pipes[0]);
    free(times);
    return bad;
  }
  close(pipes[0]);
  iovc_cache_options_t options = iovc_cache_options();
  const char *sources[] = {arguments[1]};
  options.sources = sources;
  options.source_count = 1;
  options.memory_bytes = 16 << 20;
  options.segment_bytes = 4 << 20;
  options.attach_path = arguments[2];
  iovc_cache_t *cache = NULL;
  int bad = 1;
  if (iovc_cache_open(&options, &cache) != IOVC_OK) {
    failed("open");
    close(pipes[1]);
  } else {
    bad = run(cache, arguments[3], rows, times, pipes[1]);
  }
  iovc_cache_close(cache);
  free(times);
  return bad;
}
