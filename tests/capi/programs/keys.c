/*
 * A device in C with a key column beside the timestamps of its rows: a struct array of the Arrow C Data
 * Interface with the columns `timestamp` and `run`, the latter in one of the layouts that Arrow has.
 *
 *   ./keys SOURCE LAYOUT COLUMNS NAME [NAME ...]
 *
 * registers the rows for the columns (JSON), and prints for each named column and each row the bytes
 * of the object, or "null". A request that fails prints its error, and the status is 3.
 */
#include "arrow.h"
#include "iovcache.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 5, NULLABLE = 2 };
static const int64_t TIMES[ROWS] = {10, 600, 20, 700, 800};
/* The last row is of no run; the value under a null means nothing. */
static const unsigned char VALID[1] = {0x0f};

/* The structures are on the heap; the buffers are constants. */
static void release_schema(struct ArrowSchema *schema)
{
  for (int64_t n = 0; n < schema->n_children; ++n) {
    if (schema->children[n]->release) {
      schema->children[n]->release(schema->children[n]);
    }
    free(schema->children[n]);
  }
  free(schema->children);
  if (schema->dictionary) {
    if (schema->dictionary->release) {
      schema->dictionary->release(schema->dictionary);
    }
    free(schema->dictionary);
  }
  schema->release = NULL;
}

static void release_array(struct ArrowArray *array)
{
  for (int64_t n = 0; n < array->n_children; ++n) {
    if (array->children[n]->release) {
      array->children[n]->release(array->children[n]);
    }
    free(array->children[n]);
  }
  free(array->children);
  if (array->dictionary) {
    if (array->dictionary->release) {
      array->dictionary->release(array->dictionary);
    }
    free(array->dictionary);
  }
  free(array->buffers);
  array->release = NULL;
}

/* A column: its type and its values. */
struct column {
  struct ArrowSchema *schema;
  struct ArrowArray *array;
};

static struct column column(const char *format, const char *name, int64_t rows, int nulls,
                            int buffers, const void *first, const void *second)
{
  struct column made = {calloc(1, sizeof *made.schema), calloc(1, sizeof *made.array)};
  made.schema->format = format;
  made.schema->name = name;
  made.schema->flags = nulls ? NULLABLE : 0;
  made.schema->release = release_schema;
  made.array->length = rows;
  made.array->null_count = nulls;
  made.array->n_buffers = buffers;
  made.array->buffers = calloc((size_t)buffers + 1, sizeof *made.array->buffers);
  if (buffers > 1) {
    made.array->buffers[0] = nulls ? VALID : NULL;
    made.array->buffers[1] = first;
  }
  if (buffers > 2) {
    made.array->buffers[2] = second;
  }
  made.array->release = release_array;
  return made;
}

static void adopt(struct column parent, int count, const struct column *children)
{
  parent.schema->n_children = parent.array->n_children = count;
  parent.schema->children = calloc((size_t)count, sizeof *parent.schema->children);
  parent.array->children = calloc((size_t)count, sizeof *parent.array->children);
  for (int n = 0; n < count; ++n) {
    parent.schema->children[n] = children[n].schema;
    parent.array->children[n] = children[n].array;
  }
}

/* The column `run`: 1, 2, 1, 2, null. */
static struct column runs(const char *layout)
{
  static const int8_t of_8[ROWS] = {1, 2, 1, 2, 99};
  static const uint16_t of_16[ROWS] = {1, 2, 1, 2, 99};
  static const int32_t of_32[ROWS] = {1, 2, 1, 2, 99};
  static const uint64_t of_64[ROWS] = {1, 2, 1, 2, UINT64_MAX};
  static const uint64_t beyond[ROWS] = {1, 2, 1, UINT64_C(1) << 63, 99};
  static const double numbers[ROWS] = {1, 2, 1, 2, 99};
  static const int32_t offsets[ROWS + 1] = {0, 1, 2, 3, 4, 4};
  static const int8_t indices[ROWS] = {1, 0, 1, 0, 0};
  static const int64_t dictionary[2] = {2, 1};
  static const int32_t ends[ROWS] = {1, 2, 3, 4, 5};
  if (strcmp(layout, "int8") == 0) {
    return column("c", "run", ROWS, 1, 2, of_8, NULL);
  }
  if (strcmp(layout, "uint16") == 0) {
    return column("S", "run", ROWS, 1, 2, of_16, NULL);
  }
  if (strcmp(layout, "uint64") == 0) {
    return column("L", "run", ROWS, 1, 2, of_64, NULL);
  }
  if (strcmp(layout, "overflow") == 0) {
    return column("L", "run", ROWS, 1, 2, beyond, NULL);
  }
  if (strcmp(layout, "double") == 0) {
    return column("g", "run", ROWS, 1, 2, numbers, NULL);
  }
  if (strcmp(layout, "string") == 0) {
    return column("u", "run", ROWS, 1, 3, offsets, "1212");
  }
  if (strcmp(layout, "short") == 0) {
    return column("i", "run", ROWS - 1, 0, 2, of_32, NULL);
  }
  if (strcmp(layout, "dictionary") == 0) {
    struct column made = column("c", "run", ROWS, 1, 2, indices, NULL);
    const struct column values = column("l", "", 2, 0, 2, dictionary, NULL);
    made.schema->dictionary = values.schema;
    made.array->dictionary = values.array;
    return made;
  }
  if (strcmp(layout, "run-end") == 0) {
    const struct column made = column("+r", "run", ROWS, 0, 0, NULL, NULL);
    const struct column children[2] = {column("i", "run_ends", ROWS, 0, 2, ends, NULL),
                                       column("i", "values", ROWS, 1, 2, of_32, NULL)};
    made.schema->flags = NULLABLE;
    adopt(made, 2, children);
    return made;
  }
  return column("i", "run", ROWS, 1, 2, of_32, NULL);
}

static int failed(const char *what)
{
  fflush(stdout);
  fprintf(stderr, "%s: %s\n", what, iovc_last_error());
  return 3;
}

/* The cells of one column are 40 bytes each, one after the other. */
static int print_column(const iovc_attach_t *attach, const char *name,
                        const struct ArrowArray *cells)
{
  const unsigned char *valid = cells->buffers[0];
  const unsigned char *headers = cells->buffers[1];
  for (int64_t row = 0; row < cells->length; ++row) {
    const int64_t at = row + cells->offset;
    if (valid && !(valid[at / 8] >> (at % 8) & 1)) {
      printf("%s null\n", name);
      continue;
    }
    const void *data = NULL;
    size_t size = 0;
    if (iovc_resolve(attach, (const iovc_meta_header_t *)(headers + 40 * at), &data, &size) !=
        IOVC_OK) {
      return failed("resolve");
    }
    printf("%s %.*s\n", name, (int)size, (const char *)data);
  }
  return 0;
}

static int print_table(const iovc_cache_t *cache, const char *request, int count, char **names)
{
  struct ArrowArray table;
  struct ArrowSchema schema;
  char lease[64];
  if (iovc_cache_table(cache, request, &table, &schema, lease) != IOVC_OK) {
    return failed("table");
  }
  iovc_attach_t *attach = NULL;
  int bad = iovc_cache_attach(cache, &attach) == IOVC_OK ? 0 : failed("attach");
  for (int n = 0; !bad && n < count; ++n) {
    for (int64_t child = 0; child < table.n_children; ++child) {
      if (strcmp(schema.children[child]->name, names[n]) == 0) {
        bad = print_column(attach, names[n], table.children[child]);
      }
    }
  }
  iovc_detach(attach);
  table.release(&table);
  schema.release(&schema);
  return bad;
}

static int run(const iovc_cache_t *cache, const char *layout, const char *columns, int count,
               char **names)
{
  const struct column rows = column("+s", "", ROWS, 0, 1, NULL, NULL);
  const struct column children[2] = {column("l", "timestamp", ROWS, 0, 2, TIMES, NULL),
                                     runs(layout)};
  adopt(rows, 2, children);
  if (strcmp(layout, "missing") == 0) {
    rows.schema->children[1]->name = "orbit";
  }
  char text[4096];
  snprintf(text, sizeof text, "{\"columns\": %s, \"consumers\": [\"me\"]}", columns);
  const iovc_status_t done = iovc_cache_register(cache, 42, rows.array, rows.schema, text, 0);
  /* They are taken over, also by a call that fails. */
  const int kept = rows.array->release != NULL || rows.schema->release != NULL;
  free(rows.array);
  free(rows.schema);
  if (done != IOVC_OK) {
    return failed("register");
  }
  int bad = kept;
  if (!bad) {
    const char *timeframe = "{\"timeframe\": 42, \"consumer\": \"me\", \"encoding\": \"plain\"}";
    bad = print_table(cache, timeframe, count, names);
  }
  if (!bad) {
    /* A request with these rows gives an equal table. */
    const char *quote = strcmp(layout, "string") == 0 ? "\"" : "";
    snprintf(text, sizeof text,
             "{\"columns\": %s, \"timestamps\": [10, 600, 20, 700, 800], \"encoding\": \"plain\","
             " \"keys\": {\"run\": [%s1%s, %s2%s, %s1%s, %s2%s, null]}}",
             columns, quote, quote, quote, quote, quote, quote, quote, quote);
    bad = print_table(cache, text, count, names);
  }
  if (iovc_cache_consumed(cache, 42, "me") != IOVC_OK) {
    bad = failed("consumed");
  }
  return bad;
}

int main(int count, char **arguments)
{
  if (count < 5 || iovc_abi_version() != IOVC_ABI_VERSION) {
    fprintf(stderr, "usage: keys SOURCE LAYOUT COLUMNS NAME [NAME ...]\n");
    return 2;
  }
  iovc_cache_options_t options = iovc_cache_options();
  const char *sources[] = {arguments[1]};
  options.sources = sources;
  options.source_count = 1;
  options.memory_bytes = 16 << 20;
  options.segment_bytes = 4 << 20;
  iovc_cache_t *cache = NULL;
  int bad = iovc_cache_open(&options, &cache) == IOVC_OK ? 0 : failed("open");
  if (!bad) {
    bad = run(cache, arguments[2], arguments[3], count - 4, arguments + 4);
  }
  iovc_cache_close(cache);
  return bad;
}
