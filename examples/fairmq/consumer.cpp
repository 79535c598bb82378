// Resolves the cells of each table by its own transport, reads all bytes of the objects, and tells the
// sink a digest of each.
//
//   consumer --number N [--pause MS]
//     --channel-config name=tables,type=pull,method=connect,address=ipc://…
//     --channel-config name=results,type=push,method=connect,address=ipc://…
#include "messages.hpp"

#include <iovcache/fairmq.hpp>

#include <fairmq/runDevice.h>

#include <chrono>
#include <memory>
#include <thread>

namespace bpo = boost::program_options;

namespace
{
// FNV-1a, 64 bits.
std::uint64_t digest(const iovcache::Bytes& bytes)
{
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const std::byte byte : bytes) {
    hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3U;
  }
  return hash;
}

class Consumer : public fair::mq::Device
{
 protected:
  void InitTask() override
  {
    mNumber = fConfig->GetProperty<int>("number");
    mPause = fConfig->GetProperty<int>("pause");
    mResolver = std::make_unique<iovcache::fairmq::Resolver>(*GetChannel("tables").Transport());
  }

  void ResetTask() override { mResolver.reset(); }

  bool ConditionalRun() override
  {
    fair::mq::Parts parts;
    if (GetChannel("tables").Receive(parts, 100) < 0) {
      return true;
    }
    messages::TableHead head{};
    std::vector<std::int64_t> timestamps;
    if (!messages::read(parts, 0, head) || !messages::read(parts, 1, timestamps) ||
        parts.Size() != 2 + head.columns || timestamps.size() != head.rows) {
      LOG(error) << "a message that is no table is left out";
      return true;
    }
    // Of a cache that was killed, later than those of the next one. The sink has been told that none
    // comes, so its objects may be gone.
    if (head.timeslice < mNext) {
      LOG(error) << "timeslice " << head.timeslice << " comes after " << mNext - 1 << ": left out";
      return true;
    }
    if (head.columns == 0) {
      mNext = head.timeslice;
      return tell(head, timestamps, {});
    }
    mNext = head.timeslice + 1;
    std::vector<std::uint64_t> digests;
    for (std::size_t column = 0; column < head.columns; ++column) {
      const auto& cells = parts[2 + column];
      if (cells.GetSize() != head.rows * messages::cell_bytes) {
        LOG(error) << "timeslice " << head.timeslice << ": column " << column << " is no column";
        return true;
      }
      const auto objects = mResolver->resolve_many(cells.GetData(), head.rows);
      if (!objects) {
        LOG(error) << "timeslice " << head.timeslice << ": column " << column << ": "
                   << "status " << objects.status();
        return true;
      }
      for (const auto& object : *objects) {
        digests.push_back(digest(object));
      }
    }
    // Stands for the work of a real consumer.
    std::this_thread::sleep_for(std::chrono::milliseconds(mPause));
    return tell(head, timestamps, digests);
  }

 private:
  bool tell(const messages::TableHead& head, const std::vector<std::int64_t>& timestamps,
            const std::vector<std::uint64_t>& digests)
  {
    auto& channel = GetChannel("results");
    const auto write = [&](fair::mq::Parts& parts) {
      messages::add(parts, channel,
                    messages::ResultHead{head.timeslice, mNext,
                                         static_cast<std::uint32_t>(mNumber), head.rows,
                                         head.columns, 0});
      messages::add(parts, channel, timestamps);
      messages::add(parts, channel, digests);
    };
    fair::mq::Parts parts;
    while (!messages::made(parts, write) || channel.Send(parts, 100) < 0) {
      if (NewStatePending()) {
        return false;
      }
    }
    return true;
  }

  int mNumber = 0;
  int mPause = 0;
  std::uint64_t mNext = 0;
  std::unique_ptr<iovcache::fairmq::Resolver> mResolver;
};
} // namespace

void addCustomOptions(bpo::options_description& options)
{
  options.add_options()("number", bpo::value<int>()->required(), "number of this consumer");
  options.add_options()("pause", bpo::value<int>()->default_value(0), "ms of work per timeslice");
}

std::unique_ptr<fair::mq::Device> getDevice(fair::mq::ProgOptions&)
{
  return std::make_unique<Consumer>();
}
