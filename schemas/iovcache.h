/**
 * @file
 * iovcache: condition objects in shared memory, for C.
 *
 * Resolve the MetaHeaders of tables to read-only pointers (iovc_attach, iovc_resolve), look objects
 * up by path and time without a call (iovc_local_open, iovc_local_get), or host a cache in a process
 * of your own (iovc_cache_open). Every function that can fail returns an
 * iovc_status_t; iovc_last_error tells what exactly went wrong. `iovcache.hpp` is C++17 over this.
 *
 * Generated from src/ffi; changes here are lost.
 */

#ifndef IOVCACHE_H
#define IOVCACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** What iovc_abi_version returns where this header fits. */
#define IOVC_ABI_VERSION 2
/** So many bytes the name of a lease has at most, its 0 included. */
#define IOVC_LEASE_BYTES 64

/* As the Arrow C Data Interface defines them (arrow/c/abi.h). */
struct ArrowArray;
struct ArrowSchema;

/**
 * How a call ended.
 */
enum iovc_status_t
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Done.
   */
  IOVC_OK = 0,
  /**
   * The call is wrong: null where nothing may be null, a text that is no UTF-8, a header that is
   * none.
   */
  IOVC_INVALID_ARGUMENT = 1,
  /**
   * Nothing valid at that time, or an unknown timeframe, table or path.
   */
  IOVC_NOT_FOUND = 2,
  /**
   * The name is taken by something else.
   */
  IOVC_ALREADY_EXISTS = 3,
  /**
   * Try again later: the service or a source is down, or memory is pinned.
   */
  IOVC_UNAVAILABLE = 4,
  /**
   * Can never fit, or over the quota.
   */
  IOVC_RESOURCE_EXHAUSTED = 5,
  /**
   * The state does not allow it: the header is stale, the lease has ended.
   */
  IOVC_FAILED_PRECONDITION = 6,
  /**
   * Who are you?
   */
  IOVC_UNAUTHENTICATED = 7,
  /**
   * You may not.
   */
  IOVC_PERMISSION_DENIED = 8,
  /**
   * The time that was given has passed.
   */
  IOVC_DEADLINE_EXCEEDED = 9,
  /**
   * A bug of iovcache.
   */
  IOVC_INTERNAL = 10,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iovc_status_t iovc_status_t;
#else
typedef int32_t iovc_status_t;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The memory of a service, mapped read-only. Any number of threads may use one at the same time.
 */
typedef struct iovc_attach_t iovc_attach_t;

/**
 * A cache in this process.
 */
typedef struct iovc_cache_t iovc_cache_t;

/**
 * Look-ups in the shared memory of a service. Any number of threads may use one at the same time.
 */
typedef struct iovc_local_t iovc_local_t;

/**
 * A path to look up in. One thread at a time uses it.
 */
typedef struct iovc_local_path_t iovc_local_path_t;

/**
 * The location of an object in shared memory: 40 bytes that fit into a message or a cell of a
 * table.
 */
typedef struct iovc_meta_header_t {
  /**
   * Bytes of the payload.
   */
  uint64_t size;
  /**
   * The generation of the block; never 0.
   */
  uint64_t hint;
  /**
   * Managed: offset of the chunk header (the payload follows 16 bytes later) from the start of
   * the segment. Unmanaged: offset of the payload from the start of the region.
   */
  int64_t handle;
  /**
   * -1; FairMQ's field for reference counts, which are not used.
   */
  int64_t shared;
  /**
   * The unmanaged region, else 0.
   */
  uint16_t region_id;
  /**
   * The managed segment, else 0.
   */
  uint16_t segment_id;
  /**
   * 1: managed segment, 0: unmanaged region.
   */
  uint8_t managed;
  uint8_t pad[3];
} iovc_meta_header_t;
/**
 * Size in bytes.
 */
#define iovc_meta_header_t_BYTES 40

/**
 * Memory of the program around a cache, into which the objects go: for a FairMQ device, messages of
 * its own transport that are never sent. The cache maps, names and registers nothing then; cells
 * carry the headers that `allocate` writes, with `hint` replaced by the generation of the object
 * and `size` by its size.
 *
 * Both functions are called from any thread, also from several at a time. They must not wait for
 * memory, throw, or call into the cache. After iovc_cache_close has returned neither is called.
 */
typedef struct iovc_host_memory_t {
  /**
   * The first argument of both functions.
   */
  void *context;
  /**
   * Allocates `size` bytes at a multiple of `align`: writes where they are to `data`, and to
   * `header` how other processes find them. They must be readable and writable, and belong to
   * nobody else, until they are released.
   *
   * Returns 0. Anything else, or null in `data`, says that there is no memory now: the cache
   * evicts, and tries again.
   */
  int (*allocate)(void *context,
                  size_t size,
                  size_t align,
                  void **data,
                  struct iovc_meta_header_t *header);
  /**
   * Takes back what `allocate` returned with this header, which comes as `allocate` wrote it.
   */
  void (*release)(void *context, const struct iovc_meta_header_t *header);
} iovc_host_memory_t;

/**
 * What a cache is made with. Begin with iovc_cache_options, then set what differs.
 */
typedef struct iovc_cache_options_t {
  /**
   * Where objects come from, asked in order: `http(s)://host:port` (CCDB), `file:///folder`,
   * `s3://bucket/prefix`; `URL#PREFIX,PREFIX` for some paths only.
   */
  const char *const *sources;
  /**
   * How many they are.
   */
  size_t source_count;
  /**
   * Bytes of shared memory in all. Default: 4 GiB.
   */
  uint64_t memory_bytes;
  /**
   * Bytes of one segment. Default: 512 MiB.
   */
  uint64_t segment_bytes;
  /**
   * Where other processes attach: a Unix socket that is made there. Null: nowhere.
   */
  const char *attach_path;
  /**
   * An existing shared-memory file, e.g. a region that FairMQ made, into which the objects go
   * instead of into segments. What it held is lost. Null: none.
   */
  const char *region_path;
  /**
   * Its id, as FairMQ knows it.
   */
  uint16_t region_id;
  /**
   * Segments get the names of FairMQ's managed segments of the session with this id: 8
   * hexadecimal digits as in the names, or the decimal number that FairMQ's --shmid takes (one
   * of 8 digits with a leading 0). Null: they have no names.
   */
  const char *fairmq_shmid;
  /**
   * The number of the first of them; those below are FairMQ's own.
   */
  uint16_t fairmq_segment;
  /**
   * How many timeframes can be in flight; who registers one more waits. Default: 4096.
   */
  size_t max_timeframes;
  /**
   * Like fairmq_shmid, the session given by its name (FairMQ's --session). Null: none.
   */
  const char *fairmq_session;
  /**
   * Memory of this program, into which the objects go instead of into segments. Null: none. The
   * structure is copied.
   */
  const struct iovc_host_memory_t *host_memory;
  /**
   * Whether AliceO2's flattened map of headers follows each object and counts in its size: for
   * each header `key NUL value NUL`, then the length of the whole map as int32, then
   * `$HEADER$ NUL`. The headers are the object's metadata, ETag, Valid-From, Valid-Until and
   * Created, and Content-Length and Content-MD5 of the object alone. Default: false.
   */
  bool append_headers;
  /**
   * Versions that were created after this are not seen (ms). Default: INT64_MAX, all are.
   */
  int64_t not_after;
  /**
   * Versions that were created before this are not seen (ms). Default: INT64_MIN, all are.
   */
  int64_t not_before;
  /**
   * Bytes that one consumer may pin, each object counted once. Default: UINT64_MAX, no limit.
   */
  uint64_t quota_bytes;
} iovc_cache_options_t;

/**
 * A segment or region of a cache, as it is to be registered with FairMQ.
 */
typedef struct iovc_segment_t {
  /**
   * All of it, in bytes.
   */
  uint64_t size;
  /**
   * Its number among those of its kind.
   */
  uint16_t number;
  /**
   * 1: managed segment, 0: unmanaged region.
   */
  uint8_t managed;
} iovc_segment_t;

/**
 * An object in shared memory, which stays what it is until iovc_view_release.
 */
typedef struct iovc_view_t {
  /**
   * The first byte.
   */
  const void *data;
  /**
   * Number of bytes.
   */
  size_t size;
  /**
   * The version's id: a UUID, most significant byte first.
   */
  uint8_t object_id[16];
  /**
   * The version's own validity interval, in milliseconds since the Unix epoch: from here,
   */
  int64_t valid_from;
  /**
   * to here, which is not inside.
   */
  int64_t valid_until;
  /**
   * What pins it; null where it pins nothing.
   */
  const void *pin;
  /**
   * A part of the pin.
   */
  uint32_t slot;
} iovc_view_t;

/**
 * A state of a path, from which changes are told apart.
 */
typedef struct iovc_notice_t {
  /**
   * What it is a state of.
   */
  uint64_t words[2];
} iovc_notice_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Attaches to a service through its socket (`iovcache.attach` in the metadata of each table,
 * `attach` in the line with which a service says that it is ready). Blocks at most 10 s.
 *
 * @param path      the attach socket
 * @param consumer  the name of this consumer; null: none
 * @param token     what the service asks for; null where it asks for nothing
 * @param attach    where the handle goes; null is written if it fails
 *
 * The handle is a session of the service: what it holds for this process it lets go when the
 * handle is given back with iovc_detach (and what was opened by iovc_local_open), or the process
 * ends, however it ends.
 *
 * # Safety
 * `path`, `consumer` and `token` are null or end with a 0; `attach` is null or writable.
 */
iovc_status_t iovc_attach(const char *path,
                          const char *consumer,
                          const char *token,
                          struct iovc_attach_t **attach);

/**
 * Attaches through a socket that is connected already, e.g. one that was handed to a sandboxed
 * process.
 *
 * @param socket  a connected Unix stream socket; from here on the library's own, which closes it,
 *                also if this fails
 *
 * # Safety
 * As `iovc_attach`; `socket` is an open descriptor that nobody else closes.
 */
iovc_status_t iovc_attach_socket(int32_t socket,
                                 const char *consumer,
                                 const char *token,
                                 struct iovc_attach_t **attach);

/**
 * Gives a handle back: the session ends, and its memory is unmapped. Null is allowed.
 *
 * No pointer that was resolved through it may be read afterwards, and no other call may use it.
 *
 * # Safety
 * `attach` is null or a handle that was not given back yet.
 */
void iovc_detach(struct iovc_attach_t *attach);

/**
 * The name of the session, for the field "session" of requests: what it asks for is held as long
 * as this process lives. Empty for a handle of iovc_cache_attach. Null only for null; it lives as
 * long as the handle.
 *
 * # Safety
 * `attach` is null or a handle.
 */
const char *iovc_session(const struct iovc_attach_t *attach);

/**
 * The instance of the service, as in `iovcache.epoch` of its tables: after a restart it is another
 * one, and headers of the one before do not resolve any more. Null only for null; it lives as long
 * as the handle.
 *
 * # Safety
 * `attach` is null or a handle.
 */
const char *iovc_epoch(const struct iovc_attach_t *attach);

/**
 * Whether the service is still there. If not (IOVC_UNAVAILABLE), what was resolved stays readable,
 * and iovc_attach makes a new session once it is back.
 *
 * # Safety
 * `attach` is null or a handle.
 */
iovc_status_t iovc_check(const struct iovc_attach_t *attach);

/**
 * Ends the lease of a table that was asked for this session: nothing pins its objects for it any
 * more, and pointers to them may not be read without iovc_still_valid. The service is told, and
 * does not answer: a lease that is over already is no error.
 *
 * @param lease  as it stands in the table's schema (iovcache.lease)
 * @return IOVC_UNAVAILABLE if the service is gone; for a handle of iovc_cache_attach,
 *         IOVC_NOT_FOUND if there is no such lease
 *
 * # Safety
 * `attach` is null or a handle, `lease` is null or ends with a 0.
 */
iovc_status_t iovc_release(const struct iovc_attach_t *attach, const char *lease);

/**
 * Unmaps segments that the service has given back. Until this is called they stay mapped, so that
 * a pointer that is read too late meets old bytes at worst, never the end of the process.
 *
 * Call it at a moment when no thread reads through a pointer to an object that was let go.
 *
 * # Safety
 * `attach` is null or a handle; as said.
 */
iovc_status_t iovc_unmap_unused(const struct iovc_attach_t *attach);

/**
 * Makes a cache in this process, with a few threads of its own. Any number of threads may use it.
 *
 * @param options  as iovc_cache_options gave them, with at least one source
 * @param cache    where the handle goes; null is written if it fails
 *
 * # Safety
 * `options` is null or as said, `cache` is null or writable.
 */
iovc_status_t iovc_cache_open(const struct iovc_cache_options_t *options,
                              struct iovc_cache_t **cache);

/**
 * Ends a cache: all that it held is let go, its attach socket is gone. Null is allowed.
 *
 * Processes that have attached can read on what they have resolved; nothing resolves any more.
 * Handles of iovc_cache_attach are to be given back before.
 *
 * # Safety
 * `cache` is null or a handle that was not given back yet and that nobody uses any more.
 */
void iovc_cache_close(struct iovc_cache_t *cache);

/**
 * The cache's memory for this very process: nothing is mapped a second time, and no socket is
 * needed. It is used and given back like a handle of iovc_attach, but is no session.
 *
 * # Safety
 * `cache` is null or a handle, `attach` is null or writable.
 */
iovc_status_t iovc_cache_attach(const struct iovc_cache_t *cache, struct iovc_attach_t **attach);

/**
 * The segments or the region that objects lie in: none where that is the memory of the host.
 *
 * @param segments  place for `capacity` of them; may be null if that is 0
 * @param count     how many there are, also if that is more than `capacity`
 *
 * # Safety
 * `cache` is null or a handle, `segments` leads to `capacity` places, `count` is null or writable.
 */
iovc_status_t iovc_cache_segments(const struct iovc_cache_t *cache,
                                  struct iovc_segment_t *segments,
                                  size_t capacity,
                                  size_t *count);

/**
 * A consumer is done with a timeframe. When all of its consumers are, its objects are let go.
 *
 * # Safety
 * `cache` is null or a handle, `consumer` is null or ends with a 0.
 */
iovc_status_t iovc_cache_consumed(const struct iovc_cache_t *cache,
                                  uint64_t timeframe,
                                  const char *consumer);

/**
 * A consumer is done with all timeframes below `oldest_possible`. That never goes back.
 *
 * # Safety
 * `cache` is null or a handle, `consumer` is null or ends with a 0.
 */
iovc_status_t iovc_cache_oldest_possible(const struct iovc_cache_t *cache,
                                         const char *consumer,
                                         uint64_t oldest_possible);

/**
 * Drops a timeframe, whoever still waits for it.
 *
 * # Safety
 * `cache` is null or a handle.
 */
iovc_status_t iovc_cache_drop_timeframe(const struct iovc_cache_t *cache, uint64_t timeframe);

/**
 * Lets go what a table holds. IOVC_NOT_FOUND if it was let go already.
 *
 * @param lease  as iovc_cache_table gave it; it stands in the table's schema too (iovcache.lease)
 *
 * # Safety
 * `cache` is null or a handle, `lease` is null or ends with a 0.
 */
iovc_status_t iovc_cache_release(const struct iovc_cache_t *cache, const char *lease);

/**
 * What the cache holds, as JSON: the form of the Flight action `status`.
 *
 * @param json  where the text goes; to be given back with iovc_free_text
 *
 * # Safety
 * `cache` is null or a handle, `json` is null or writable.
 */
iovc_status_t iovc_cache_status(const struct iovc_cache_t *cache, char **json);

/**
 * Gives a text of this library back. Null is allowed.
 *
 * # Safety
 * `text` is null or came from iovc_cache_status, and was not given back yet.
 */
void iovc_free_text(char *text);

/**
 * Look-ups by a handle of iovc_attach, without a call.
 *
 * @param local  where the handle goes; null is written if it fails
 * @return IOVC_FAILED_PRECONDITION where the service does not offer look-ups, or by a handle of
 *         iovc_cache_attach
 *
 * It keeps the session, also after iovc_detach.
 *
 * # Safety
 * `attach` is null or a handle, `local` is null or writable.
 */
iovc_status_t iovc_local_open(const struct iovc_attach_t *attach, struct iovc_local_t **local);

/**
 * Gives a handle back. Null is allowed. Paths and views of it stay what they are; the session ends
 * with the last of all.
 *
 * # Safety
 * `local` is null or a handle that was not given back yet.
 */
void iovc_local_close(struct iovc_local_t *local);

/**
 * A path to look up in. Makes no call; the service need not know the path.
 *
 * @param path    the object path
 * @param handle  where the handle goes; null is written if it fails
 *
 * One thread at a time may use it.
 *
 * # Safety
 * `local` is null or a handle, `path` is null or ends with a 0, `handle` is null or writable.
 */
iovc_status_t iovc_local_path(const struct iovc_local_t *local,
                              const char *path,
                              struct iovc_local_path_t **handle);

/**
 * Gives a path back. Null is allowed. Its views stay what they are.
 *
 * # Safety
 * `path` is null or a handle that was not given back yet.
 */
void iovc_local_path_close(struct iovc_local_path_t *path);

/**
 * The object of a path that is valid at a time, in milliseconds since the Unix epoch. Makes no
 * system call.
 *
 * @param view  where it goes; it pins the object until iovc_view_release. Without one (any status
 *              but IOVC_OK) it pins nothing
 * @return IOVC_UNAVAILABLE where the service has to be asked: nothing is valid, or it does not lie
 *         in shared memory, or is not confirmed. A request for the path that names the session has
 *         it published
 *
 * # Safety
 * `path` is null or a handle that no other thread uses meanwhile, `view` is null or writable.
 */
iovc_status_t iovc_local_get(const struct iovc_local_path_t *path,
                             int64_t at,
                             struct iovc_view_t *view);

/**
 * The objects of a path at many times.
 *
 * @param at     `count` times
 * @param views  room for as many; those that are not found pin nothing, and have null as `pin`
 * @param found  how many were found; may be null
 * @return IOVC_OK also where some were not found: the service is to be asked for them
 *
 * # Safety
 * As `iovc_local_get`; `at` leads to `count` times, `views` to room for as many, `found` is null
 * or writable.
 */
iovc_status_t iovc_local_get_many(const struct iovc_local_path_t *path,
                                  const int64_t *at,
                                  size_t count,
                                  struct iovc_view_t *views,
                                  size_t *found);

/**
 * The state of a path, for iovc_local_wait. Where it is taken before an object is looked up, in
 * shared memory or at the service, no change after that look-up is missed.
 *
 * @return IOVC_UNAVAILABLE where changes cannot be waited for: the path is not published. A request
 *         for it that names the session has it published
 *
 * # Safety
 * `path` is null or a handle that no other thread uses meanwhile, `notice` is null or writable.
 */
iovc_status_t iovc_local_notice(const struct iovc_local_path_t *path, struct iovc_notice_t *notice);

/**
 * Waits until the answer for a path can be another one than when `notice` was taken. Blocks this
 * thread, and uses no CPU time meanwhile.
 *
 * @param notice         what iovc_local_notice has written
 * @param timeout_millis time limit; less than 0: none
 * @param changed        whether the answer can be another one; false after the time limit
 * @return IOVC_FAILED_PRECONDITION once the session is over
 *
 * A path whose source answers for single times alone can have changed after a second.
 *
 * # Safety
 * As `iovc_local_notice`; `changed` is null or writable.
 */
iovc_status_t iovc_local_wait(const struct iovc_local_path_t *path,
                              const struct iovc_notice_t *notice,
                              int64_t timeout_millis,
                              bool *changed);

/**
 * Ends the pin of a view; what it points to may not be read any more. A view that pins nothing, and
 * null, are allowed. Any thread may do it.
 *
 * # Safety
 * `view` is null or leads to a view that iovc_local_get or iovc_local_get_many has written, and
 * no copy of it was released.
 */
void iovc_view_release(struct iovc_view_t *view);

/**
 * The options that hold where nothing else is set.
 */
struct iovc_cache_options_t iovc_cache_options(void);

/**
 * The bytes of the object that a header names: no copy is made.
 *
 * They stay as they are for as long as the table that the header came with is held: until its
 * timeframe is consumed, its lease is released, or the session ends. Who reads on beyond that asks
 * iovc_still_valid afterwards.
 *
 * @param header  40 bytes, as in a cell of a table; they need not be aligned
 * @param data    where the pointer goes; null is written if it fails
 * @param size    where the number of bytes goes; an object can have 0
 * @return IOVC_FAILED_PRECONDITION if the object is not there any more, IOVC_INVALID_ARGUMENT for
 *         what is no header. No header, however forged, is a danger.
 *
 * # Safety
 * `attach` is null or a handle; the others are null or lead to what they say.
 */
iovc_status_t iovc_resolve(const struct iovc_attach_t *attach,
                           const struct iovc_meta_header_t *header,
                           const void **data,
                           size_t *size);

/**
 * Resolves a column of headers, as they lie one after the other in the cells of a table.
 *
 * A cell of 40 zeros, which is what stands in a null cell, gives null and 0. All that can be
 * resolved are, also if some cannot: these get null and 0, and the status is that of the first.
 *
 * @param headers  `count` headers of 40 bytes
 * @param data     place for `count` pointers
 * @param sizes    place for `count` sizes
 *
 * # Safety
 * `attach` is null or a handle; the others are null or lead to what they say.
 */
iovc_status_t iovc_resolve_many(const struct iovc_attach_t *attach,
                                const struct iovc_meta_header_t *headers,
                                size_t count,
                                const void **data,
                                size_t *sizes);

/**
 * Resolves a run-end encoded column row by row: each run once, however many rows it has.
 *
 * @param headers   the values: one header of 40 bytes per run
 * @param run_ends  where each run ends, in rows from the start of the column; strictly rising
 * @param runs      how many runs there are
 * @param offset    the first row that is wanted (the offset of the Arrow array)
 * @param rows      how many rows are wanted; the last run must reach as far
 * @param data      place for `rows` pointers
 * @param sizes     place for `rows` sizes
 *
 * Cells of zeros and cells that cannot be resolved are as in iovc_resolve_many.
 *
 * # Safety
 * `attach` is null or a handle; the others are null or lead to what they say.
 */
iovc_status_t iovc_resolve_runs(const struct iovc_attach_t *attach,
                                const struct iovc_meta_header_t *headers,
                                const int32_t *run_ends,
                                size_t runs,
                                size_t offset,
                                size_t rows,
                                const void **data,
                                size_t *sizes);

/**
 * Whether what was read through the pointer of this header was still the object: IOVC_OK, or
 * IOVC_FAILED_PRECONDITION if its block was given up meanwhile. To be asked after reading, by those
 * who read without holding the table.
 *
 * # Safety
 * `attach` is null or a handle, `header` is null or leads to 40 bytes.
 */
iovc_status_t iovc_still_valid(const struct iovc_attach_t *attach,
                               const struct iovc_meta_header_t *header);

/**
 * The id of the version that a header names: a UUID, most significant byte first.
 *
 * @param id  place for 16 bytes
 *
 * # Safety
 * `attach` is null or a handle; the others are null or lead to what they say.
 */
iovc_status_t iovc_object_id(const struct iovc_attach_t *attach,
                             const struct iovc_meta_header_t *header,
                             uint8_t *id);

/**
 * What a status says, e.g. "not found". Never null; it need not be freed.
 */
const char *iovc_strerror(int32_t status);

/**
 * What exactly went wrong in the last call of this thread that failed, beginning with a stable
 * code: `[IOV-4045] stale: …`. Empty if none has failed. Never null; valid until the next call
 * of this thread into this library.
 */
const char *iovc_last_error(void);

/**
 * Registers a timeframe and starts to load what it needs. While too many are in flight, or memory
 * is short, it waits.
 *
 * @param timeframe          its id
 * @param timestamps         one per row (milliseconds, or an Arrow timestamp): an array, or a struct
 *                           array with a column `timestamp` and a further one for each key on which
 *                           a column depends. Taken over, also if this fails.
 * @param timestamps_schema  its schema; taken over too
 * @param request            JSON: `{"columns": {"name": "path"}, "consumers": ["name"]}`
 * @param wait_ms            how long it may wait; 0: 60 s
 *
 * # Safety
 * `cache` is null or a handle, the others are null or as said.
 */
iovc_status_t iovc_cache_register(const struct iovc_cache_t *cache,
                                  uint64_t timeframe,
                                  struct ArrowArray *timestamps,
                                  struct ArrowSchema *timestamps_schema,
                                  const char *request,
                                  uint64_t wait_ms);

/**
 * Gets a table: waits until all of its objects are in shared memory, and holds them.
 *
 * @param request  JSON, as a Flight command: `{"timeframe": 42, "consumer": "tracker"}`, or
 *                 `{"columns": {"name": "path"}, "timestamps": [ms, …]}`, with the same options
 * @param table    where the table goes, as a struct array of one child per column: rows as the
 *                 timestamps have them, cells as `encoding` and `cell` say. To be released as the
 *                 Arrow C Data Interface says; that lets go nothing of what the cache holds.
 * @param schema   where its schema goes
 * @param lease    null, or place for 64 bytes: what iovc_cache_release takes. What a timeframe's
 *                 consumer was sent is let go with iovc_cache_consumed too; what nobody named a
 *                 consumer or session for, after 60 s.
 *
 * # Safety
 * `cache` is null or a handle; the others are null or as said. What `table` and `schema` held
 * before is overwritten, not released.
 */
iovc_status_t iovc_cache_table(const struct iovc_cache_t *cache,
                               const char *request,
                               struct ArrowArray *table,
                               struct ArrowSchema *schema,
                               char *lease);

/**
 * The version of this interface; compare it with `IOVC_ABI_VERSION`.
 */
uint32_t iovc_abi_version(void);

/**
 * What a status says, e.g. "not found". Never null; it need not be freed.
 */
const char *iovc_strerror(int32_t status);

/**
 * What exactly went wrong in the last call of this thread that failed, beginning with a stable
 * code: `[IOV-4045] stale: …`. Empty if none has failed. Never null; valid until the next call
 * of this thread into this library.
 */
const char *iovc_last_error(void);

/**
 * Attaches to a service through its socket (`iovcache.attach` in the metadata of each table,
 * `attach` in the line with which a service says that it is ready). Blocks at most 10 s.
 *
 * @param path      the attach socket
 * @param consumer  the name of this consumer; null: none
 * @param token     what the service asks for; null where it asks for nothing
 * @param attach    where the handle goes; null is written if it fails
 *
 * The handle is a session of the service: what it holds for this process it lets go when the
 * handle is given back with iovc_detach (and what was opened by iovc_local_open), or the process
 * ends, however it ends.
 *
 * # Safety
 * `path`, `consumer` and `token` are null or end with a 0; `attach` is null or writable.
 */
iovc_status_t iovc_attach(const char *path,
                          const char *consumer,
                          const char *token,
                          struct iovc_attach_t **attach);

/**
 * Attaches through a socket that is connected already, e.g. one that was handed to a sandboxed
 * process.
 *
 * @param socket  a connected Unix stream socket; from here on the library's own, which closes it,
 *                also if this fails
 *
 * # Safety
 * As `iovc_attach`; `socket` is an open descriptor that nobody else closes.
 */
iovc_status_t iovc_attach_socket(int32_t socket,
                                 const char *consumer,
                                 const char *token,
                                 struct iovc_attach_t **attach);

/**
 * Gives a handle back: the session ends, and its memory is unmapped. Null is allowed.
 *
 * No pointer that was resolved through it may be read afterwards, and no other call may use it.
 *
 * # Safety
 * `attach` is null or a handle that was not given back yet.
 */
void iovc_detach(struct iovc_attach_t *attach);

/**
 * The name of the session, for the field "session" of requests: what it asks for is held as long
 * as this process lives. Empty for a handle of iovc_cache_attach. Null only for null; it lives as
 * long as the handle.
 *
 * # Safety
 * `attach` is null or a handle.
 */
const char *iovc_session(const struct iovc_attach_t *attach);

/**
 * The instance of the service, as in `iovcache.epoch` of its tables: after a restart it is another
 * one, and headers of the one before do not resolve any more. Null only for null; it lives as long
 * as the handle.
 *
 * # Safety
 * `attach` is null or a handle.
 */
const char *iovc_epoch(const struct iovc_attach_t *attach);

/**
 * Whether the service is still there. If not (IOVC_UNAVAILABLE), what was resolved stays readable,
 * and iovc_attach makes a new session once it is back.
 *
 * # Safety
 * `attach` is null or a handle.
 */
iovc_status_t iovc_check(const struct iovc_attach_t *attach);

/**
 * Ends the lease of a table that was asked for this session: nothing pins its objects for it any
 * more, and pointers to them may not be read without iovc_still_valid. The service is told, and
 * does not answer: a lease that is over already is no error.
 *
 * @param lease  as it stands in the table's schema (iovcache.lease)
 * @return IOVC_UNAVAILABLE if the service is gone; for a handle of iovc_cache_attach,
 *         IOVC_NOT_FOUND if there is no such lease
 *
 * # Safety
 * `attach` is null or a handle, `lease` is null or ends with a 0.
 */
iovc_status_t iovc_release(const struct iovc_attach_t *attach, const char *lease);

/**
 * Unmaps segments that the service has given back. Until this is called they stay mapped, so that
 * a pointer that is read too late meets old bytes at worst, never the end of the process.
 *
 * Call it at a moment when no thread reads through a pointer to an object that was let go.
 *
 * # Safety
 * `attach` is null or a handle; as said.
 */
iovc_status_t iovc_unmap_unused(const struct iovc_attach_t *attach);

/**
 * The bytes of the object that a header names: no copy is made.
 *
 * They stay as they are for as long as the table that the header came with is held: until its
 * timeframe is consumed, its lease is released, or the session ends. Who reads on beyond that asks
 * iovc_still_valid afterwards.
 *
 * @param header  40 bytes, as in a cell of a table; they need not be aligned
 * @param data    where the pointer goes; null is written if it fails
 * @param size    where the number of bytes goes; an object can have 0
 * @return IOVC_FAILED_PRECONDITION if the object is not there any more, IOVC_INVALID_ARGUMENT for
 *         what is no header. No header, however forged, is a danger.
 *
 * # Safety
 * `attach` is null or a handle; the others are null or lead to what they say.
 */
iovc_status_t iovc_resolve(const struct iovc_attach_t *attach,
                           const struct iovc_meta_header_t *header,
                           const void **data,
                           size_t *size);

/**
 * Resolves a column of headers, as they lie one after the other in the cells of a table.
 *
 * A cell of 40 zeros, which is what stands in a null cell, gives null and 0. All that can be
 * resolved are, also if some cannot: these get null and 0, and the status is that of the first.
 *
 * @param headers  `count` headers of 40 bytes
 * @param data     place for `count` pointers
 * @param sizes    place for `count` sizes
 *
 * # Safety
 * `attach` is null or a handle; the others are null or lead to what they say.
 */
iovc_status_t iovc_resolve_many(const struct iovc_attach_t *attach,
                                const struct iovc_meta_header_t *headers,
                                size_t count,
                                const void **data,
                                size_t *sizes);

/**
 * Resolves a run-end encoded column row by row: each run once, however many rows it has.
 *
 * @param headers   the values: one header of 40 bytes per run
 * @param run_ends  where each run ends, in rows from the start of the column; strictly rising
 * @param runs      how many runs there are
 * @param offset    the first row that is wanted (the offset of the Arrow array)
 * @param rows      how many rows are wanted; the last run must reach as far
 * @param data      place for `rows` pointers
 * @param sizes     place for `rows` sizes
 *
 * Cells of zeros and cells that cannot be resolved are as in iovc_resolve_many.
 *
 * # Safety
 * `attach` is null or a handle; the others are null or lead to what they say.
 */
iovc_status_t iovc_resolve_runs(const struct iovc_attach_t *attach,
                                const struct iovc_meta_header_t *headers,
                                const int32_t *run_ends,
                                size_t runs,
                                size_t offset,
                                size_t rows,
                                const void **data,
                                size_t *sizes);

/**
 * Whether what was read through the pointer of this header was still the object: IOVC_OK, or
 * IOVC_FAILED_PRECONDITION if its block was given up meanwhile. To be asked after reading, by those
 * who read without holding the table.
 *
 * # Safety
 * `attach` is null or a handle, `header` is null or leads to 40 bytes.
 */
iovc_status_t iovc_still_valid(const struct iovc_attach_t *attach,
                               const struct iovc_meta_header_t *header);

/**
 * The id of the version that a header names: a UUID, most significant byte first.
 *
 * @param id  place for 16 bytes
 *
 * # Safety
 * `attach` is null or a handle; the others are null or lead to what they say.
 */
iovc_status_t iovc_object_id(const struct iovc_attach_t *attach,
                             const struct iovc_meta_header_t *header,
                             uint8_t *id);

/**
 * The options that hold where nothing else is set.
 */
struct iovc_cache_options_t iovc_cache_options(void);

/**
 * Makes a cache in this process, with a few threads of its own. Any number of threads may use it.
 *
 * @param options  as iovc_cache_options gave them, with at least one source
 * @param cache    where the handle goes; null is written if it fails
 *
 * # Safety
 * `options` is null or as said, `cache` is null or writable.
 */
iovc_status_t iovc_cache_open(const struct iovc_cache_options_t *options,
                              struct iovc_cache_t **cache);

/**
 * Ends a cache: all that it held is let go, its attach socket is gone. Null is allowed.
 *
 * Processes that have attached can read on what they have resolved; nothing resolves any more.
 * Handles of iovc_cache_attach are to be given back before.
 *
 * # Safety
 * `cache` is null or a handle that was not given back yet and that nobody uses any more.
 */
void iovc_cache_close(struct iovc_cache_t *cache);

/**
 * The cache's memory for this very process: nothing is mapped a second time, and no socket is
 * needed. It is used and given back like a handle of iovc_attach, but is no session.
 *
 * # Safety
 * `cache` is null or a handle, `attach` is null or writable.
 */
iovc_status_t iovc_cache_attach(const struct iovc_cache_t *cache, struct iovc_attach_t **attach);

/**
 * The segments or the region that objects lie in: none where that is the memory of the host.
 *
 * @param segments  place for `capacity` of them; may be null if that is 0
 * @param count     how many there are, also if that is more than `capacity`
 *
 * # Safety
 * `cache` is null or a handle, `segments` leads to `capacity` places, `count` is null or writable.
 */
iovc_status_t iovc_cache_segments(const struct iovc_cache_t *cache,
                                  struct iovc_segment_t *segments,
                                  size_t capacity,
                                  size_t *count);

/**
 * A consumer is done with a timeframe. When all of its consumers are, its objects are let go.
 *
 * # Safety
 * `cache` is null or a handle, `consumer` is null or ends with a 0.
 */
iovc_status_t iovc_cache_consumed(const struct iovc_cache_t *cache,
                                  uint64_t timeframe,
                                  const char *consumer);

/**
 * A consumer is done with all timeframes below `oldest_possible`. That never goes back.
 *
 * # Safety
 * `cache` is null or a handle, `consumer` is null or ends with a 0.
 */
iovc_status_t iovc_cache_oldest_possible(const struct iovc_cache_t *cache,
                                         const char *consumer,
                                         uint64_t oldest_possible);

/**
 * Drops a timeframe, whoever still waits for it.
 *
 * # Safety
 * `cache` is null or a handle.
 */
iovc_status_t iovc_cache_drop_timeframe(const struct iovc_cache_t *cache, uint64_t timeframe);

/**
 * Lets go what a table holds. IOVC_NOT_FOUND if it was let go already.
 *
 * @param lease  as iovc_cache_table gave it; it stands in the table's schema too (iovcache.lease)
 *
 * # Safety
 * `cache` is null or a handle, `lease` is null or ends with a 0.
 */
iovc_status_t iovc_cache_release(const struct iovc_cache_t *cache, const char *lease);

/**
 * What the cache holds, as JSON: the form of the Flight action `status`.
 *
 * @param json  where the text goes; to be given back with iovc_free_text
 *
 * # Safety
 * `cache` is null or a handle, `json` is null or writable.
 */
iovc_status_t iovc_cache_status(const struct iovc_cache_t *cache, char **json);

/**
 * Gives a text of this library back. Null is allowed.
 *
 * # Safety
 * `text` is null or came from iovc_cache_status, and was not given back yet.
 */
void iovc_free_text(char *text);

/**
 * Registers a timeframe and starts to load what it needs. While too many are in flight, or memory
 * is short, it waits.
 *
 * @param timeframe          its id
 * @param timestamps         one per row (milliseconds, or an Arrow timestamp): an array, or a struct
 *                           array with a column `timestamp` and a further one for each key on which
 *                           a column depends. Taken over, also if this fails.
 * @param timestamps_schema  its schema; taken over too
 * @param request            JSON: `{"columns": {"name": "path"}, "consumers": ["name"]}`
 * @param wait_ms            how long it may wait; 0: 60 s
 *
 * # Safety
 * `cache` is null or a handle, the others are null or as said.
 */
iovc_status_t iovc_cache_register(const struct iovc_cache_t *cache,
                                  uint64_t timeframe,
                                  struct ArrowArray *timestamps,
                                  struct ArrowSchema *timestamps_schema,
                                  const char *request,
                                  uint64_t wait_ms);

/**
 * Gets a table: waits until all of its objects are in shared memory, and holds them.
 *
 * @param request  JSON, as a Flight command: `{"timeframe": 42, "consumer": "tracker"}`, or
 *                 `{"columns": {"name": "path"}, "timestamps": [ms, …]}`, with the same options
 * @param table    where the table goes, as a struct array of one child per column: rows as the
 *                 timestamps have them, cells as `encoding` and `cell` say. To be released as the
 *                 Arrow C Data Interface says; that lets go nothing of what the cache holds.
 * @param schema   where its schema goes
 * @param lease    null, or place for 64 bytes: what iovc_cache_release takes. What a timeframe's
 *                 consumer was sent is let go with iovc_cache_consumed too; what nobody named a
 *                 consumer or session for, after 60 s.
 *
 * # Safety
 * `cache` is null or a handle; the others are null or as said. What `table` and `schema` held
 * before is overwritten, not released.
 */
iovc_status_t iovc_cache_table(const struct iovc_cache_t *cache,
                               const char *request,
                               struct ArrowArray *table,
                               struct ArrowSchema *schema,
                               char *lease);

/**
 * Look-ups by a handle of iovc_attach, without a call.
 *
 * @param local  where the handle goes; null is written if it fails
 * @return IOVC_FAILED_PRECONDITION where the service does not offer look-ups, or by a handle of
 *         iovc_cache_attach
 *
 * It keeps the session, also after iovc_detach.
 *
 * # Safety
 * `attach` is null or a handle, `local` is null or writable.
 */
iovc_status_t iovc_local_open(const struct iovc_attach_t *attach, struct iovc_local_t **local);

/**
 * Gives a handle back. Null is allowed. Paths and views of it stay what they are; the session ends
 * with the last of all.
 *
 * # Safety
 * `local` is null or a handle that was not given back yet.
 */
void iovc_local_close(struct iovc_local_t *local);

/**
 * A path to look up in. Makes no call; the service need not know the path.
 *
 * @param path    the object path
 * @param handle  where the handle goes; null is written if it fails
 *
 * One thread at a time may use it.
 *
 * # Safety
 * `local` is null or a handle, `path` is null or ends with a 0, `handle` is null or writable.
 */
iovc_status_t iovc_local_path(const struct iovc_local_t *local,
                              const char *path,
                              struct iovc_local_path_t **handle);

/**
 * Gives a path back. Null is allowed. Its views stay what they are.
 *
 * # Safety
 * `path` is null or a handle that was not given back yet.
 */
void iovc_local_path_close(struct iovc_local_path_t *path);

/**
 * The object of a path that is valid at a time, in milliseconds since the Unix epoch. Makes no
 * system call.
 *
 * @param view  where it goes; it pins the object until iovc_view_release. Without one (any status
 *              but IOVC_OK) it pins nothing
 * @return IOVC_UNAVAILABLE where the service has to be asked: nothing is valid, or it does not lie
 *         in shared memory, or is not confirmed. A request for the path that names the session has
 *         it published
 *
 * # Safety
 * `path` is null or a handle that no other thread uses meanwhile, `view` is null or writable.
 */
iovc_status_t iovc_local_get(const struct iovc_local_path_t *path,
                             int64_t at,
                             struct iovc_view_t *view);

/**
 * The objects of a path at many times.
 *
 * @param at     `count` times
 * @param views  room for as many; those that are not found pin nothing, and have null as `pin`
 * @param found  how many were found; may be null
 * @return IOVC_OK also where some were not found: the service is to be asked for them
 *
 * # Safety
 * As `iovc_local_get`; `at` leads to `count` times, `views` to room for as many, `found` is null
 * or writable.
 */
iovc_status_t iovc_local_get_many(const struct iovc_local_path_t *path,
                                  const int64_t *at,
                                  size_t count,
                                  struct iovc_view_t *views,
                                  size_t *found);

/**
 * The state of a path, for iovc_local_wait. Where it is taken before an object is looked up, in
 * shared memory or at the service, no change after that look-up is missed.
 *
 * @return IOVC_UNAVAILABLE where changes cannot be waited for: the path is not published. A request
 *         for it that names the session has it published
 *
 * # Safety
 * `path` is null or a handle that no other thread uses meanwhile, `notice` is null or writable.
 */
iovc_status_t iovc_local_notice(const struct iovc_local_path_t *path, struct iovc_notice_t *notice);

/**
 * Waits until the answer for a path can be another one than when `notice` was taken. Blocks this
 * thread, and uses no CPU time meanwhile.
 *
 * @param notice         what iovc_local_notice has written
 * @param timeout_millis time limit; less than 0: none
 * @param changed        whether the answer can be another one; false after the time limit
 * @return IOVC_FAILED_PRECONDITION once the session is over
 *
 * A path whose source answers for single times alone can have changed after a second.
 *
 * # Safety
 * As `iovc_local_notice`; `changed` is null or writable.
 */
iovc_status_t iovc_local_wait(const struct iovc_local_path_t *path,
                              const struct iovc_notice_t *notice,
                              int64_t timeout_millis,
                              bool *changed);

/**
 * Ends the pin of a view; what it points to may not be read any more. A view that pins nothing, and
 * null, are allowed. Any thread may do it.
 *
 * # Safety
 * `view` is null or leads to a view that iovc_local_get or iovc_local_get_many has written, and
 * no copy of it was released.
 */
void iovc_view_release(struct iovc_view_t *view);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* IOVCACHE_H */
