/**
 * @file
 * iovcache for C++17: handles that give themselves back, over iovcache.h.
 *
 * No exceptions are thrown or needed: what can fail returns a Result, whose status says how it
 * ended, and iovcache::last_error() what exactly went wrong.
 *
 * @code
 * auto attached = iovcache::Attachment::open("/run/iovcache/attach.sock", "tracker");
 * if (!attached) { return fail(iovcache::last_error()); }
 * auto table = attached->hold(lease);              // the lease in the schema of a table
 * auto drift = table.resolve(cell);                // 40 bytes of its cell, no copy
 * if (drift) { use(drift->data(), drift->size()); }
 * @endcode
 */
#ifndef IOVCACHE_HPP
#define IOVCACHE_HPP

#include "iovcache.h"

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
#if __has_include(<version>)
#include <version>
#endif
#ifdef __cpp_lib_span
#include <span>
#endif

namespace iovcache
{

#ifdef __cpp_lib_span
/** The bytes of an object, in shared memory. */
using Bytes = std::span<const std::byte>;
#else
/** The bytes of an object, in shared memory: std::span<const std::byte>, where that is to be had. */
class Bytes
{
 public:
  constexpr Bytes() noexcept = default;
  constexpr Bytes(const std::byte* data, std::size_t size) noexcept : mData(data), mSize(size) {}
  [[nodiscard]] constexpr const std::byte* data() const noexcept { return mData; }
  [[nodiscard]] constexpr std::size_t size() const noexcept { return mSize; }
  [[nodiscard]] constexpr bool empty() const noexcept { return mSize == 0; }
  [[nodiscard]] constexpr const std::byte* begin() const noexcept { return mData; }
  [[nodiscard]] constexpr const std::byte* end() const noexcept { return mData + mSize; }
  constexpr const std::byte& operator[](std::size_t place) const noexcept { return mData[place]; }

 private:
  const std::byte* mData = nullptr;
  std::size_t mSize = 0;
};
#endif

/** The message of the last failed call of this thread. */
[[nodiscard]] inline std::string last_error() { return iovc_last_error(); }

/** A value, or the status that says why there is none. */
template <typename T>
class [[nodiscard]] Result
{
 public:
  Result(iovc_status_t status) noexcept : mStatus(status) {}
  Result(T value) noexcept : mStatus(IOVC_OK), mValue(std::move(value)) {}

  explicit operator bool() const noexcept { return mValue.has_value(); }
  [[nodiscard]] iovc_status_t status() const noexcept { return mStatus; }
  /** The status in words; iovcache::last_error() tells more. */
  [[nodiscard]] const char* what() const noexcept { return iovc_strerror(mStatus); }
  /** Only where there is one. */
  T& operator*() noexcept { return *mValue; }
  const T& operator*() const noexcept { return *mValue; }
  T* operator->() noexcept { return &*mValue; }
  const T* operator->() const noexcept { return &*mValue; }

 private:
  iovc_status_t mStatus;
  std::optional<T> mValue;
};

namespace detail
{
/** A handle of the C interface, given back once. */
template <typename H, void (*GiveBack)(H*)>
class Handle
{
 public:
  Handle() noexcept = default;
  explicit Handle(H* handle) noexcept : mHandle(handle) {}
  Handle(Handle&& other) noexcept : mHandle(std::exchange(other.mHandle, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept
  {
    if (this != &other) {
      GiveBack(mHandle);
      mHandle = std::exchange(other.mHandle, nullptr);
    }
    return *this;
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { GiveBack(mHandle); }
  [[nodiscard]] H* get() const noexcept { return mHandle; }

 private:
  H* mHandle = nullptr;
};

inline Bytes bytes(const void* data, std::size_t size) noexcept
{
  return {static_cast<const std::byte*>(data), size};
}

inline Result<std::vector<Bytes>> all(iovc_status_t status, const std::vector<const void*>& data,
                                      const std::vector<std::size_t>& sizes)
{
  if (status != IOVC_OK) {
    return status;
  }
  std::vector<Bytes> found;
  found.reserve(data.size());
  for (std::size_t row = 0; row < data.size(); ++row) {
    found.push_back(bytes(data[row], sizes[row]));
  }
  return found;
}
} // namespace detail

class Held;

/** The memory of a service on this node. Any number of threads may use one at the same time. */
class Attachment
{
 public:
  /** Attaches through the socket of a service; see iovc_attach. */
  static Result<Attachment> open(const std::string& path, const std::string& consumer = {},
                                 const std::optional<std::string>& token = std::nullopt)
  {
    iovc_attach_t* attach = nullptr;
    const auto status =
      iovc_attach(path.c_str(), consumer.c_str(), token ? token->c_str() : nullptr, &attach);
    return made(status, attach);
  }

  /** Attaches through a connected Unix socket, which is taken over. */
  static Result<Attachment> of_socket(int socket, const std::string& consumer = {},
                                      const std::optional<std::string>& token = std::nullopt)
  {
    iovc_attach_t* attach = nullptr;
    const auto status =
      iovc_attach_socket(socket, consumer.c_str(), token ? token->c_str() : nullptr, &attach);
    return made(status, attach);
  }

  /**
   * Holds the lease of a table: its bytes stay pinned as long as the result lives. The attachment must
   * outlive it.
   */
  [[nodiscard]] Held hold(std::string lease) const;

  /**
   * Where the bytes of the object lie that a header names: a pointer and a size, which pin nothing.
   * A caller that does not hold the table otherwise asks still_valid() after reading.
   */
  [[nodiscard]] Result<Bytes> resolve(const iovc_meta_header_t& header) const noexcept
  {
    return resolve(static_cast<const void*>(&header));
  }

  /** Like the one above, for the 40 bytes of a cell, aligned or not. */
  [[nodiscard]] Result<Bytes> resolve(const void* cell) const noexcept
  {
    const void* data = nullptr;
    std::size_t size = 0;
    const auto* header = static_cast<const iovc_meta_header_t*>(cell);
    const auto status = iovc_resolve(mHandle.get(), header, &data, &size);
    if (status != IOVC_OK) {
      return status;
    }
    return detail::bytes(data, size);
  }

  /** A column of cells, 40 bytes each; null cells give no bytes. See iovc_resolve_many. */
  [[nodiscard]] Result<std::vector<Bytes>> resolve_many(const void* cells, std::size_t count) const
  {
    std::vector<const void*> data(count);
    std::vector<std::size_t> sizes(count);
    const auto* headers = static_cast<const iovc_meta_header_t*>(cells);
    const auto status =
      iovc_resolve_many(mHandle.get(), headers, count, data.data(), sizes.data());
    return detail::all(status, data, sizes);
  }

  /**
   * A run-end encoded column, row by row: `runs` cells of 40 bytes, and the rows at which they end.
   * See iovc_resolve_runs.
   */
  [[nodiscard]] Result<std::vector<Bytes>> resolve_runs(const void* cells,
                                                        const std::int32_t* run_ends,
                                                        std::size_t runs, std::size_t offset,
                                                        std::size_t rows) const
  {
    std::vector<const void*> data(rows);
    std::vector<std::size_t> sizes(rows);
    const auto* headers = static_cast<const iovc_meta_header_t*>(cells);
    const auto status = iovc_resolve_runs(mHandle.get(), headers, run_ends, runs, offset, rows,
                                          data.data(), sizes.data());
    return detail::all(status, data, sizes);
  }

  /** The id of the version that a cell names: a UUID, most significant byte first. */
  [[nodiscard]] Result<std::array<std::uint8_t, 16>> object_id(const void* cell) const noexcept
  {
    std::array<std::uint8_t, 16> id{};
    const auto* header = static_cast<const iovc_meta_header_t*>(cell);
    const auto status = iovc_object_id(mHandle.get(), header, id.data());
    if (status != IOVC_OK) {
      return status;
    }
    return id;
  }

  /** Whether what was read of a header until now was still the object. */
  [[nodiscard]] bool still_valid(const void* cell) const noexcept
  {
    const auto* header = static_cast<const iovc_meta_header_t*>(cell);
    return iovc_still_valid(mHandle.get(), header) == IOVC_OK;
  }

  /** The name of the session, for the field "session" of requests. */
  [[nodiscard]] std::string_view session() const noexcept { return iovc_session(mHandle.get()); }
  /** The instance of the service. */
  [[nodiscard]] std::string_view epoch() const noexcept { return iovc_epoch(mHandle.get()); }
  /** Whether the service is still there. */
  [[nodiscard]] bool alive() const noexcept { return iovc_check(mHandle.get()) == IOVC_OK; }
  /** Unmaps what the service has given back; see iovc_unmap_unused. */
  void unmap_unused() const noexcept { (void)iovc_unmap_unused(mHandle.get()); }
  /** For the C interface. */
  [[nodiscard]] const iovc_attach_t* get() const noexcept { return mHandle.get(); }

 private:
  friend class Cache;
  explicit Attachment(iovc_attach_t* attach) noexcept : mHandle(attach) {}
  static Result<Attachment> made(iovc_status_t status, iovc_attach_t* attach)
  {
    if (status != IOVC_OK) {
      return status;
    }
    return Attachment(attach);
  }

  detail::Handle<iovc_attach_t, iovc_detach> mHandle;
};

/** A lease of a table. It is released once, when this is destroyed. */
class [[nodiscard]] Held
{
 public:
  Held(const Attachment& attachment, std::string lease) noexcept
    : mAttachment(&attachment), mLease(std::move(lease))
  {
  }
  Held(Held&& other) noexcept
    : mAttachment(std::exchange(other.mAttachment, nullptr)), mLease(std::move(other.mLease))
  {
  }
  Held& operator=(Held&& other) noexcept
  {
    if (this != &other) {
      release();
      mAttachment = std::exchange(other.mAttachment, nullptr);
      mLease = std::move(other.mLease);
    }
    return *this;
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() { release(); }

  /** The bytes of an object of the table; they stay what they are as long as this lives. */
  [[nodiscard]] Result<Bytes> resolve(const void* cell) const noexcept
  {
    return mAttachment == nullptr ? Result<Bytes>(IOVC_FAILED_PRECONDITION)
                                  : mAttachment->resolve(cell);
  }
  [[nodiscard]] Result<Bytes> resolve(const iovc_meta_header_t& header) const noexcept
  {
    return resolve(static_cast<const void*>(&header));
  }

  /** Releases the lease now. */
  void release() noexcept
  {
    if (const auto* attachment = std::exchange(mAttachment, nullptr)) {
      (void)iovc_release(attachment->get(), mLease.c_str());
    }
  }

  /** The lease; empty after it was moved from. */
  [[nodiscard]] const std::string& lease() const noexcept { return mLease; }

 private:
  const Attachment* mAttachment;
  std::string mLease;
};

inline Held Attachment::hold(std::string lease) const { return Held(*this, std::move(lease)); }

/** An object in shared memory, pinned as long as this lives; see iovc_local_get. */
class [[nodiscard]] View
{
 public:
  View() noexcept = default;
  explicit View(const iovc_view_t& view) noexcept : mView(view) {}
  View(View&& other) noexcept : mView(std::exchange(other.mView, iovc_view_t{})) {}
  View& operator=(View&& other) noexcept
  {
    if (this != &other) {
      iovc_view_release(&mView);
      mView = std::exchange(other.mView, iovc_view_t{});
    }
    return *this;
  }
  View(const View&) = delete;
  View& operator=(const View&) = delete;
  ~View() { iovc_view_release(&mView); }

  /** Whether it pins an object. */
  explicit operator bool() const noexcept { return mView.pin != nullptr; }
  /** Its bytes, which stay what they are as long as this lives. */
  [[nodiscard]] Bytes bytes() const noexcept { return detail::bytes(mView.data, mView.size); }
  [[nodiscard]] const std::byte* data() const noexcept { return bytes().data(); }
  [[nodiscard]] std::size_t size() const noexcept { return mView.size; }
  /** The version's id: a UUID, most significant byte first. */
  [[nodiscard]] const std::uint8_t* object_id() const noexcept { return mView.object_id; }
  /** The version's own validity interval, in milliseconds; `valid_until` is not inside. */
  [[nodiscard]] std::int64_t valid_from() const noexcept { return mView.valid_from; }
  [[nodiscard]] std::int64_t valid_until() const noexcept { return mView.valid_until; }

 private:
  iovc_view_t mView{};
};

/**
 * A descriptor that becomes readable once, for epoll, poll and event loops; see iovc_timeframe_event.
 * It is closed when this is destroyed.
 */
class [[nodiscard]] Event
{
 public:
  /** The descriptor: only to be waited for. */
  [[nodiscard]] int fd() const noexcept { return iovc_event_fd(mHandle.get()); }

 private:
  friend class Local;
  friend class LocalPath;
  explicit Event(iovc_event_t* event) noexcept : mHandle(event) {}

  detail::Handle<iovc_event_t, iovc_event_close> mHandle;
};

/** The table of a timeframe, pinned with its objects as long as this lives; see iovc_timeframe_get. */
class [[nodiscard]] Timeframe
{
 public:
  /** Number of rows. */
  [[nodiscard]] std::size_t rows() const noexcept
  {
    std::size_t rows = 0;
    (void)iovc_timeframe_shape(mHandle.get(), &rows, nullptr);
    return rows;
  }

  /** Number of columns. */
  [[nodiscard]] std::size_t columns() const noexcept
  {
    std::size_t columns = 0;
    (void)iovc_timeframe_shape(mHandle.get(), nullptr, &columns);
    return columns;
  }

  /** The number of a column; IOVC_NOT_FOUND if there is none of this name. */
  [[nodiscard]] Result<std::size_t> find(const std::string& name) const noexcept
  {
    std::size_t column = 0;
    const auto status = iovc_timeframe_find(mHandle.get(), name.c_str(), &column);
    if (status != IOVC_OK) {
      return status;
    }
    return column;
  }

  /** The arrays of a column, valid as long as this lives; see iovc_timeframe_column. */
  [[nodiscard]] Result<iovc_column_t> column(std::size_t number) const noexcept
  {
    iovc_column_t column{};
    const auto status = iovc_timeframe_column(mHandle.get(), number, &column);
    if (status != IOVC_OK) {
      return status;
    }
    return column;
  }

  /** The object of a cell, which stays pinned also after this is gone; IOVC_NOT_FOUND: it is null. */
  [[nodiscard]] Result<View> object(std::size_t column, std::size_t row) const noexcept
  {
    iovc_view_t view{};
    const auto status = iovc_timeframe_object(mHandle.get(), column, row, &view);
    if (status != IOVC_OK) {
      return status;
    }
    return View(view);
  }

  /** Reports the timeframe as consumed; see iovc_timeframe_consumed. */
  [[nodiscard]] iovc_status_t consumed() const noexcept
  {
    return iovc_timeframe_consumed(mHandle.get());
  }

 private:
  friend class Local;
  explicit Timeframe(iovc_timeframe_t* table) noexcept : mHandle(table) {}

  detail::Handle<iovc_timeframe_t, iovc_timeframe_release> mHandle;
};

/** A path to look up in, for one thread at a time; see iovc_local_path. */
class LocalPath
{
 public:
  /** The object that is valid at a time, in milliseconds; IOVC_UNAVAILABLE: ask the service. */
  [[nodiscard]] Result<View> get(std::int64_t at) const noexcept
  {
    iovc_view_t view{};
    const auto status = iovc_local_get(mHandle.get(), at, &view);
    if (status != IOVC_OK) {
      return status;
    }
    return View(view);
  }

  /** The objects of many times; those for which the service is to be asked pin nothing. */
  [[nodiscard]] Result<std::vector<View>> get_many(const std::vector<std::int64_t>& at) const
  {
    std::vector<iovc_view_t> found(at.size());
    const auto status =
      iovc_local_get_many(mHandle.get(), at.data(), at.size(), found.data(), nullptr);
    if (status != IOVC_OK) {
      return status;
    }
    std::vector<View> views;
    views.reserve(found.size());
    for (const auto& view : found) {
      views.emplace_back(view);
    }
    return views;
  }

  /** The state of the path, to be taken before a look-up; see iovc_local_notice. */
  [[nodiscard]] Result<iovc_notice_t> notice() const noexcept
  {
    iovc_notice_t notice{};
    const auto status = iovc_local_notice(mHandle.get(), &notice);
    if (status != IOVC_OK) {
      return status;
    }
    return notice;
  }

  /** Waits until the answer can differ from that of `notice`; false after the time limit, which is
   * none if it is negative. See iovc_local_wait. */
  [[nodiscard]] Result<bool> wait(const iovc_notice_t& notice,
                                  std::chrono::milliseconds limit = std::chrono::milliseconds(-1)) const noexcept
  {
    bool changed = false;
    const auto status = iovc_local_wait(mHandle.get(), &notice, limit.count(), &changed);
    if (status != IOVC_OK) {
      return status;
    }
    return changed;
  }

  /** A descriptor for such a change, for event loops; see iovc_local_event. */
  [[nodiscard]] Result<Event> event(const iovc_notice_t& notice) const noexcept
  {
    iovc_event_t* event = nullptr;
    const auto status = iovc_local_event(mHandle.get(), &notice, &event);
    if (status != IOVC_OK) {
      return status;
    }
    return Event(event);
  }

 private:
  friend class Local;
  explicit LocalPath(iovc_local_path_t* path) noexcept : mHandle(path) {}

  detail::Handle<iovc_local_path_t, iovc_local_path_close> mHandle;
};

/** Look-ups in shared memory, without a call; see iovc_local_open. */
class Local
{
 public:
  static Result<Local> open(const Attachment& attachment) noexcept
  {
    iovc_local_t* local = nullptr;
    const auto status = iovc_local_open(attachment.get(), &local);
    if (status != IOVC_OK) {
      return status;
    }
    return Local(local);
  }

  [[nodiscard]] Result<LocalPath> path(const std::string& path) const noexcept
  {
    iovc_local_path_t* handle = nullptr;
    const auto status = iovc_local_path(mHandle.get(), path.c_str(), &handle);
    if (status != IOVC_OK) {
      return status;
    }
    return LocalPath(handle);
  }

  /**
   * Takes the table of a timeframe, or waits for it; a negative limit is none. An empty name is that
   * given to the attachment. IOVC_UNAVAILABLE: ask the service. See iovc_timeframe_get.
   */
  [[nodiscard]] Result<Timeframe> timeframe(std::uint64_t timeframe, const std::string& consumer = {},
                                            std::chrono::milliseconds limit = std::chrono::milliseconds(-1)) const noexcept
  {
    iovc_timeframe_t* table = nullptr;
    const auto* name = consumer.empty() ? nullptr : consumer.c_str();
    const auto status = iovc_timeframe_get(mHandle.get(), timeframe, name, limit.count(), &table);
    if (status != IOVC_OK) {
      return status;
    }
    return Timeframe(table);
  }

  /** A descriptor that is readable when timeframe() need not wait; see iovc_timeframe_event. */
  [[nodiscard]] Result<Event> timeframe_event(std::uint64_t timeframe) const noexcept
  {
    iovc_event_t* event = nullptr;
    const auto status = iovc_timeframe_event(mHandle.get(), timeframe, &event);
    if (status != IOVC_OK) {
      return status;
    }
    return Event(event);
  }

 private:
  explicit Local(iovc_local_t* local) noexcept : mHandle(local) {}

  detail::Handle<iovc_local_t, iovc_local_close> mHandle;
};

/** A cache in this process; see iovc_cache_open. */
class Cache
{
 public:
  /** `options` as iovc_cache_options() gives them; its sources are set from `sources`. */
  static Result<Cache> open(const std::vector<std::string>& sources,
                            iovc_cache_options_t options = iovc_cache_options())
  {
    std::vector<const char*> urls;
    for (const auto& source : sources) {
      urls.push_back(source.c_str());
    }
    options.sources = urls.data();
    options.source_count = urls.size();
    iovc_cache_t* cache = nullptr;
    const auto status = iovc_cache_open(&options, &cache);
    if (status != IOVC_OK) {
      return status;
    }
    return Cache(cache);
  }

  /** Its memory, for this process. To be gone before the cache is. */
  [[nodiscard]] Result<Attachment> attach() const
  {
    iovc_attach_t* attach = nullptr;
    const auto status = iovc_cache_attach(mHandle.get(), &attach);
    return Attachment::made(status, attach);
  }

  /** Registers a timeframe; see iovc_cache_register. The timestamps are taken over. */
  [[nodiscard]] iovc_status_t register_timeframe(std::uint64_t timeframe, ArrowArray* timestamps,
                                                 ArrowSchema* schema, const std::string& request,
                                                 std::uint64_t wait_ms = 0) const
  {
    return iovc_cache_register(mHandle.get(), timeframe, timestamps, schema, request.c_str(),
                               wait_ms);
  }

  /** Gets a table; see iovc_cache_table. Its value is the lease. */
  [[nodiscard]] Result<std::string> table(const std::string& request, ArrowArray* table,
                                          ArrowSchema* schema) const
  {
    char lease[IOVC_LEASE_BYTES];
    const auto status =
      iovc_cache_table(mHandle.get(), request.c_str(), table, schema, lease);
    if (status != IOVC_OK) {
      return status;
    }
    return std::string(lease);
  }

  /** A consumer is done with a timeframe. */
  [[nodiscard]] iovc_status_t consumed(std::uint64_t timeframe, const std::string& consumer) const
  {
    return iovc_cache_consumed(mHandle.get(), timeframe, consumer.c_str());
  }

  /** A consumer is done with all timeframes below. */
  [[nodiscard]] iovc_status_t oldest_possible(const std::string& consumer,
                                              std::uint64_t oldest) const
  {
    return iovc_cache_oldest_possible(mHandle.get(), consumer.c_str(), oldest);
  }

  /** Releases the lease of a table. */
  [[nodiscard]] iovc_status_t release(const std::string& lease) const
  {
    return iovc_cache_release(mHandle.get(), lease.c_str());
  }

  /** Its segments, to be registered with FairMQ; none if objects lie in memory of this program. */
  [[nodiscard]] Result<std::vector<iovc_segment_t>> segments() const
  {
    std::vector<iovc_segment_t> found;
    std::size_t count = 0;
    do {
      found.resize(count);
      const auto status = iovc_cache_segments(mHandle.get(), found.data(), found.size(), &count);
      if (status != IOVC_OK) {
        return status;
      }
    } while (count > found.size());
    found.resize(count);
    return found;
  }

  /** Makes segments anew whose names other programs have removed; see iovc_cache_renew. */
  [[nodiscard]] Result<iovc_renewal_t> renew(const iovc_segment_registry_t* registry = nullptr) const
  {
    iovc_renewal_t renewal;
    const auto status = iovc_cache_renew(mHandle.get(), registry, &renewal);
    if (status != IOVC_OK) {
      return status;
    }
    return renewal;
  }

  /** The status of the cache, as JSON. */
  [[nodiscard]] Result<std::string> status() const
  {
    char* json = nullptr;
    const auto status = iovc_cache_status(mHandle.get(), &json);
    if (status != IOVC_OK) {
      return status;
    }
    std::string text(json);
    iovc_free_text(json);
    return text;
  }

  /** For the C interface. */
  [[nodiscard]] const iovc_cache_t* get() const noexcept { return mHandle.get(); }

 private:
  explicit Cache(iovc_cache_t* cache) noexcept : mHandle(cache) {}

  detail::Handle<iovc_cache_t, iovc_cache_close> mHandle;
};

} // namespace iovcache

#endif // IOVCACHE_HPP
