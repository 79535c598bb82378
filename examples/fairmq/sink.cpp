// Collects the reports of the consumers, and sends the cache the 'oldest possible timeslice': the least of
// those of all consumers.
//
//   sink --consumers N --output FILE
//     --channel-config name=results,type=pull,method=bind,address=ipc://…
//     --channel-config name=feedback,type=push,method=connect,address=ipc://…
//
// FILE gets a line for each timeslice and consumer: timeslice, consumer, columns, and for each row its
// timestamp and the digests of its objects.
#include "messages.hpp"

#include <fairmq/runDevice.h>

#include <algorithm>
#include <fstream>
#include <memory>

namespace bpo = boost::program_options;

namespace
{
class Sink : public fair::mq::Device
{
 protected:
  void InitTask() override
  {
    mOldest.assign(static_cast<std::size_t>(fConfig->GetProperty<int>("consumers")), 0);
    mOutput.open(fConfig->GetProperty<std::string>("output"), std::ios::app);
  }

  void ResetTask() override { mOutput.close(); }

  bool ConditionalRun() override
  {
    fair::mq::Parts parts;
    if (GetChannel("results").Receive(parts, 100) < 0) {
      return true;
    }
    messages::ResultHead head{};
    std::vector<std::int64_t> timestamps;
    std::vector<std::uint64_t> digests;
    if (!messages::read(parts, 0, head) || !messages::read(parts, 1, timestamps) ||
        !messages::read(parts, 2, digests) || head.consumer >= mOldest.size() ||
        timestamps.size() != head.rows ||
        digests.size() != std::size_t{head.rows} * head.columns) {
      LOG(error) << "a message that is no result is left out";
      return true;
    }
    if (head.columns > 0) {
      write(head, timestamps, digests);
    }
    auto& oldest = mOldest[head.consumer];
    oldest = std::max(oldest, head.oldest_possible);
    return send(*std::min_element(mOldest.begin(), mOldest.end()));
  }

 private:
  void write(const messages::ResultHead& head, const std::vector<std::int64_t>& timestamps,
             const std::vector<std::uint64_t>& digests)
  {
    mOutput << head.timeslice << ' ' << head.consumer << ' ' << head.columns;
    for (std::size_t row = 0; row < head.rows; ++row) {
      mOutput << ' ' << timestamps[row];
      for (std::size_t column = 0; column < head.columns; ++column) {
        mOutput << ' ' << digests[column * head.rows + row];
      }
    }
    mOutput << std::endl;
  }

  // Never goes back; said again, since a cache that is started anew has not heard it.
  bool send(std::uint64_t oldest)
  {
    if (oldest == 0) {
      return true;
    }
    auto& channel = GetChannel("feedback");
    fair::mq::Parts parts;
    messages::add(parts, channel, static_cast<std::int64_t>(oldest));
    // Not waited for: the next one says as much.
    (void)channel.Send(parts, 10);
    return !NewStatePending();
  }

  std::vector<std::uint64_t> mOldest;
  std::ofstream mOutput;
};
} // namespace

void addCustomOptions(bpo::options_description& options)
{
  options.add_options()("consumers", bpo::value<int>()->default_value(3), "number of consumers");
  options.add_options()("output", bpo::value<std::string>()->required(), "file for the results");
}

std::unique_ptr<fair::mq::Device> getDevice(fair::mq::ProgOptions&)
{
  return std::make_unique<Sink>();
}
