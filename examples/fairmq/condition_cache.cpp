// A device that keeps condition objects in its own FairMQ memory, and sends each of its consumers a
// table of MetaHeaders for each table of timestamps.
//
//   condition_cache --source http://ccdb:8084 --columns vdrift=TPC/Calib/VDriftTgl,…
//     --channel-config name=timestamps,type=pull,method=bind,address=ipc://…
//     --channel-config name=tables,type=push,method=bind,address=ipc://…,address=ipc://…
//     --channel-config name=feedback,type=pull,method=bind,address=ipc://…
//
// The objects are messages of the channel `tables` that are never sent (`--place segment`), or lie in an
// unmanaged region of its transport (`--place region`). So each device of the session resolves the cells
// by its own transport. Nothing is registered or cleaned up besides FairMQ's own.
//
// A timeslice's objects stay where they are until the 'oldest possible timeslice' on `feedback` is
// above it. A device that is started again must not allocate in the segment of a killed one: give it a
// number of its own (--shm-segment-id), never used before in the session.
#include "messages.hpp"

#include <iovcache/fairmq.hpp>

#include <fairmq/runDevice.h>

#include <chrono>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace bpo = boost::program_options;

namespace
{
// All consumers together: the sink reports up to which timeslice the slowest of them is done.
constexpr const char* consumer = "topology";
constexpr int poll_ms = 10;
// Time for the consumers to finish when the device stops.
constexpr std::chrono::seconds drain_limit(10);

// The columns of a request, from name=path,name=path.
std::string columns_of(const std::string& list, std::size_t& count)
{
  std::istringstream items(list);
  std::string item;
  std::string json;
  for (count = 0; std::getline(items, item, ','); ++count) {
    const auto place = item.find('=');
    if (place == std::string::npos) {
      throw std::invalid_argument("--columns " + item + ": expected NAME=PATH");
    }
    json += (count == 0 ? "\"" : ", \"") + item.substr(0, place) + "\": \"" +
            item.substr(place + 1) + "\"";
  }
  return "{" + json + "}";
}

// Timestamps for the Arrow C Data Interface, which releases them.
struct Timestamps {
  std::vector<std::int64_t> values;
  const void* buffers[2];
};

void move_to_arrow(std::vector<std::int64_t> values, ArrowArray& array, ArrowSchema& schema)
{
  auto* own = new Timestamps{std::move(values), {nullptr, nullptr}};
  own->buffers[1] = own->values.data();
  array = ArrowArray{};
  array.length = static_cast<std::int64_t>(own->values.size());
  array.n_buffers = 2;
  array.buffers = own->buffers;
  array.private_data = own;
  array.release = [](ArrowArray* released) {
    delete static_cast<Timestamps*>(released->private_data);
    released->release = nullptr;
  };
  schema = ArrowSchema{};
  schema.format = "l";
  schema.name = "timestamp";
  schema.release = [](ArrowSchema* released) { released->release = nullptr; };
}

class ConditionCache : public fair::mq::Device
{
 protected:
  void InitTask() override
  {
    const auto columns = columns_of(fConfig->GetProperty<std::string>("columns"), mColumns);
    mRegistration = "{\"columns\": " + columns + ", \"consumers\": [\"" + consumer + "\"]}";
    auto options = iovc_cache_options();
    options.memory_bytes =
      static_cast<std::uint64_t>(fConfig->GetProperty<int>("memory-mib")) << 20;
    auto& transport = *GetChannel("tables").Transport();
    if (fConfig->GetProperty<std::string>("place") == "region") {
      // FairMQ gives it an id that the session never had. Its file stays until the session ends:
      // FairMQ's registry would name a file that is gone if it were removed with the transport, and
      // no device could look up a region any more.
      fair::mq::RegionConfig config;
      config.removeOnDestruction = false;
      mRegion = transport.CreateUnmanagedRegion(options.memory_bytes, fair::mq::RegionCallback{},
                                                config);
      mRegionMemory = std::make_unique<iovcache::fairmq::RegionMemory>(*mRegion);
      options.host_memory = mRegionMemory->functions();
    } else {
      mSegmentMemory = std::make_unique<iovcache::fairmq::SegmentMemory>(transport);
      options.host_memory = mSegmentMemory->functions();
    }
    auto cache = iovcache::Cache::open({fConfig->GetProperty<std::string>("source")}, options);
    if (!cache) {
      throw std::runtime_error(iovc_last_error());
    }
    mCache = std::make_unique<iovcache::Cache>(std::move(*cache));
    mNext = 0;
    mOldest = 0;
  }

  bool ConditionalRun() override
  {
    take_feedback(0);
    fair::mq::Parts parts;
    if (GetChannel("timestamps").Receive(parts, poll_ms) < 0) {
      announce();
      return true;
    }
    std::uint64_t timeslice = 0;
    std::vector<std::int64_t> timestamps;
    if (!messages::read(parts, 0, timeslice) || !messages::read(parts, 1, timestamps)) {
      LOG(error) << "a message that is no table of timestamps is left out";
      return true;
    }
    // Of a source that was killed, later than those of the next one: consumers have been promised that
    // none comes that is older than what they have.
    if (timeslice < mNext) {
      LOG(error) << "timeslice " << timeslice << " comes after " << mNext - 1 << ": it is left out";
      return true;
    }
    return serve(timeslice, std::move(timestamps));
  }

  // Consumers may still read: their tables name our messages. Objects that they do not finish in time
  // stay allocated until the session ends, since the cache does not free blocks that timeslices hold.
  void ResetTask() override
  {
    const auto until = std::chrono::steady_clock::now() + drain_limit;
    while (mOldest < mNext && std::chrono::steady_clock::now() < until) {
      announce();
      take_feedback(poll_ms);
    }
    if (mOldest < mNext) {
      LOG(error) << "timeslices from " << mOldest << " are not consumed: their objects stay";
    }
    mCache.reset();
    mSegmentMemory.reset();
    mRegionMemory.reset();
    mRegion.reset();
  }

 private:
  // Registers a timeslice, waits for its objects, and sends its table to every consumer.
  bool serve(std::uint64_t timeslice, std::vector<std::int64_t> timestamps)
  {
    iovc_status_t status = IOVC_UNAVAILABLE;
    // While memory is short, feedback has to be read: it frees memory.
    do {
      ArrowArray array;
      ArrowSchema schema;
      move_to_arrow(timestamps, array, schema);
      status = mCache->register_timeframe(timeslice, &array, &schema, mRegistration, 100);
      announce();
      take_feedback(0);
    } while ((status == IOVC_UNAVAILABLE || status == IOVC_DEADLINE_EXCEEDED) &&
             !NewStatePending());
    if (status != IOVC_OK) {
      LOG(error) << "timeslice " << timeslice << " is left out: " << iovc_last_error();
      return !NewStatePending();
    }
    mNext = timeslice + 1;
    const auto request = "{\"timeframe\": " + std::to_string(timeslice) + ", \"consumer\": \"" +
                         consumer + "\", \"encoding\": \"plain\", \"cell\": \"binary\"}";
    ArrowArray table;
    ArrowSchema schema;
    const auto lease = mCache->table(request, &table, &schema);
    if (!lease) {
      LOG(error) << "timeslice " << timeslice << " is left out: " << iovc_last_error();
      (void)mCache->consumed(timeslice, consumer);
      return true;
    }
    const bool sent = send(timeslice, timestamps, table);
    table.release(&table);
    schema.release(&schema);
    return sent;
  }

  bool send(std::uint64_t timeslice, const std::vector<std::int64_t>& timestamps,
            const ArrowArray& table)
  {
    const auto rows = timestamps.size();
    for (std::size_t index = 0; index < GetNumSubChannels("tables"); ++index) {
      auto& channel = GetChannel("tables", static_cast<int>(index));
      const auto write = [&](fair::mq::Parts& parts) {
        messages::add(parts, channel,
                      messages::TableHead{timeslice, static_cast<std::uint32_t>(rows),
                                          static_cast<std::uint32_t>(mColumns)});
        messages::add(parts, channel, timestamps);
        for (std::size_t column = 0; column < mColumns; ++column) {
          const auto* cells = static_cast<const char*>(table.children[column]->buffers[1]);
          messages::add(parts, channel, cells, rows * messages::cell_bytes);
        }
      };
      fair::mq::Parts parts;
      // Both wait for consumers: the one for their room, the other for the messages that they free.
      while (!messages::made(parts, write) || channel.Send(parts, poll_ms) < 0) {
        take_feedback(poll_ms);
        if (NewStatePending()) {
          return false;
        }
      }
    }
    return true;
  }

  // Tells the consumers that no timeslice below the next one follows, at most every 100 ms.
  void announce()
  {
    const auto now = std::chrono::steady_clock::now();
    if (now - mAnnounced < std::chrono::milliseconds(100)) {
      return;
    }
    mAnnounced = now;
    for (std::size_t index = 0; index < GetNumSubChannels("tables"); ++index) {
      auto& channel = GetChannel("tables", static_cast<int>(index));
      fair::mq::Parts parts;
      const auto write = [&](fair::mq::Parts& made) {
        messages::add(made, channel, messages::TableHead{mNext, 0, 0});
        messages::add(made, channel, std::vector<std::int64_t>());
      };
      // Not waited for: the next one says as much.
      if (messages::made(parts, write)) {
        (void)channel.Send(parts, 0);
      }
    }
  }

  void take_feedback(int wait_ms)
  {
    fair::mq::Parts parts;
    while (GetChannel("feedback").Receive(parts, wait_ms) >= 0) {
      std::int64_t oldest = 0;
      if (messages::read(parts, 0, oldest) && oldest > 0) {
        mOldest = static_cast<std::uint64_t>(oldest);
        if (mCache->oldest_possible(consumer, mOldest) != IOVC_OK) {
          LOG(error) << "oldest possible " << oldest << ": " << iovc_last_error();
        }
      }
      parts = fair::mq::Parts();
      wait_ms = 0;
    }
  }

  std::size_t mColumns = 0;
  std::string mRegistration;
  // The cache ends before its memory.
  fair::mq::UnmanagedRegionPtr mRegion;
  std::unique_ptr<iovcache::fairmq::SegmentMemory> mSegmentMemory;
  std::unique_ptr<iovcache::fairmq::RegionMemory> mRegionMemory;
  std::unique_ptr<iovcache::Cache> mCache;
  std::uint64_t mNext = 0;
  std::uint64_t mOldest = 0;
  std::chrono::steady_clock::time_point mAnnounced{};
};
} // namespace

void addCustomOptions(bpo::options_description& options)
{
  options.add_options()("source", bpo::value<std::string>()->required(), "CCDB or repository");
  options.add_options()("columns", bpo::value<std::string>()->required(), "NAME=PATH,NAME=PATH…");
  options.add_options()("memory-mib", bpo::value<int>()->default_value(1024), "memory for objects");
  options.add_options()("place", bpo::value<std::string>()->default_value("segment"),
                        "of the objects: segment or region");
}

std::unique_ptr<fair::mq::Device> getDevice(fair::mq::ProgOptions&)
{
  return std::make_unique<ConditionCache>();
}
