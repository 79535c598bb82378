// Stands in for FairMQ's header of this name where FairMQ is not installed, so that the tests can
// build and run examples/fairmq: the same interface over the same calls of Boost.Interprocess. A
// segment is opened, or created if it does not exist, and entered in the session's registry.
#pragma once

#include "../stand_in.h"

#include <boost/interprocess/allocators/allocator.hpp>
#include <boost/interprocess/containers/map.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace fair::mq::shmem
{
struct RBTreeBestFit {
};
inline constexpr RBTreeBestFit rbTreeBestFit{};

struct SegmentInfo {
  int fAllocationAlgorithm = 0;
};
struct EventCounter {
  explicit EventCounter(int count) : fCount(count) {}
  std::uint64_t fCount;
};
using BookAllocator =
  bi::allocator<std::pair<const std::uint16_t, SegmentInfo>, bi::managed_shared_memory::segment_manager>;
using Uint16SegmentInfoHashMap =
  bi::map<std::uint16_t, SegmentInfo, std::less<std::uint16_t>, BookAllocator>;

class Segment
{
 public:
  Segment(const std::string& shmid, std::uint16_t id, std::size_t bytes, RBTreeBestFit)
    : mSegment(bi::open_or_create, ("fmq_" + shmid + "_m_" + std::to_string(id)).c_str(), bytes)
  {
    bi::managed_shared_memory book(bi::open_or_create, ("fmq_" + shmid + "_mng").c_str(), 65536);
    auto* segments = book.find_or_construct<Uint16SegmentInfoHashMap>(bi::unique_instance)(
      std::less<std::uint16_t>(), BookAllocator(book.get_segment_manager()));
    auto* events = book.find_or_construct<EventCounter>(bi::unique_instance)(0);
    segments->emplace(id, SegmentInfo{});
    ++events->fCount;
  }

  std::size_t GetSize() const { return mSegment.get_size(); }

 private:
  SegmentType mSegment;
};
} // namespace fair::mq::shmem
