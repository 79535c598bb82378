// Sends the timestamps of one timeslice after the other.
//
//   source --channel-config name=timestamps,type=push,method=connect,address=ipc://…
//          --state FILE [--rows N] [--step MS] [--first MS] [--range MS] [--pause MS]
//
// The number of the next timeslice stands in FILE, so that a source that is started again goes on.
#include "messages.hpp"

#include <fairmq/runDevice.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <thread>

namespace bpo = boost::program_options;

namespace
{
class Source : public fair::mq::Device
{
 protected:
  void InitTask() override
  {
    mState = fConfig->GetProperty<std::string>("state");
    mRows = fConfig->GetProperty<int>("rows");
    mStep = fConfig->GetProperty<int>("step");
    mFirst = fConfig->GetProperty<int>("first");
    mRange = fConfig->GetProperty<int>("range");
    mPause = fConfig->GetProperty<int>("pause");
    std::ifstream(mState) >> mTimeslice;
  }

  bool ConditionalRun() override
  {
    std::vector<std::int64_t> timestamps;
    for (int row = 0; row < mRows; ++row) {
      const auto number = mTimeslice * static_cast<std::uint64_t>(mRows) + static_cast<std::uint64_t>(row);
      const auto offset = number * static_cast<std::uint64_t>(mStep) % static_cast<std::uint64_t>(mRange);
      timestamps.push_back(mFirst + static_cast<std::int64_t>(offset));
    }
    auto& channel = GetChannel("timestamps");
    fair::mq::Parts parts;
    messages::add(parts, channel, mTimeslice);
    messages::add(parts, channel, timestamps);
    // Written first, and renamed into place: a number is left out rather than used twice, whenever
    // this device is killed.
    const auto fresh = mState + ".new";
    std::ofstream(fresh, std::ios::trunc) << mTimeslice + 1 << std::endl;
    if (std::rename(fresh.c_str(), mState.c_str()) != 0) {
      LOG(error) << mState << " cannot be written";
      return false;
    }
    while (channel.Send(parts, 100) < 0) {
      if (NewStatePending()) {
        return false;
      }
    }
    ++mTimeslice;
    std::this_thread::sleep_for(std::chrono::milliseconds(mPause));
    return true;
  }

 private:
  std::string mState;
  std::uint64_t mTimeslice = 0;
  int mRows = 0;
  int mStep = 0;
  int mFirst = 0;
  int mRange = 1;
  int mPause = 0;
};
} // namespace

void addCustomOptions(bpo::options_description& options)
{
  options.add_options()("state", bpo::value<std::string>()->required(), "file of the next timeslice");
  options.add_options()("rows", bpo::value<int>()->default_value(16), "timestamps of a timeslice");
  options.add_options()("step", bpo::value<int>()->default_value(97), "ms between timestamps");
  options.add_options()("first", bpo::value<int>()->default_value(0), "first timestamp, ms");
  options.add_options()("range", bpo::value<int>()->default_value(30000), "ms until they begin anew");
  options.add_options()("pause", bpo::value<int>()->default_value(2), "ms between timeslices");
}

std::unique_ptr<fair::mq::Device> getDevice(fair::mq::ProgOptions&)
{
  return std::make_unique<Source>();
}
