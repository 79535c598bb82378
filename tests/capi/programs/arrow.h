/*
 * The structures of the Arrow C Data Interface, as its specification has them
 * (https://arrow.apache.org/docs/format/CDataInterface.html).
 */
#ifndef IOVCACHE_TESTS_ARROW_H
#define IOVCACHE_TESTS_ARROW_H

#include <stdint.h>

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

#endif
