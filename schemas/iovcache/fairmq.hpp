/**
 * @file
 * iovcache with FairMQ: cells resolved by a device's own transport, and objects in its own memory.
 *
 * Header only. C++17, FairMQ with its shmem headers (1.9 and later). The consumer's half needs no
 * library of iovcache. FairMQ's own GetMeta and GetDataAddressFromHandle (1.11) are used where they
 * exist.
 *
 * @code
 * iovcache::fairmq::Resolver resolver(*GetChannel("tables").Transport());
 * auto objects = resolver.resolve_array(schema, column);   // one Bytes per row, no copy
 *
 * iovcache::fairmq::SegmentMemory memory(*GetChannel("tables").Transport());
 * auto options = iovc_cache_options();
 * options.host_memory = memory.functions();
 * auto cache = iovcache::Cache::open({"http://localhost:8084"}, options);
 * @endcode
 *
 * A pointer that is resolved is valid as long as the table it came with is held, see iovcache.h.
 */
#ifndef IOVCACHE_FAIRMQ_HPP
#define IOVCACHE_FAIRMQ_HPP

#include "../iovcache.hpp"
#include "cells.hpp"

#include <fairmq/Message.h>
#include <fairmq/TransportFactory.h>
#include <fairmq/UnmanagedRegion.h>
#include <fairmq/Version.h>
#include <fairmq/shmem/Common.h>
#include <fairmq/shmem/Message.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <iterator>
#include <map>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

namespace iovcache::fairmq
{

static_assert(sizeof(fair::mq::shmem::MetaHeader) == sizeof(iovc_meta_header_t));
static_assert(offsetof(fair::mq::shmem::MetaHeader, fHandle) ==
              offsetof(iovc_meta_header_t, handle));
static_assert(offsetof(fair::mq::shmem::MetaHeader, fSegmentId) ==
              offsetof(iovc_meta_header_t, segment_id));
static_assert(offsetof(fair::mq::shmem::MetaHeader, fManaged) ==
              offsetof(iovc_meta_header_t, managed));

namespace detail
{
using fair::mq::shmem::MetaHeader;

template <typename Transport, typename Meta, typename = void>
struct has_address : std::false_type {
};
template <typename Transport, typename Meta>
struct has_address<Transport, Meta,
                   std::void_t<decltype(GetDataAddressFromHandle(
                     std::declval<Transport&>(), std::declval<const Meta&>()))>> : std::true_type {
};

using Handle = decltype(MetaHeader::fHandle);

#if FAIRMQ_VERSION_DEC < 111000
/** FairMQ has no GetMeta: the two fields of a message that no method tells. An explicit instantiation
 *  may name private members. */
template <typename Tag, auto Member>
struct Reveal {
  friend constexpr auto revealed(Tag) noexcept { return Member; }
};
struct HandleTag {
  friend constexpr auto revealed(HandleTag) noexcept;
};
struct SegmentTag {
  friend constexpr auto revealed(SegmentTag) noexcept;
};
template struct Reveal<HandleTag, &fair::mq::shmem::Message::fHandle>;
template struct Reveal<SegmentTag, &fair::mq::shmem::Message::fSegmentId>;
#endif

/** Handle and segment of a message in a managed segment. */
inline std::pair<Handle, std::uint16_t> place_of(const fair::mq::shmem::Message& message)
{
#if FAIRMQ_VERSION_DEC < 111000
  return {message.*revealed(HandleTag{}), message.*revealed(SegmentTag{})};
#else
  const MetaHeader meta = message.GetMeta();
  return {meta.fHandle, meta.fSegmentId};
#endif
}

/** FairMQ's own function, where it has one. */
template <typename Transport, typename Meta>
const char* address_of(Transport& transport, const Meta& meta)
{
  if constexpr (has_address<Transport, Meta>::value) {
    try {
      return static_cast<const char*>(GetDataAddressFromHandle(transport, meta));
    } catch (const std::exception&) {
      return nullptr;
    }
  } else {
    (void)transport;
    (void)meta;
    return nullptr;
  }
}

/** A managed segment or an unmanaged region as this process has mapped it. */
struct Mapped {
  char* base = nullptr;
  std::uint64_t size = 0;
  /** A segment of an iovcache service: each block has its generation before the payload. */
  bool has_generations = false;
};

inline bool is_segment_of_iovcache(const char* base, std::uint64_t size) noexcept
{
  return size > 512 && std::memcmp(base + 256, "IOVCACHE", 8) == 0;
}
} // namespace detail

/**
 * Cells to pointers, by the transport of a device.
 *
 * Looks up segments and regions once, then resolves without a call into FairMQ. For one thread at a
 * time; the transport must outlive it. Headers are checked against the bounds of the mapping, and
 * in segments of an iovcache service against the generation of the block.
 */
class Resolver
{
 public:
  explicit Resolver(fair::mq::TransportFactory& transport) : mTransport(&transport) {}

  /** The object that a header names. IOVC_FAILED_PRECONDITION: its segment or region is unknown to
   *  FairMQ, or the object is not there any more. IOVC_INVALID_ARGUMENT: no such place. */
  [[nodiscard]] Result<Bytes> resolve(const iovc_meta_header_t& header)
  {
    if (header.size == 0) {
      return Bytes{};
    }
    const detail::Mapped* mapped = find(header);
    if (mapped == nullptr) {
      return elsewhere(header);
    }
    return inside(*mapped, header);
  }

  /** Like the function above, for the 40 bytes of a cell, aligned or not. */
  [[nodiscard]] Result<Bytes> resolve(const void* cell)
  {
    iovc_meta_header_t header;
    std::memcpy(&header, cell, sizeof header);
    return resolve(header);
  }

  /** AliceO2's cell of three integers, which has no generation to check. */
  [[nodiscard]] Result<Bytes> resolve_o2(std::int64_t handle, std::int64_t segment,
                                         std::int64_t size)
  {
    const auto header = cells::header_of_o2(handle, segment, size);
    return header ? resolve(*header) : Result<Bytes>(IOVC_INVALID_ARGUMENT);
  }

  /** `count` cells of 40 bytes. A cell of 40 zeros, as under a null, gives no bytes. The first that
   *  fails is the status. */
  [[nodiscard]] Result<std::vector<Bytes>> resolve_many(const void* cells, std::size_t count)
  {
    std::vector<Bytes> found(count);
    const auto status = resolve_many(cells, count, found.data());
    if (status != IOVC_OK) {
      return status;
    }
    return found;
  }

  /** Like the function above, into `found`, which has room for `count`. */
  [[nodiscard]] iovc_status_t resolve_many(const void* cells, std::size_t count, Bytes* found)
  {
    constexpr std::size_t ahead = 16;
    const auto* cell = static_cast<const char*>(cells);
    // Neighbours are mostly in one segment: it is looked up when that changes.
    std::uint64_t last = no_place;
    const detail::Mapped* mapped = nullptr;
    for (std::size_t row = 0; row < count; ++row, cell += sizeof(iovc_meta_header_t)) {
      if (row + ahead < count && mapped != nullptr) {
        prefetch(cell + ahead * sizeof(iovc_meta_header_t), last, *mapped);
      }
      iovc_meta_header_t header;
      std::memcpy(&header, cell, sizeof header);
      if (header.size == 0) {
        found[row] = Bytes{};
        continue;
      }
      const std::uint64_t place = place_of(cell);
      if (place != last || mapped == nullptr) {
        mapped = find(header);
        last = place;
      }
      const auto resolved = mapped == nullptr ? elsewhere(header) : inside(*mapped, header);
      if (!resolved) {
        return resolved.status();
      }
      found[row] = *resolved;
    }
    return IOVC_OK;
  }

  /** One Bytes for each row of a column of cells: binary, struct or o2, plain, dictionary or run-end
   *  encoded. A null row has none. */
  [[nodiscard]] Result<std::vector<Bytes>> resolve_array(const ArrowSchema& schema,
                                                         const ArrowArray& array)
  {
    std::vector<Bytes> rows(static_cast<std::size_t>(array.length));
    const auto status = cells::for_each_run(
      schema, array, [this, &rows](std::int64_t start, std::int64_t end, const auto* header) {
        if (header == nullptr) {
          return IOVC_OK;
        }
        const auto found = resolve(*header);
        if (!found) {
          return found.status();
        }
        std::fill(rows.begin() + start, rows.begin() + end, *found);
        return IOVC_OK;
      });
    if (status != IOVC_OK) {
      return status;
    }
    return rows;
  }

  /** Rows `start` to `end` of a column have the same object. */
  struct Run {
    std::int64_t start;
    std::int64_t end;
    Bytes bytes;
  };

  /** The runs of a column: what costs as much as there are objects, not rows. Null rows have no
   *  run. */
  [[nodiscard]] Result<std::vector<Run>> resolve_runs(const ArrowSchema& schema,
                                                      const ArrowArray& array)
  {
    std::vector<Run> runs;
    const auto status = cells::for_each_run(
      schema, array, [this, &runs](std::int64_t start, std::int64_t end, const auto* header) {
        if (header == nullptr) {
          return IOVC_OK;
        }
        const auto found = resolve(*header);
        if (found) {
          runs.push_back({start, end, *found});
        }
        return found.status();
      });
    if (status != IOVC_OK) {
      return status;
    }
    return runs;
  }

 private:
  using Table = std::vector<detail::Mapped>;

  const detail::Mapped* known(const iovc_meta_header_t& header) const noexcept
  {
    const Table& table = header.managed == 1 ? mSegments : mRegions;
    const std::size_t id = header.managed == 1 ? header.segment_id : header.region_id;
    return id < table.size() && table[id].base != nullptr ? &table[id] : nullptr;
  }

  const detail::Mapped* find(const iovc_meta_header_t& header)
  {
    if (header.managed > 1) {
      return nullptr;
    }
    const auto* mapped = known(header);
    if (mapped == nullptr && look_up()) {
      mapped = known(header);
    }
    return mapped;
  }

  /** Asks FairMQ for what is mapped; at most once in a while, since it logs each segment of its book
   *  that is gone. */
  bool look_up()
  {
    const auto now = std::chrono::steady_clock::now();
    if (mLookedUp && now - mWhen < std::chrono::milliseconds(100)) {
      return false;
    }
    mLookedUp = true;
    mWhen = now;
    std::vector<fair::mq::RegionInfo> infos;
    try {
      infos = mTransport->GetRegionInfo();
    } catch (const std::exception&) {
      return false;
    }
    for (const auto& info : infos) {
      if (info.ptr == nullptr || info.id > UINT16_MAX) {
        continue;
      }
      Table& table = info.managed ? mSegments : mRegions;
      if (table.size() <= info.id) {
        table.resize(info.id + 1);
      }
      auto* base = static_cast<char*>(info.ptr);
      auto& mapped = table[info.id];
      // Its head, which tells its size, may have been overwritten since.
      if (mapped.base == base && mapped.has_generations) {
        continue;
      }
      const bool ours = info.managed && detail::is_segment_of_iovcache(base, info.size);
      mapped = {base, info.size, ours};
    }
    return true;
  }

  /** FairMQ's own function may know a region that GetRegionInfo does not report. */
  Result<Bytes> elsewhere(const iovc_meta_header_t& header)
  {
    if (header.managed > 1) {
      return IOVC_INVALID_ARGUMENT;
    }
    fair::mq::shmem::MetaHeader meta{};
    meta.fSize = header.size;
    meta.fHandle = header.handle;
    meta.fShared = -1;
    meta.fRegionId = header.region_id;
    meta.fSegmentId = header.segment_id;
    meta.fManaged = header.managed == 1;
    const char* address = detail::address_of(*mTransport, meta);
    if (address == nullptr) {
      return IOVC_FAILED_PRECONDITION;
    }
    return iovcache::detail::bytes(address, header.size);
  }

  static Result<Bytes> inside(const detail::Mapped& mapped, const iovc_meta_header_t& header)
  {
    constexpr std::uint64_t chunk_bytes = 16;
    if (header.handle < 0 || static_cast<std::uint64_t>(header.handle) > mapped.size ||
        mapped.size - static_cast<std::uint64_t>(header.handle) < chunk_bytes) {
      return IOVC_INVALID_ARGUMENT;
    }
    char* place = mapped.base + header.handle;
    const char* payload =
      header.managed == 1 ? fair::mq::shmem::ShmHeader::UserPtr(place) : place;
    const auto offset = static_cast<std::uint64_t>(payload - mapped.base);
    if (offset > mapped.size || header.size > mapped.size - offset) {
      return IOVC_INVALID_ARGUMENT;
    }
    // AliceO2's cells have no generation.
    if (mapped.has_generations && header.hint != 0) {
      if (offset % 64 != 0 || offset < 4096 + 64) {
        return IOVC_INVALID_ARGUMENT;
      }
      const auto* generation = reinterpret_cast<const std::uint64_t*>(payload - 64);
      if (__atomic_load_n(generation, __ATOMIC_ACQUIRE) != header.hint) {
        return IOVC_FAILED_PRECONDITION;
      }
    }
    return iovcache::detail::bytes(payload, header.size);
  }

  static constexpr std::uint64_t no_place = UINT64_MAX;

  /** Region, segment and kind of a cell, in one word. */
  static std::uint64_t place_of(const char* cell) noexcept
  {
    std::uint64_t word = 0;
    std::memcpy(&word, cell + offsetof(iovc_meta_header_t, region_id), sizeof word);
    return word;
  }

  static void prefetch(const char* cell, std::uint64_t place, const detail::Mapped& mapped) noexcept
  {
    std::uint64_t handle = 0;
    std::memcpy(&handle, cell + offsetof(iovc_meta_header_t, handle), sizeof handle);
    if (place_of(cell) == place && handle < mapped.size) {
      __builtin_prefetch(mapped.base + handle);
    }
  }

  fair::mq::TransportFactory* mTransport;
  Table mSegments;
  Table mRegions;
  bool mLookedUp = false;
  std::chrono::steady_clock::time_point mWhen{};
};

/** One cell by a transport. A Resolver that is kept is faster. */
[[nodiscard]] inline Result<Bytes> resolve(fair::mq::TransportFactory& transport, const void* cell)
{
  return Resolver(transport).resolve(cell);
}

/** A column of cells by a transport; see Resolver::resolve_array. */
[[nodiscard]] inline Result<std::vector<Bytes>>
resolve(fair::mq::TransportFactory& transport, const ArrowSchema& schema, const ArrowArray& array)
{
  return Resolver(transport).resolve_array(schema, array);
}

/**
 * Host memory in the managed segment of a transport: each object is a message that is never sent,
 * found by FairMQ's own MetaHeader. Evicting the object frees the message.
 *
 * The transport must be shmem, throw when its segment is full (FairMQ's default), and outlive the
 * cache; this must outlive the cache too.
 */
class SegmentMemory
{
 public:
  explicit SegmentMemory(fair::mq::TransportFactory& transport)
    : mTransport(&transport),
      mIsShmem(transport.GetType() == fair::mq::Transport::SHM),
      mFunctions{this, &allocate, &release}
  {
  }
  SegmentMemory(const SegmentMemory&) = delete;
  SegmentMemory& operator=(const SegmentMemory&) = delete;

  /** For iovc_cache_options_t::host_memory. */
  [[nodiscard]] const iovc_host_memory_t* functions() const noexcept { return &mFunctions; }

 private:
  static int allocate(void* context, std::size_t size, std::size_t align, void** data,
                      iovc_meta_header_t* header) noexcept
  {
    try {
      auto* self = static_cast<SegmentMemory*>(context);
      if (!self->mIsShmem) {
        return 1;
      }
      auto message = self->mTransport->CreateMessage(size, fair::mq::Alignment{align});
      const auto [handle, segment] =
        detail::place_of(static_cast<const fair::mq::shmem::Message&>(*message));
      *data = message->GetData();
      *header = iovc_meta_header_t{};
      header->size = size;
      header->handle = handle;
      header->shared = -1;
      header->segment_id = segment;
      header->managed = 1;
      // The hint is ours until release brings it back.
      header->hint = reinterpret_cast<std::uintptr_t>(message.release());
      return 0;
    } catch (const std::exception&) {
      return 1;
    }
  }

  static void release(void* /*context*/, const iovc_meta_header_t* header) noexcept
  {
    delete reinterpret_cast<fair::mq::Message*>(static_cast<std::uintptr_t>(header->hint));
  }

  fair::mq::TransportFactory* mTransport;
  bool mIsShmem;
  iovc_host_memory_t mFunctions;
};

/**
 * Host memory in an unmanaged region of a device. All of the region is used; this and the region
 * must outlive the cache.
 */
class RegionMemory
{
 public:
  explicit RegionMemory(fair::mq::UnmanagedRegion& region)
    : mBase(static_cast<char*>(region.GetData())),
      mId(region.GetId()),
      mFunctions{this, &allocate, &release}
  {
    mFree.emplace(0, region.GetSize() / granule * granule);
  }
  RegionMemory(const RegionMemory&) = delete;
  RegionMemory& operator=(const RegionMemory&) = delete;

  /** For iovc_cache_options_t::host_memory. */
  [[nodiscard]] const iovc_host_memory_t* functions() const noexcept { return &mFunctions; }

 private:
  static constexpr std::size_t granule = 64;

  static std::size_t rounded(std::size_t size) noexcept
  {
    return (size + granule - 1) / granule * granule;
  }

  static int allocate(void* context, std::size_t size, std::size_t align, void** data,
                      iovc_meta_header_t* header) noexcept
  {
    auto* self = static_cast<RegionMemory*>(context);
    if (align > granule || size > SIZE_MAX - granule) {
      return 1;
    }
    try {
      const std::size_t length = rounded(size);
      const std::lock_guard<std::mutex> lock(self->mMutex);
      for (auto place = self->mFree.begin(); place != self->mFree.end(); ++place) {
        if (place->second < length) {
          continue;
        }
        const auto [start, room] = *place;
        if (room > length) {
          self->mFree.emplace_hint(std::next(place), start + length, room - length);
        }
        self->mFree.erase(place);
        *data = self->mBase + start;
        *header = iovc_meta_header_t{};
        header->size = size;
        header->handle = static_cast<std::int64_t>(start);
        header->shared = -1;
        header->region_id = self->mId;
        return 0;
      }
    } catch (const std::exception&) {
    }
    return 1;
  }

  static void release(void* context, const iovc_meta_header_t* header) noexcept
  {
    auto* self = static_cast<RegionMemory*>(context);
    const auto start = static_cast<std::size_t>(header->handle);
    std::size_t length = rounded(header->size);
    const std::lock_guard<std::mutex> lock(self->mMutex);
    auto behind = self->mFree.lower_bound(start);
    if (behind != self->mFree.end() && behind->first == start + length) {
      length += behind->second;
      behind = self->mFree.erase(behind);
    }
    if (behind != self->mFree.begin()) {
      const auto before = std::prev(behind);
      if (before->first + before->second == start) {
        before->second += length;
        return;
      }
    }
    self->mFree.emplace_hint(behind, start, length);
  }

  char* mBase;
  std::uint16_t mId;
  std::mutex mMutex;
  /** Free ranges: length by start. */
  std::map<std::size_t, std::size_t> mFree;
  iovc_host_memory_t mFunctions;
};

} // namespace iovcache::fairmq

#endif // IOVCACHE_FAIRMQ_HPP
