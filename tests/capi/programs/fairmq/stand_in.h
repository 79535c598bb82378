// Stands in for FairMQ's shmem transport where FairMQ is not installed, so that iovcache/fairmq.hpp is
// compiled and run in the tests: the same interface over the same calls of Boost.Interprocess.
// Messages lie in a managed segment, behind a header of their own; regions are files by number.
#pragma once

#define FAIRMQ_STAND_IN 1
#define FAIRMQ_VERSION_DEC 111000

#include <boost/interprocess/indexes/null_index.hpp>
#include <boost/interprocess/managed_shared_memory.hpp>
#include <boost/interprocess/mapped_region.hpp>
#include <boost/interprocess/shared_memory_object.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fair::mq
{
namespace bi = boost::interprocess;

enum class Transport { ZMQ, SHM };

struct Alignment {
  std::size_t alignment;
};

struct Message {
  virtual ~Message() = default;
  virtual void* GetData() const = 0;
  virtual std::size_t GetSize() const = 0;
  virtual Transport GetType() const = 0;
};
using MessagePtr = std::unique_ptr<Message>;

struct MessageBadAlloc : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct RegionInfo {
  bool managed = true;
  std::uint64_t id = 0;
  void* ptr = nullptr;
  std::size_t size = 0;
};

namespace shmem
{
using SegmentType = bi::basic_managed_shared_memory<
  char, bi::rbtree_best_fit<bi::mutex_family, bi::offset_ptr<void>>, bi::null_index>;

struct MetaHeader {
  std::size_t fSize;
  std::size_t fHint;
  bi::managed_shared_memory::handle_t fHandle;
  mutable bi::managed_shared_memory::handle_t fShared;
  std::uint16_t fRegionId;
  mutable std::uint16_t fSegmentId;
  bool fManaged;
};

// [offset of the header (u16)][header: offset of the payload, references (u16 each)][payload]
struct ShmHeader {
  static constexpr std::size_t part = 8;
  static std::size_t FullSize(std::size_t size, std::size_t align) { return part + align + size; }
  static void Construct(char* place, std::size_t align)
  {
    const auto address = reinterpret_cast<std::uintptr_t>(place);
    auto* words = reinterpret_cast<std::uint16_t*>(place);
    words[0] = 2;
    words[2] = static_cast<std::uint16_t>(align - (address + part) % align);
    words[3] = 1;
  }
  static char* UserPtr(char* place)
  {
    const auto* words = reinterpret_cast<const std::uint16_t*>(place);
    return place + part + words[words[0] / 2 + 1];
  }
};

class Message final : public fair::mq::Message
{
 public:
  Message(SegmentType& segment, std::uint16_t number, std::size_t size, std::size_t align)
    : mSegment(&segment), mNumber(number), mSize(size)
  {
    try {
      mPlace = static_cast<char*>(segment.allocate(ShmHeader::FullSize(size, align)));
    } catch (const bi::bad_alloc& error) {
      throw MessageBadAlloc(error.what());
    }
    ShmHeader::Construct(mPlace, align);
  }
  ~Message() override { mSegment->deallocate(mPlace); }
  void* GetData() const override { return ShmHeader::UserPtr(mPlace); }
  std::size_t GetSize() const override { return mSize; }
  Transport GetType() const override { return Transport::SHM; }
  MetaHeader GetMeta() const
  {
    return {mSize, 0, mSegment->get_handle_from_address(mPlace), -1, 0, mNumber, true};
  }

 private:
  SegmentType* mSegment;
  std::uint16_t mNumber;
  std::size_t mSize;
  char* mPlace = nullptr;
};
} // namespace shmem

class UnmanagedRegion
{
 public:
  UnmanagedRegion(std::uint16_t id, bi::mapped_region region) : mId(id), mRegion(std::move(region))
  {
  }
  void* GetData() const { return mRegion.get_address(); }
  std::size_t GetSize() const { return mRegion.get_size(); }
  std::uint16_t GetId() const { return mId; }

 private:
  std::uint16_t mId;
  bi::mapped_region mRegion;
};
struct RegionConfig {
  bool removeOnDestruction = true;
};
using RegionCallback = std::function<void(void*, std::size_t, void*)>;
using UnmanagedRegionPtr = std::unique_ptr<UnmanagedRegion>;

class TransportFactory
{
 public:
  // `is_kept`: the session's files stay at the end, as with --shm-no-cleanup.
  TransportFactory(const std::string& session, const std::string&, std::size_t bytes,
                   std::uint16_t number = 0, bool is_kept = false)
    : mPrefix("fmq_" + session + "_"),
      mNumber(number),
      mIsKept(is_kept),
      mSegment(bi::open_or_create, name(number).c_str(), bytes)
  {
  }
  ~TransportFactory()
  {
    if (!mIsKept) {
      bi::shared_memory_object::remove(name(mNumber).c_str());
      for (const auto id : mOwnRegions) {
        bi::shared_memory_object::remove(region_name(id).c_str());
      }
    }
  }
  Transport GetType() const { return Transport::SHM; }
  MessagePtr CreateMessage(std::size_t size, Alignment align)
  {
    return std::make_unique<shmem::Message>(mSegment, mNumber, size, align.alignment);
  }
  // Files of killed devices stay, so that no id is given twice.
  UnmanagedRegionPtr CreateUnmanagedRegion(std::size_t bytes, const RegionCallback&,
                                           RegionConfig config)
  {
    for (std::uint16_t id = 1; id < most_segments; ++id) {
      try {
        bi::shared_memory_object file(bi::create_only, region_name(id).c_str(), bi::read_write);
        file.truncate(static_cast<bi::offset_t>(bytes));
        if (config.removeOnDestruction) {
          mOwnRegions.push_back(id);
        }
        return std::make_unique<UnmanagedRegion>(id, bi::mapped_region(file, bi::read_write));
      } catch (const bi::interprocess_exception&) {
      }
    }
    throw std::runtime_error("the session has too many regions");
  }
  std::vector<RegionInfo> GetRegionInfo()
  {
    std::vector<RegionInfo> known{{true, mNumber, mSegment.get_address(), mSegment.get_size()}};
    for (std::uint16_t number = 0; number < most_segments; ++number) {
      if (number == mNumber) {
        continue;
      }
      auto other = mOthers.find(number);
      if (other == mOthers.end()) {
        try {
          other = mOthers.try_emplace(number, bi::open_only, name(number).c_str()).first;
        } catch (const bi::interprocess_exception&) {
          continue;
        }
      }
      auto& segment = other->second;
      known.push_back({true, number, segment.get_address(), segment.get_size()});
    }
    for (std::uint16_t id = 1; id < most_segments; ++id) {
      auto region = mRegions.find(id);
      try {
        if (region == mRegions.end()) {
          bi::shared_memory_object file(bi::open_only, region_name(id).c_str(), bi::read_only);
          region = mRegions.try_emplace(id, file, bi::read_only).first;
        }
      } catch (const bi::interprocess_exception&) {
        continue;
      }
      known.push_back({false, id, region->second.get_address(), region->second.get_size()});
    }
    return known;
  }

 private:
  static constexpr std::uint16_t most_segments = 1024;

  std::string region_name(std::uint16_t id) const { return mPrefix + "rg_" + std::to_string(id); }
  std::string name(std::uint16_t number) const { return mPrefix + "m_" + std::to_string(number); }

  std::string mPrefix;
  std::uint16_t mNumber;
  bool mIsKept;
  shmem::SegmentType mSegment;
  // Segments of other devices, by number.
  std::map<std::uint16_t, shmem::SegmentType> mOthers;
  // Regions of all devices, by id.
  std::map<std::uint16_t, bi::mapped_region> mRegions;
  std::vector<std::uint16_t> mOwnRegions;
};
} // namespace fair::mq
