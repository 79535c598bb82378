/**
 * @file
 * iovcache: condition objects in shared memory, for C.
 *
 * Resolve the MetaHeaders of tables to read-only pointers (iovc_attach, iovc_resolve), look objects
 * up by path and time without a call (iovc_local_open, iovc_local_get), take the tables of timeframes
 * (iovc_timeframe_get), or host a cache in a process of your own (iovc_cache_open). Every function that can fail returns an
 * iovc_status_t; iovc_last_error describes the failure. `iovcache.hpp` is C++17 over this.
 *
 * Generated from src/ffi; changes here are lost.
 */

#ifndef IOVCACHE_H
#define IOVCACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** The value of iovc_abi_version in a library that fits this header. */
#define IOVC_ABI_VERSION 2
/** Maximum length of the name of a lease in bytes, its 0 included. */
#define IOVC_LEASE_BYTES 64

/* Defined by the Arrow C Data Interface (arrow/c/abi.h). */
struct ArrowArray;
struct ArrowSchema;

/**
 * Result of a call.
 */
enum iovc_status_t
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Success.
   */
  IOVC_OK = 0,
  /**
   * The call is wrong: a null pointer where none is allowed, a text that is not UTF-8, a
   * malformed header.
   */
  IOVC_INVALID_ARGUMENT = 1,
  /**
   * No object is valid at that time, or the timeframe, table or path is unknown.
   */
  IOVC_NOT_FOUND = 2,
  /**
   * The name is in use already.
   */
  IOVC_ALREADY_EXISTS = 3,
  /**
   * Try again later: the service or a source is down, or memory is pinned.
   */
  IOVC_UNAVAILABLE = 4,
  /**
   * The request can never fit into memory, or exceeds the quota.
   */
  IOVC_RESOURCE_EXHAUSTED = 5,
  /**
   * The state does not allow the call: the header is stale, or the lease has ended.
   */
  IOVC_FAILED_PRECONDITION = 6,
  /**
   * The token is missing or wrong.
   */
  IOVC_UNAUTHENTICATED = 7,
  /**
   * The token does not permit the call.
   */
  IOVC_PERMISSION_DENIED = 8,
  /**
   * The time limit has passed.
   */
  IOVC_DEADLINE_EXCEEDED = 9,
  /**
   * A bug in iovcache.
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
 * The memory of a service, mapped read-only. Threads may share a handle.
 */
typedef struct iovc_attach_t iovc_attach_t;

/**
 * A cache in this process.
 */
typedef struct iovc_cache_t iovc_cache_t;

/**
 * Look-ups in the shared memory of a service. Threads may share a handle.
 */
typedef struct iovc_local_t iovc_local_t;

/**
 * A path to look up objects in. It may be used by one thread at a time.
 */
typedef struct iovc_local_path_t iovc_local_path_t;

/**
 * A descriptor that becomes readable once. Threads may share a handle.
 */
typedef struct iovc_event_t iovc_event_t;

/**
 * The table of a timeframe in shared memory. Threads may share a handle.
 */
typedef struct iovc_timeframe_t iovc_timeframe_t;

/**
 * The state of a path at a moment, for iovc_local_wait.
 */
typedef struct iovc_notice_t {
  /**
   * Opaque.
   */
  uint64_t words[2];
} iovc_notice_t;

/**
 * The location of an object in shared memory: 40 bytes, little endian, that fit into a message or
 * a cell of a table. The layout is that of `fair::mq::shmem::MetaHeader` on x86-64;
 * `schemas/segment.md` draws it.
 *
 * A header is a claim: [`Mappings`](crate::shm::Mappings) checks each field before it gives an
 * address.
 */
typedef struct iovc_meta_header_t {
  /**
   * Bytes of the payload.
   */
  uint64_t size;
  /**
   * The generation of the block: unique among all blocks of this and earlier instances, never 0.
   * A block with another generation holds another object.
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
 * Allocator of the host program for the objects of a cache. A FairMQ device allocates messages of
 * its own transport, which it never sends. The cache then maps, names and registers no memory
 * itself. Cells hold the headers that `allocate` writes, with `hint` replaced by the generation of
 * the object and `size` by its size.
 *
 * Both functions are called from any thread, also from several at a time. They must not wait for
 * memory, throw, or call into the cache. They are not called after iovc_cache_close has returned.
 */
typedef struct iovc_host_memory_t {
  /**
   * First argument of both functions.
   */
  void *context;
  /**
   * Allocates `size` bytes at a multiple of `align`. Writes their address to `data`, and to
   * `header` the header by which other processes find them. The bytes must be readable and
   * writable, and used by the cache alone until they are released.
   *
   * Returns 0 on success. Any other value, or null in `data`, means that there is no memory now:
   * the cache evicts objects and tries again.
   */
  int (*allocate)(void *context,
                  size_t size,
                  size_t align,
                  void **data,
                  struct iovc_meta_header_t *header);
  /**
   * Frees memory of `allocate`; `header` is the header that `allocate` wrote. Not called for
   * objects that are held when the cache is closed, see iovc_cache_close.
   */
  void (*release)(void *context, const struct iovc_meta_header_t *header);
} iovc_host_memory_t;

/**
 * Options of a cache. Take the defaults from iovc_cache_options, then change members.
 */
typedef struct iovc_cache_options_t {
  /**
   * URLs of the sources, asked in this order: `http(s)://host:port` (CCDB), `file:///folder`,
   * `s3://bucket/prefix`; `URL#PREFIX,PREFIX` restricts a source to some paths.
   */
  const char *const *sources;
  /**
   * Number of sources.
   */
  size_t source_count;
  /**
   * Total shared memory in bytes. Default: 4 GiB.
   */
  uint64_t memory_bytes;
  /**
   * Size of a segment in bytes. Default: 512 MiB.
   */
  uint64_t segment_bytes;
  /**
   * Path at which to make the attach socket, a Unix socket for other processes. Null: no socket.
   */
  const char *attach_path;
  /**
   * Existing shared-memory file, e.g. a region that FairMQ made, to hold the objects instead of
   * segments. Its content is overwritten. Null: none.
   */
  const char *region_path;
  /**
   * Id of the region in FairMQ.
   */
  uint16_t region_id;
  /**
   * Id of a FairMQ session: segments get the names of its managed segments. Given as the 8
   * hexadecimal digits of these names, or as the decimal number that FairMQ's --shmid takes (a
   * number of 8 digits needs a leading 0). Null: segments have no names.
   */
  const char *fairmq_shmid;
  /**
   * Id of the first segment; lower ids are FairMQ's own segments.
   */
  uint16_t fairmq_segment;
  /**
   * Maximum number of timeframes in flight; further registrations wait. Default: 4096.
   */
  size_t max_timeframes;
  /**
   * Name of a FairMQ session (its --session), as an alternative to fairmq_shmid. Null: none.
   */
  const char *fairmq_session;
  /**
   * Memory of this program to hold the objects instead of segments. Null: none. The structure is
   * copied.
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
   * Versions created after this time are ignored, in ms. Default: INT64_MAX, no limit.
   */
  int64_t not_after;
  /**
   * Versions created before this time are ignored, in ms. Default: INT64_MIN, no limit.
   */
  int64_t not_before;
  /**
   * Maximum bytes that one consumer may pin; each object counts once. Default: UINT64_MAX, no
   * limit.
   */
  uint64_t quota_bytes;
} iovc_cache_options_t;

/**
 * Segment or region of a cache, for registration with FairMQ.
 */
typedef struct iovc_segment_t {
  /**
   * Size in bytes.
   */
  uint64_t size;
  /**
   * Id of the segment or region, unique among those of its kind.
   */
  uint16_t number;
  /**
   * 1: managed segment, 0: unmanaged region.
   */
  uint8_t managed;
} iovc_segment_t;

/**
 * Object in shared memory. Its bytes do not change until iovc_view_release.
 */
typedef struct iovc_view_t {
  /**
   * Pointer to the first byte.
   */
  const void *data;
  /**
   * Size in bytes.
   */
  size_t size;
  /**
   * Id of the version: a UUID, most significant byte first.
   */
  uint8_t object_id[16];
  /**
   * Start of the version's own validity interval, inclusive, in milliseconds since the Unix
   * epoch.
   */
  int64_t valid_from;
  /**
   * End of that interval, exclusive.
   */
  int64_t valid_until;
  /**
   * Pin of the object; null if there is none.
   */
  const void *pin;
  /**
   * Slot of the pin.
   */
  uint32_t slot;
} iovc_view_t;

/**
 * Registry in which devices look up segments by number, such as FairMQ's management segment. The
 * functions are called on the thread that calls iovc_cache_renew, and must not call into the cache.
 */
typedef struct iovc_segment_registry_t {
  /**
   * First argument of both functions.
   */
  void *context;
  /**
   * Registers a new segment before objects are placed in it. Returns 0 on success; after any
   * other value the segment is not used. Null: segments need no registration.
   */
  int (*add)(void *context, const struct iovc_segment_t *segment);
  /**
   * Removes a segment whose name or head was lost. Null: nothing is removed.
   */
  void (*remove)(void *context, uint16_t number);
} iovc_segment_registry_t;

/**
 * Result of iovc_cache_renew, in segments.
 */
typedef struct iovc_renewal_t {
  /**
   * Found lost since the last call.
   */
  size_t lost;
  /**
   * Created in place of lost ones.
   */
  size_t made;
  /**
   * Lost ones that are not replaced yet, because tables still hold their objects. A later call
   * replaces them.
   */
  size_t waiting;
} iovc_renewal_t;

/**
 * The arrays of a column, in shared memory. They are valid until the table is released.
 */
typedef struct iovc_column_t {
  /**
   * Name of the column; ends with a 0.
   */
  const char *name;
  /**
   * Number of runs of rows with the same object.
   */
  size_t runs;
  /**
   * For each run, the row after its last one, ascending.
   */
  const int32_t *run_ends;
  /**
   * For each run, the MetaHeader of its object.
   */
  const struct iovc_meta_header_t *cells;
  /**
   * For each run a bit, least significant first: 1 if its cell is not null. Null if no cell is
   * null.
   */
  const uint8_t *validity;
  /**
   * For each run, start (inclusive) and end (exclusive) of the version's validity interval in
   * milliseconds since the Unix epoch. Null if an older service has not told them.
   */
  const int64_t *intervals;
} iovc_column_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Attaches to a service through its socket. The path is `iovcache.attach` in the metadata of each
 * table, and `attach` in the line that a service writes when it is ready. Blocks for at most 10 s.
 *
 * @param path      path of the attach socket
 * @param consumer  name of this consumer; null or empty: "process-" and the process id
 * @param token     token of the service; null if it requires none
 * @param attach    receives the handle, or null on failure
 *
 * The handle is a session of the service. The session ends when the handle and those that
 * iovc_local_open made from it are closed, or when the process ends in any way; the service then
 * releases everything that it holds for the session.
 *
 * # Safety
 * `path`, `consumer` and `token` are null or end with a 0; `attach` is null or writable.
 */
iovc_status_t iovc_attach(const char *path,
                          const char *consumer,
                          const char *token,
                          struct iovc_attach_t **attach);

/**
 * Attaches through a connected socket, e.g. one that was passed to a sandboxed process.
 *
 * @param socket  connected Unix stream socket; the library takes it over and closes it, also on
 *                failure
 *
 * # Safety
 * As `iovc_attach`; `socket` is an open descriptor that no other code uses or closes.
 */
iovc_status_t iovc_attach_socket(int32_t socket,
                                 const char *consumer,
                                 const char *token,
                                 struct iovc_attach_t **attach);

/**
 * Closes a handle: its session ends, and its memory is unmapped. Null is allowed.
 *
 * Afterwards, neither the handle nor a pointer resolved through it may be used.
 *
 * # Safety
 * `attach` is null or a handle that was not closed yet.
 */
void iovc_detach(struct iovc_attach_t *attach);

/**
 * Id of the session, for the field "session" of requests: the objects of such a request stay
 * pinned while this process lives. Empty for a handle of iovc_cache_attach; null if `attach` is
 * null. Valid as long as the handle.
 *
 * # Safety
 * `attach` is null or a handle.
 */
const char *iovc_session(const struct iovc_attach_t *attach);

/**
 * Epoch of the service instance, as in `iovcache.epoch` of its tables. It changes with each
 * restart, and headers of an earlier epoch do not resolve. Null if `attach` is null. Valid as long
 * as the handle.
 *
 * # Safety
 * `attach` is null or a handle.
 */
const char *iovc_epoch(const struct iovc_attach_t *attach);

/**
 * Checks whether the service is still connected. If it is not (IOVC_UNAVAILABLE), resolved objects
 * stay readable, and iovc_attach makes a new session when the service is back.
 *
 * # Safety
 * `attach` is null or a handle.
 */
iovc_status_t iovc_check(const struct iovc_attach_t *attach);

/**
 * Ends the lease of a table that was requested for this session. It pins the objects of the table
 * no longer; data read through pointers to them is valid only if iovc_still_valid confirms it
 * afterwards. The service does not answer: a lease that has ended already is no error.
 *
 * @param lease  the lease in the table's schema (iovcache.lease)
 * @return IOVC_UNAVAILABLE if the service is gone; for a handle of iovc_cache_attach,
 *         IOVC_NOT_FOUND if there is no such lease
 *
 * # Safety
 * `attach` is null or a handle, `lease` is null or ends with a 0.
 */
iovc_status_t iovc_release(const struct iovc_attach_t *attach, const char *lease);

/**
 * Unmaps segments that the service has removed. They stay mapped until this call, so that a late
 * read through a pointer finds old bytes and does not end the process.
 *
 * Call it while no thread reads through a pointer to a released object.
 *
 * # Safety
 * `attach` is null or a handle; no thread reads through a pointer to a released object.
 */
iovc_status_t iovc_unmap_unused(const struct iovc_attach_t *attach);

/**
 * Makes a descriptor for a timeframe. It is readable as soon as iovc_timeframe_get need not wait: the
 * table is ready, the service must be asked, or the session has ended.
 *
 * @param local      handle of iovc_local_open
 * @param timeframe  id of the timeframe
 * @param event      receives the handle, or null on failure
 * @return IOVC_FAILED_PRECONDITION if the session has ended; IOVC_RESOURCE_EXHAUSTED if the system
 *         provides no descriptor or thread
 *
 * Then call iovc_timeframe_get with a time limit of 0. If it returns IOVC_DEADLINE_EXCEEDED, the
 * timeframe is being loaded again: make another event.
 *
 * The caller owns the event and closes it by iovc_event_close. An event holds no pin. Any number of
 * threads may call this at a time. One thread of the library waits for all events of a session; it
 * uses no CPU time meanwhile.
 *
 * # Safety
 * `local` is null or a handle, `event` is null or writable.
 */
iovc_status_t iovc_timeframe_event(const struct iovc_local_t *local,
                                   uint64_t timeframe,
                                   struct iovc_event_t **event);

/**
 * Makes a descriptor for a change of a path. It is readable when the answer for the path can differ
 * from that at the time of `notice`, or the session has ended; as iovc_local_wait.
 *
 * @param path    handle of iovc_local_path
 * @param notice  written by iovc_local_notice
 * @param event   receives the handle, or null on failure; close it by iovc_event_close
 * @return IOVC_FAILED_PRECONDITION if the session has ended; IOVC_RESOURCE_EXHAUSTED if the system
 *         provides no descriptor or thread
 *
 * # Safety
 * As `iovc_local_notice`; `event` is null or writable.
 */
iovc_status_t iovc_local_event(const struct iovc_local_path_t *path,
                               const struct iovc_notice_t *notice,
                               struct iovc_event_t **event);

/**
 * The descriptor of an event, for epoll, poll or an event loop. Only wait for it to be readable: do
 * not read, write or close it. It stays readable once it is, and is open until iovc_event_close.
 * -1 if `event` is null.
 *
 * # Safety
 * `event` is null or a handle.
 */
int32_t iovc_event_fd(const struct iovc_event_t *event);

/**
 * Closes an event and its descriptor. Null is allowed. Remove the descriptor from event loops
 * before. Any thread may call it, also after the end of the session.
 *
 * # Safety
 * `event` is null or a handle that was not closed yet.
 */
void iovc_event_close(struct iovc_event_t *event);

/**
 * Makes a cache in this process, with a few threads of its own. Threads may share the handle.
 *
 * @param options  options from iovc_cache_options, with at least one source
 * @param cache    receives the handle, or null on failure
 *
 * # Safety
 * `options` is null or valid options, `cache` is null or writable.
 */
iovc_status_t iovc_cache_open(const struct iovc_cache_options_t *options,
                              struct iovc_cache_t **cache);

/**
 * Closes a cache: its objects are released, and its attach socket is removed. Null is allowed.
 *
 * Attached processes can still read objects that they have resolved, but no header resolves any
 * more. Close the handles of iovc_cache_attach first.
 *
 * Objects in memory of the host program that a table or a timeframe still holds are not released:
 * other devices may be reading them by the host's headers. Report timeframes as consumed and release
 * leases first, or they stay allocated as long as the host's memory exists.
 *
 * # Safety
 * `cache` is null or a handle that was not closed yet and is not used any more.
 */
void iovc_cache_close(struct iovc_cache_t *cache);

/**
 * Handle for the memory of a cache, in the same process: it maps no memory again and needs no
 * socket. It is used and closed like a handle of iovc_attach, but is no session.
 *
 * # Safety
 * `cache` is null or a handle, `attach` is null or writable.
 */
iovc_status_t iovc_cache_attach(const struct iovc_cache_t *cache, struct iovc_attach_t **attach);

/**
 * Lists the segments or the region that objects lie in. There are none if the objects lie in
 * memory of the host program.
 *
 * @param segments  memory for `capacity` entries; may be null if `capacity` is 0
 * @param count     receives the number of segments, which may exceed `capacity`
 *
 * # Safety
 * `cache` is null or a handle, `segments` points to memory for `capacity` entries, `count` is null
 * or writable.
 */
iovc_status_t iovc_cache_segments(const struct iovc_cache_t *cache,
                                  struct iovc_segment_t *segments,
                                  size_t capacity,
                                  size_t *count);

/**
 * Reports that a consumer has finished with a timeframe. When all of its consumers have, its
 * objects are released.
 *
 * # Safety
 * `cache` is null or a handle, `consumer` is null or ends with a 0.
 */
iovc_status_t iovc_cache_consumed(const struct iovc_cache_t *cache,
                                  uint64_t timeframe,
                                  const char *consumer);

/**
 * Reports that a consumer has finished with all timeframes below `oldest_possible`, the oldest one
 * that it may still need. The value never decreases: a lower one has no effect.
 *
 * # Safety
 * `cache` is null or a handle, `consumer` is null or ends with a 0.
 */
iovc_status_t iovc_cache_oldest_possible(const struct iovc_cache_t *cache,
                                         const char *consumer,
                                         uint64_t oldest_possible);

/**
 * Drops a timeframe, even if consumers still wait for it.
 *
 * # Safety
 * `cache` is null or a handle.
 */
iovc_status_t iovc_cache_drop_timeframe(const struct iovc_cache_t *cache, uint64_t timeframe);

/**
 * Ends the lease of a table and releases its objects. IOVC_NOT_FOUND if it has ended already.
 *
 * @param lease  the lease from iovc_cache_table, also in the table's schema (iovcache.lease)
 *
 * # Safety
 * `cache` is null or a handle, `lease` is null or ends with a 0.
 */
iovc_status_t iovc_cache_release(const struct iovc_cache_t *cache, const char *lease);

/**
 * State of the cache as JSON, as answered by the Flight action `status`.
 *
 * @param json  receives the text; free it with iovc_free_text
 *
 * # Safety
 * `cache` is null or a handle, `json` is null or writable.
 */
iovc_status_t iovc_cache_status(const struct iovc_cache_t *cache, char **json);

/**
 * Frees a text returned by this library. Null is allowed.
 *
 * # Safety
 * `text` is null or came from iovc_cache_status, and was not freed yet.
 */
void iovc_free_text(char *text);

/**
 * Opens look-ups without requests, by a handle of iovc_attach.
 *
 * @param local  receives the handle, or null on failure
 * @return IOVC_FAILED_PRECONDITION if the service does not offer look-ups, or if `attach` is a
 *         handle of iovc_cache_attach
 *
 * The handle keeps the session alive, also after iovc_detach.
 *
 * # Safety
 * `attach` is null or a handle, `local` is null or writable.
 */
iovc_status_t iovc_local_open(const struct iovc_attach_t *attach, struct iovc_local_t **local);

/**
 * Closes a handle. Null is allowed. Its paths and views stay valid; the session ends with the last
 * of them.
 *
 * # Safety
 * `local` is null or a handle that was not closed yet.
 */
void iovc_local_close(struct iovc_local_t *local);

/**
 * Opens a path for look-ups. No request is sent; the service need not know the path.
 *
 * @param path    object path
 * @param handle  receives the handle, or null on failure
 *
 * The handle may be used by one thread at a time.
 *
 * # Safety
 * `local` is null or a handle, `path` is null or ends with a 0, `handle` is null or writable.
 */
iovc_status_t iovc_local_path(const struct iovc_local_t *local,
                              const char *path,
                              struct iovc_local_path_t **handle);

/**
 * Closes a path. Null is allowed. Its views stay valid.
 *
 * # Safety
 * `path` is null or a handle that was not closed yet.
 */
void iovc_local_path_close(struct iovc_local_path_t *path);

/**
 * Looks up the object of a path that is valid at a time, in milliseconds since the Unix epoch.
 * Makes no system call.
 *
 * @param view  receives the object, pinned until iovc_view_release; pins nothing on failure (any
 *              status but IOVC_OK)
 * @return IOVC_UNAVAILABLE if the service must be asked: no object is valid, or it is not in
 *         shared memory, or not confirmed. A request for the path that names the session makes the
 *         service publish it
 *
 * # Safety
 * `path` is null or a handle that no other thread uses during the call, `view` is null or
 * writable.
 */
iovc_status_t iovc_local_get(const struct iovc_local_path_t *path,
                             int64_t at,
                             struct iovc_view_t *view);

/**
 * Looks up the objects of a path at several times.
 *
 * @param at     `count` times, in milliseconds since the Unix epoch
 * @param views  memory for `count` views; those of objects not found pin nothing and have a null
 *               `pin`
 * @param found  receives the number of objects found; may be null
 * @return IOVC_OK even if some were not found: ask the service for those
 *
 * # Safety
 * As `iovc_local_get`; `at` points to `count` times, `views` to memory for `count` views, `found`
 * is null or writable.
 */
iovc_status_t iovc_local_get_many(const struct iovc_local_path_t *path,
                                  const int64_t *at,
                                  size_t count,
                                  struct iovc_view_t *views,
                                  size_t *found);

/**
 * The state of a path, for iovc_local_wait. Take it before the object is looked up, in shared memory
 * or at the service: then no change after that look-up is missed.
 *
 * @return IOVC_UNAVAILABLE if the path is not published. A request for it with the id of the session
 *         makes the service publish it
 *
 * # Safety
 * `path` is null or a handle that no other thread uses meanwhile, `notice` is null or writable.
 */
iovc_status_t iovc_local_notice(const struct iovc_local_path_t *path,
                                struct iovc_notice_t *notice);

/**
 * Waits until the answer for a path can differ from that at the time of `notice`. Blocks the thread
 * without using CPU time.
 *
 * @param notice         written by iovc_local_notice
 * @param timeout_millis time limit; less than 0: none
 * @param changed        true: the answer can differ; false: the time limit has passed
 * @return IOVC_FAILED_PRECONDITION if the session has ended
 *
 * If the source of a path answers for single times only, the answer can differ after one second.
 *
 * # Safety
 * As `iovc_local_notice`; `changed` is null or writable.
 */
iovc_status_t iovc_local_wait(const struct iovc_local_path_t *path,
                              const struct iovc_notice_t *notice,
                              int64_t timeout_millis,
                              bool *changed);

/**
 * Unpins the object of a view; its bytes may not be read afterwards. Null, and a view that pins
 * nothing, are allowed. Any thread may call it.
 *
 * # Safety
 * `view` is null or points to a view written by iovc_local_get, iovc_local_get_many or
 * iovc_timeframe_object, no copy of which was released.
 */
void iovc_view_release(struct iovc_view_t *view);

/**
 * Default options.
 */
struct iovc_cache_options_t iovc_cache_options(void);

/**
 * Makes segments with names of FairMQ anew, under fresh numbers, whose files another program has
 * removed or reset (`fairmq-shmmonitor --cleanup`, `--reset-content`). A device calls this from time
 * to time, such as once a second: it costs a system call per segment if none is lost.
 *
 * Objects of lost segments are loaded anew when they are requested. Timeframes in flight are issued
 * anew: the next iovc_cache_table gives headers of other segments. Tables that were given out before
 * can be read where they are mapped, until they are consumed or released; devices that do not have
 * them mapped, and all after a reset, are told that their headers are stale.
 *
 * @param registry  registry of the segments; null: there is none
 * @param renewal   receives what was done, also on failure; may be null
 *
 * # Safety
 * `cache` is null or a handle, `registry` is null or valid, `renewal` is null or writable.
 */
iovc_status_t iovc_cache_renew(const struct iovc_cache_t *cache,
                               const struct iovc_segment_registry_t *registry,
                               struct iovc_renewal_t *renewal);

/**
 * Resolves a header to the bytes of its object, without a copy.
 *
 * The bytes do not change while the table of the header is held: until its timeframe is consumed,
 * its lease is released, or the session ends. A later read must be confirmed with iovc_still_valid
 * afterwards.
 *
 * @param header  40 bytes, as in a cell of a table; they need not be aligned
 * @param data    receives the pointer, or null on failure
 * @param size    receives the size in bytes, which can be 0
 * @return IOVC_FAILED_PRECONDITION if the object is gone, IOVC_INVALID_ARGUMENT if the header is
 *         malformed. No header, even a forged one, makes the call unsafe.
 *
 * # Safety
 * `attach` is null or a handle; the others are null or point to memory of the stated kind.
 */
iovc_status_t iovc_resolve(const struct iovc_attach_t *attach,
                           const struct iovc_meta_header_t *header,
                           const void **data,
                           size_t *size);

/**
 * Resolves the headers of a column of cells, contiguous in memory.
 *
 * A cell of 40 zeros, as under a null, gives null and 0. All headers are tried: those that cannot
 * be resolved give null and 0, and the status is that of the first failure.
 *
 * @param headers  `count` headers of 40 bytes
 * @param data     memory for `count` pointers
 * @param sizes    memory for `count` sizes in bytes
 *
 * # Safety
 * `attach` is null or a handle; the others are null or point to memory of the stated kind.
 */
iovc_status_t iovc_resolve_many(const struct iovc_attach_t *attach,
                                const struct iovc_meta_header_t *headers,
                                size_t count,
                                const void **data,
                                size_t *sizes);

/**
 * Resolves a run-end encoded column row by row. Each run is resolved once.
 *
 * @param headers   the values: one header of 40 bytes per run
 * @param run_ends  end of each run, in rows from the start of the column; strictly ascending
 * @param runs      number of runs
 * @param offset    first row to resolve (the offset of the Arrow array)
 * @param rows      number of rows to resolve; the last run must cover the last of them
 * @param data      memory for `rows` pointers
 * @param sizes     memory for `rows` sizes in bytes
 *
 * Cells of zeros and headers that cannot be resolved are treated as in iovc_resolve_many.
 *
 * # Safety
 * `attach` is null or a handle; the others are null or point to memory of the stated kind.
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
 * Checks that bytes read through the pointer of a header were those of the object. Returns
 * IOVC_OK, or IOVC_FAILED_PRECONDITION if its block was freed meanwhile. Call it after reading
 * without holding the table.
 *
 * # Safety
 * `attach` is null or a handle, `header` is null or points to 40 bytes.
 */
iovc_status_t iovc_still_valid(const struct iovc_attach_t *attach,
                               const struct iovc_meta_header_t *header);

/**
 * Id of the version that a header refers to: a UUID, most significant byte first.
 *
 * @param id  memory for 16 bytes
 *
 * # Safety
 * `attach` is null or a handle; the others are null or point to memory of the stated kind.
 */
iovc_status_t iovc_object_id(const struct iovc_attach_t *attach,
                             const struct iovc_meta_header_t *header,
                             uint8_t *id);

/**
 * Text of a status, e.g. "not found". Never null; it must not be freed.
 */
const char *iovc_strerror(int32_t status);

/**
 * Description of the last failure in this thread, beginning with a stable code:
 * `[IOV-4045] stale: …`. Empty if no call has failed. Never null; valid until the next call of
 * this thread into this library.
 */
const char *iovc_last_error(void);

/**
 * Registers a timeframe and starts loading its objects. Waits while too many timeframes are in
 * flight or memory is short.
 *
 * @param timeframe          id of the timeframe
 * @param timestamps         one per row (milliseconds, or an Arrow timestamp): an array, or a
 *                           struct array with a column `timestamp` and one for each key on which a
 *                           column depends. Taken over, also on failure
 * @param timestamps_schema  its schema; taken over, also on failure
 * @param request            JSON: `{"columns": {"name": "path"}, "consumers": ["name"]}`
 * @param wait_ms            maximum wait in milliseconds; 0: 60 s
 *
 * # Safety
 * `cache` is null or a handle, the others are null or valid as stated.
 */
iovc_status_t iovc_cache_register(const struct iovc_cache_t *cache,
                                  uint64_t timeframe,
                                  struct ArrowArray *timestamps,
                                  struct ArrowSchema *timestamps_schema,
                                  const char *request,
                                  uint64_t wait_ms);

/**
 * Gets a table: waits until all of its objects are in shared memory, and pins them.
 *
 * @param request  JSON, as a Flight command: `{"timeframe": 42, "consumer": "tracker"}`, or
 *                 `{"columns": {"name": "path"}, "timestamps": [ms, …]}`, with the same options
 * @param table    receives the table, a struct array with one child per column and a row per
 *                 timestamp; `encoding` and `cell` of the request determine the type of the cells.
 *                 Release it as the Arrow C Data Interface says; this does not release the objects
 * @param schema   receives its schema
 * @param lease    null, or memory for 64 bytes: the lease, for iovc_cache_release. The table of a
 *                 timeframe's consumer is also released by iovc_cache_consumed; one requested
 *                 without consumer and session is released after 60 s
 *
 * # Safety
 * `cache` is null or a handle; the others are null or valid as stated. Previous contents of
 * `table` and `schema` are overwritten, not released.
 */
iovc_status_t iovc_cache_table(const struct iovc_cache_t *cache,
                               const char *request,
                               struct ArrowArray *table,
                               struct ArrowSchema *schema,
                               char *lease);

/**
 * Takes the table of a timeframe that is registered for a consumer. If its objects are still being
 * loaded, it blocks the thread until the table is ready, without using CPU time. The service learns
 * that the table was delivered.
 *
 * @param local           handle of iovc_local_open
 * @param timeframe       id of the timeframe
 * @param consumer        name of the consumer; null: the name given to iovc_attach
 * @param timeout_millis  time limit of the wait; 0: do not wait; less than 0: none
 * @param table           receives the table, or null on failure
 * @return IOVC_UNAVAILABLE if the service must be asked by Flight (with iovc_session in the field
 *         "session"): the timeframe is unknown, or its table is not in shared memory;
 *         IOVC_DEADLINE_EXCEEDED if it is still being loaded; IOVC_NOT_FOUND if the timeframe is not
 *         registered for the consumer; IOVC_FAILED_PRECONDITION if the consumer has consumed it, or
 *         if the session has ended, also during the wait; IOVC_PERMISSION_DENIED if another client
 *         uses the name; IOVC_RESOURCE_EXHAUSTED if the session can pin no more
 *
 * The caller owns the table and releases it by iovc_timeframe_release. One slot of the session pins
 * the table and all of its objects. The table keeps the session alive, also after iovc_local_close and
 * iovc_detach.
 *
 * For a name other than that given to iovc_attach, the call waits until the service has accepted the
 * name, for at most 1 s. Any number of threads may call it at a time.
 *
 * # Safety
 * `local` is null or a handle, `consumer` is null or ends with a 0, `table` is null or writable.
 */
iovc_status_t iovc_timeframe_get(const struct iovc_local_t *local,
                                 uint64_t timeframe,
                                 const char *consumer,
                                 int64_t timeout_millis,
                                 struct iovc_timeframe_t **table);

/**
 * Gets the size of a table.
 *
 * @param rows     receives the number of rows; may be null
 * @param columns  receives the number of columns; may be null
 *
 * # Safety
 * `table` is null or a handle, `rows` and `columns` are null or writable.
 */
iovc_status_t iovc_timeframe_shape(const struct iovc_timeframe_t *table,
                                   size_t *rows,
                                   size_t *columns);

/**
 * Finds a column by its name.
 *
 * @param name    name of the column
 * @param column  receives its number
 * @return IOVC_NOT_FOUND if there is no such column
 *
 * # Safety
 * `table` is null or a handle, `name` is null or ends with a 0, `column` is null or writable.
 */
iovc_status_t iovc_timeframe_find(const struct iovc_timeframe_t *table,
                                  const char *name,
                                  size_t *column);

/**
 * Gets the arrays of a column, without a copy.
 *
 * @param number  number of the column, from 0
 * @param column  receives the arrays, which are valid until iovc_timeframe_release
 * @return IOVC_INVALID_ARGUMENT if there is no such column; IOVC_FAILED_PRECONDITION in a forked
 *         child of the process that took the table
 *
 * The cells resolve by iovc_resolve_runs of the handle of iovc_attach.
 *
 * # Safety
 * `table` is null or a handle, `column` is null or writable.
 */
iovc_status_t iovc_timeframe_column(const struct iovc_timeframe_t *table,
                                    size_t number,
                                    struct iovc_column_t *column);

/**
 * Gets the object of a cell.
 *
 * @param column  number of the column, from 0
 * @param row     number of the row, from 0
 * @param view    receives the object with its id and validity interval (0 to 0 if an older service
 *                has not told it); pins nothing on failure (any status but IOVC_OK)
 * @return IOVC_NOT_FOUND if the cell is null; IOVC_INVALID_ARGUMENT if there is no such column or
 *         row; IOVC_FAILED_PRECONDITION in a forked child
 *
 * The view keeps the table pinned with all of its objects until iovc_view_release, also after
 * iovc_timeframe_release, after the timeframe was dropped, and after the end of the service. Any number
 * of threads may call it at a time.
 *
 * # Safety
 * `table` is null or a handle, `view` is null or writable.
 */
iovc_status_t iovc_timeframe_object(const struct iovc_timeframe_t *table,
                                    size_t column,
                                    size_t row,
                                    struct iovc_view_t *view);

/**
 * Reports a timeframe as consumed by the consumer that took its table, and waits until the service
 * has taken the report, at most 1 s. The table stays valid until it is released; memory is free for
 * other objects after both.
 *
 * @return IOVC_OK also if it was reported before by this handle; IOVC_NOT_FOUND if the timeframe was
 *         dropped since; IOVC_UNAVAILABLE if the service does not take the report: try again;
 *         IOVC_FAILED_PRECONDITION if the session has ended; IOVC_PERMISSION_DENIED if another client
 *         uses the name now
 *
 * # Safety
 * `table` is null or a handle.
 */
iovc_status_t iovc_timeframe_consumed(const struct iovc_timeframe_t *table);

/**
 * Releases a table. Null is allowed. Its views stay valid; the pin ends with the last of them. The
 * timeframe is not reported as consumed. Any thread may call it, also after the end of the session.
 *
 * # Safety
 * `table` is null or a handle that was not released yet.
 */
void iovc_timeframe_release(struct iovc_timeframe_t *table);

/**
 * Version of the interface in the library; compare it with `IOVC_ABI_VERSION`.
 */
uint32_t iovc_abi_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* IOVCACHE_H */
