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
  Message(SegmentType& segment, std::size_t size, std::size_t align)
    : mSegment(&segment), mSize(size)
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
    return {mSize, 0, mSegment->get_handle_from_address(mPlace), -1, 0, 0, true};
  }

 private:
  SegmentType* mSegment;
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
using UnmanagedRegionPtr = std::unique_ptr<UnmanagedRegion>;

class TransportFactory
{
 public:
  TransportFactory(const std::string& session, const std::string&, std::size_t bytes)
    : mPrefix("fmq_" + session + "_"), mSegment(bi::open_or_create, (mPrefix + "m_0").c_str(), bytes)
  {
  }
  ~TransportFactory()
  {
    bi::shared_memory_object::remove((mPrefix + "m_0").c_str());
    bi::shared_memory_object::remove((mPrefix + "rg_1").c_str());
  }
  MessagePtr CreateMessage(std::size_t size, Alignment align)
  {
    return std::make_unique<shmem::Message>(mSegment, size, align.alignment);
  }
  UnmanagedRegionPtr CreateUnmanagedRegion(std::size_t bytes)
  {
    bi::shared_memory_object file(bi::open_or_create, (mPrefix + "rg_1").c_str(), bi::read_write);
    file.truncate(static_cast<bi::offset_t>(bytes));
    return std::make_unique<UnmanagedRegion>(1, bi::mapped_region(file, bi::read_write));
  }
  std::vector<RegionInfo> GetRegionInfo()
  {
    std::vector<RegionInfo> known{{true, 0, mSegment.get_address(), mSegment.get_size()}};
    try {
      bi::shared_memory_object file(bi::open_only, (mPrefix + "rg_1").c_str(), bi::read_only);
      mRegion = bi::mapped_region(file, bi::read_only);
      known.push_back({false, 1, mRegion.get_address(), mRegion.get_size()});
    } catch (const bi::interprocess_exception&) {
    }
    return known;
  }

 private:
  std::string mPrefix;
  shmem::SegmentType mSegment;
  bi::mapped_region mRegion;
};
} // namespace fair::mq
