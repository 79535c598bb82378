// Stands in for FairMQ's header of this name where FairMQ is not installed, so that the tests can
// build and run examples/fairmq: the same interface over the same calls of Boost.Interprocess. A
// segment is opened, or created if it does not exist, and entered in the session's registry.
#pragma once

#include <boost/interprocess/indexes/null_index.hpp>
#include <boost/interprocess/managed_shared_memory.hpp>

#include <cstddef>
#include <cstdint>
#include <string>

namespace fair::mq::shmem
{
struct RBTreeBestFit {
};
inline constexpr RBTreeBestFit rbTreeBestFit{};

class Segment
{
 public:
  Segment(const std::string& shmid, std::uint16_t id, std::size_t bytes, RBTreeBestFit)
    : mSegment(boost::interprocess::open_or_create,
               ("fmq_" + shmid + "_m_" + std::to_string(id)).c_str(), bytes)
  {
    using namespace boost::interprocess;
    managed_shared_memory book(open_or_create, ("fmq_" + shmid + "_mng").c_str(), 65536);
    book.find_or_construct<std::uint16_t>(("segment " + std::to_string(id)).c_str())(id);
  }

  std::size_t GetSize() const { return mSegment.get_size(); }

 private:
  boost::interprocess::basic_managed_shared_memory<
    char,
    boost::interprocess::rbtree_best_fit<boost::interprocess::mutex_family,
                                         boost::interprocess::offset_ptr<void>>,
    boost::interprocess::null_index>
    mSegment;
};
} // namespace fair::mq::shmem
