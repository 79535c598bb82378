/* Every function with null for every pointer argument: a status, never a crash. */
#include "iovcache.h"

#include <stdio.h>
#include <string.h>

static int wrong(int line, iovc_status_t got)
{
  fprintf(stderr, "line %d: %d, %s\n", line, (int)got, iovc_last_error());
  return 1;
}

#define EXPECT(want, call) \
  do { \
    const iovc_status_t got = (call); \
    if (got != (want)) { \
      return wrong(__LINE__, got); \
    } \
  } while (0)

int main(int count, char **arguments)
{
  (void)count;
  iovc_attach_t *attach = NULL;
  iovc_cache_t *cache = NULL;
  iovc_meta_header_t header;
  const void *data = &header;
  size_t size = 1;
  unsigned char id[16];
  memset(&header, 0, sizeof header);
  if (iovc_last_error()[0] != '\0') {
    return wrong(__LINE__, 0);
  }
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_attach(NULL, NULL, NULL, &attach));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_attach("/nowhere", NULL, NULL, NULL));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_attach("/\xff\xfe", NULL, NULL, &attach));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_attach_socket(-1, NULL, NULL, &attach));
  EXPECT(IOVC_UNAVAILABLE, iovc_attach("/nowhere/attach.sock", "me", NULL, &attach));
  if (attach != NULL || strstr(iovc_last_error(), "[IOV-") == NULL) {
    return wrong(__LINE__, 0);
  }
  iovc_detach(NULL);
  iovc_cache_close(NULL);
  iovc_free_text(NULL);
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_resolve(NULL, &header, &data, &size));
  if (data != NULL || size != 0) {
    return wrong(__LINE__, 0);
  }
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_resolve_many(NULL, &header, 1, &data, &size));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_still_valid(NULL, &header));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_object_id(NULL, &header, id));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_check(NULL));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_unmap_unused(NULL));
  if (iovc_session(NULL) != NULL || iovc_epoch(NULL) != NULL) {
    return wrong(__LINE__, 0);
  }
  iovc_local_t *local = NULL;
  iovc_local_path_t *path = NULL;
  iovc_view_t view;
  iovc_notice_t notice;
  bool changed = true;
  memset(&view, 0, sizeof view);
  const int64_t time = 5;
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_local_open(NULL, &local));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_local_open(NULL, NULL));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_local_path(NULL, "A/B", &path));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_local_get(NULL, time, &view));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_local_get(NULL, time, NULL));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_local_get_many(NULL, &time, 1, &view, NULL));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_local_notice(NULL, &notice));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_local_notice(NULL, NULL));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_local_wait(NULL, &notice, 0, &changed));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_local_wait(NULL, NULL, 0, NULL));
  iovc_view_release(NULL);
  iovc_view_release(&view);
  iovc_local_path_close(NULL);
  iovc_local_close(NULL);
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_cache_open(NULL, &cache));
  iovc_cache_options_t options = iovc_cache_options();
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_cache_open(&options, &cache));
  const char *nothing[] = {NULL}, *odd[] = {"ftp://nowhere"}, *memory[] = {"memory:"};
  options.source_count = 1;
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_cache_open(&options, &cache));
  options.sources = nothing;
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_cache_open(&options, &cache));
  options.sources = odd;
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_cache_open(&options, &cache));
  options.source_count = SIZE_MAX;
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_cache_open(&options, &cache));
  options.source_count = 1;
  options.sources = memory;
  options.memory_bytes = options.segment_bytes = 1 << 20;
  EXPECT(IOVC_OK, iovc_cache_open(&options, &cache));
  EXPECT(IOVC_OK, iovc_cache_attach(cache, &attach));
  EXPECT(IOVC_OK, iovc_check(attach));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_resolve(attach, NULL, &data, &size));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_resolve(attach, &header, NULL, &size));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_resolve(attach, &header, &data, NULL));
  EXPECT(IOVC_FAILED_PRECONDITION, iovc_resolve(attach, &header, &data, &size));
  header.managed = 7;
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_resolve(attach, &header, &data, &size));
  memset(&header, 0, sizeof header);
  /* 40 zero bytes are a null cell in an array of cells. */
  data = &header;
  EXPECT(IOVC_OK, iovc_resolve_many(attach, &header, 1, &data, &size));
  if (data != NULL || size != 0) {
    return wrong(__LINE__, 0);
  }
  EXPECT(IOVC_OK, iovc_resolve_many(attach, NULL, 0, NULL, NULL));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_resolve_many(attach, &header, SIZE_MAX, &data, &size));
  const int32_t ends[] = {1}, falling[] = {-4};
  EXPECT(IOVC_OK, iovc_resolve_runs(attach, &header, ends, 1, 0, 1, &data, &size));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_resolve_runs(attach, &header, ends, 1, 1, 1, &data, &size));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_resolve_runs(attach, &header, falling, 1, 0, 1, &data, &size));
  EXPECT(IOVC_INVALID_ARGUMENT,
         iovc_resolve_runs(attach, &header, ends, 1, SIZE_MAX, 2, &data, &size));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_cache_register(cache, 1, NULL, NULL, "{}", 0));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_cache_table(cache, "{}", NULL, NULL, NULL));
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_cache_consumed(cache, 1, NULL));
  EXPECT(IOVC_NOT_FOUND, iovc_cache_consumed(cache, 1, "me"));
  EXPECT(IOVC_NOT_FOUND, iovc_cache_drop_timeframe(cache, 1));
  EXPECT(IOVC_NOT_FOUND, iovc_cache_release(cache, "no such lease"));
  EXPECT(IOVC_OK, iovc_cache_oldest_possible(cache, "me", 5));
  char *json = NULL;
  EXPECT(IOVC_INVALID_ARGUMENT, iovc_cache_status(cache, NULL));
  EXPECT(IOVC_OK, iovc_cache_status(cache, &json));
  if (strstr(json, "\"epoch\"") == NULL) {
    return wrong(__LINE__, 0);
  }
  iovc_free_text(json);
  EXPECT(IOVC_OK, iovc_unmap_unused(attach));
  iovc_detach(attach);
  iovc_cache_close(cache);
  for (int status = -2; status < 20; ++status) {
    if (iovc_strerror(status) == NULL || iovc_strerror(status)[0] == '\0') {
      return wrong(__LINE__, 0);
    }
  }
  puts(arguments[0] != NULL ? "done" : "");
  return 0;
}
