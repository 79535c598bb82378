/*
 * A consumer of timeframes in C: it waits for several of them in epoll, reads the objects of each in
 * place, and reports it as consumed. No request, no copy, no thread of its own.
 *
 *   cc timeframe.c -I ../../schemas -liovcache -lpthread -ldl -lm -o timeframe
 *   ./timeframe /run/iovcache/attach.sock CONSUMER ID [ID ...]
 *
 * prints for each run of rows: timeframe, column, first row, size and first bytes of the object.
 */
#include "iovcache.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

static int failed(const char *what)
{
  fprintf(stderr, "%s: %s\n", what, iovc_last_error());
  return 1;
}

/* One line per run of rows with the same object. */
static int read_column(const iovc_timeframe_t *table, uint64_t id, size_t number)
{
  iovc_column_t column;
  if (iovc_timeframe_column(table, number, &column) != IOVC_OK) {
    return failed("column");
  }
  size_t row = 0;
  for (size_t run = 0; run < column.runs; ++run) {
    iovc_view_t view;
    const iovc_status_t status = iovc_timeframe_object(table, number, row, &view);
    if (status == IOVC_OK) {
      const int shown = (int)(view.size < 24 ? view.size : 24);
      printf("%" PRIu64 " %s %zu %zu %.*s\n", id, column.name, row, view.size, shown,
             (const char *)view.data);
    } else if (status != IOVC_NOT_FOUND) {
      return failed("object");
    }
    iovc_view_release(&view);
    row = (size_t)column.run_ends[run];
  }
  return 0;
}

/* Reads a table that is ready. 1: failed, 2: it is being loaded again. */
static int read_timeframe(const iovc_local_t *local, uint64_t id)
{
  iovc_timeframe_t *table = NULL;
  const iovc_status_t status = iovc_timeframe_get(local, id, NULL, 0, &table);
  if (status == IOVC_DEADLINE_EXCEEDED) {
    return 2;
  }
  if (status != IOVC_OK) {
    return failed("timeframe");
  }
  size_t columns = 0;
  int bad = iovc_timeframe_shape(table, NULL, &columns) != IOVC_OK;
  for (size_t number = 0; !bad && number < columns; ++number) {
    bad = read_column(table, id, number);
  }
  if (!bad && iovc_timeframe_consumed(table) != IOVC_OK) {
    bad = failed("consumed");
  }
  iovc_timeframe_release(table);
  return bad;
}

/* Adds the event of a timeframe to the epoll set, under its number. */
static int await(int epoll, const iovc_local_t *local, uint64_t id, uint64_t number,
                 iovc_event_t **event)
{
  if (iovc_timeframe_event(local, id, event) != IOVC_OK) {
    return failed("event");
  }
  struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = number};
  return epoll_ctl(epoll, EPOLL_CTL_ADD, iovc_event_fd(*event), &wanted) != 0;
}

static int run(const iovc_local_t *local, int count, char **names, iovc_event_t **events)
{
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  int bad = epoll < 0, left = count;
  for (int number = 0; !bad && number < count; ++number) {
    bad = await(epoll, local, strtoull(names[number], NULL, 10), (uint64_t)number,
                &events[number]);
  }
  while (!bad && left > 0) {
    struct epoll_event ready;
    if (epoll_wait(epoll, &ready, 1, -1) != 1) {
      continue;
    }
    const uint64_t number = ready.data.u64, id = strtoull(names[number], NULL, 10);
    /* Closing the descriptor removes it from the set. */
    iovc_event_close(events[number]);
    events[number] = NULL;
    const int read = read_timeframe(local, id);
    bad = read == 2 ? await(epoll, local, id, number, &events[number]) : read;
    left -= read == 0;
  }
  for (int number = 0; number < count; ++number) {
    iovc_event_close(events[number]);
  }
  close(epoll);
  return bad;
}

int main(int count, char **arguments)
{
  if (count < 4 || iovc_abi_version() != IOVC_ABI_VERSION) {
    fprintf(stderr, "usage: timeframe SOCKET CONSUMER ID [ID ...]\n");
    return 2;
  }
  iovc_attach_t *attach = NULL;
  iovc_local_t *local = NULL;
  int bad = 0;
  if (iovc_attach(arguments[1], arguments[2], NULL, &attach) != IOVC_OK) {
    bad = failed("attach");
  } else if (iovc_local_open(attach, &local) != IOVC_OK) {
    bad = failed("local");
  } else {
    iovc_event_t **events = calloc((size_t)count - 3, sizeof *events);
    bad = run(local, count - 3, arguments + 3, events);
    free(events);
  }
  iovc_local_close(local);
  iovc_detach(attach);
  return bad;
}
