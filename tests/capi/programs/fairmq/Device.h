// Stands in for FairMQ's devices and channels where FairMQ is not installed, so that the devices of
// examples/fairmq are compiled and run in the tests: push and pull over Unix sockets.
#pragma once

#include "stand_in.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <iostream>
#include <map>
#include <sstream>
#include <thread>

// One line on stderr.
namespace fair::mq::stand_in
{
class LogLine
{
 public:
  explicit LogLine(const char* severity) { mLine << "[" << severity << "] "; }
  LogLine(const LogLine&) = delete;
  LogLine& operator=(const LogLine&) = delete;
  ~LogLine() { std::cerr << mLine.str() + "\n" << std::flush; }
  template <typename T>
  LogLine& operator<<(const T& value)
  {
    mLine << value;
    return *this;
  }

 private:
  std::ostringstream mLine;
};
} // namespace fair::mq::stand_in
#define LOG(severity) fair::mq::stand_in::LogLine(#severity)

namespace fair::mq
{
namespace stand_in
{
inline std::atomic<bool> is_stopping{false};

// A message of a channel, in private memory: it is copied anyway.
class PlainMessage final : public Message
{
 public:
  explicit PlainMessage(std::size_t size) : mBytes(size) {}
  void* GetData() const override { return const_cast<char*>(mBytes.data()); }
  std::size_t GetSize() const override { return mBytes.size(); }
  Transport GetType() const override { return Transport::SHM; }

 private:
  std::vector<char> mBytes;
};
} // namespace stand_in

class ProgOptions
{
 public:
  void set(const std::string& key, std::string value) { mValues[key] = std::move(value); }
  bool has(const std::string& key) const { return mValues.count(key) != 0; }
  template <typename T>
  T GetProperty(const std::string& key) const
  {
    std::istringstream text(mValues.at(key));
    T value{};
    if constexpr (std::is_same_v<T, std::string>) {
      value = text.str();
    } else {
      text >> value;
    }
    return value;
  }

 private:
  std::map<std::string, std::string> mValues;
};

class Parts
{
 public:
  void AddPart(MessagePtr part) { mParts.push_back(std::move(part)); }
  Message& operator[](std::size_t index) { return *mParts[index]; }
  const Message& operator[](std::size_t index) const { return *mParts[index]; }
  std::size_t Size() const noexcept { return mParts.size(); }

 private:
  std::vector<MessagePtr> mParts;
};

// One address. A frame is the number of parts, and for each its size and bytes.
class Channel
{
 public:
  Channel(TransportFactory& transport, bool is_bound, const std::string& address)
    : mTransport(&transport), mIsBound(is_bound)
  {
    mAddress.sun_family = AF_UNIX;
    const std::string path = address.substr(std::string("ipc://").size());
    std::strncpy(mAddress.sun_path, path.c_str(), sizeof mAddress.sun_path - 1);
    if (is_bound) {
      ::unlink(path.c_str());
      mListener = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      const auto* socket = reinterpret_cast<const sockaddr*>(&mAddress);
      if (::bind(mListener, socket, sizeof mAddress) != 0 || ::listen(mListener, 16) != 0) {
        throw std::runtime_error("cannot bind " + address);
      }
    }
  }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  ~Channel()
  {
    for (const int peer : mPeers) {
      ::close(peer);
    }
    if (mListener >= 0) {
      ::close(mListener);
    }
  }

  TransportFactory* Transport() { return mTransport; }
  MessagePtr NewMessage(std::size_t size)
  {
    return std::make_unique<stand_in::PlainMessage>(size);
  }

  // Negative: not within the time.
  std::int64_t Send(Parts& parts, int wait_ms)
  {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(wait_ms);
    std::vector<char> frame;
    const auto put = [&frame](const void* data, std::size_t size) {
      const auto* bytes = static_cast<const char*>(data);
      frame.insert(frame.end(), bytes, bytes + size);
    };
    const std::uint64_t count = parts.Size();
    put(&count, sizeof count);
    for (std::size_t index = 0; index < count; ++index) {
      const std::uint64_t size = parts[index].GetSize();
      put(&size, sizeof size);
      put(parts[index].GetData(), size);
    }
    while (true) {
      find_peers();
      for (auto peer = mPeers.begin(); peer != mPeers.end();) {
        // Begun only where there is room, so that waiting is left to the caller.
        if (!is_ready(*peer, POLLOUT, 0)) {
          ++peer;
        } else if (write(*peer, frame)) {
          return static_cast<std::int64_t>(frame.size());
        } else {
          ::close(*peer);
          peer = mPeers.erase(peer);
        }
      }
      if (stand_in::is_stopping || std::chrono::steady_clock::now() >= until) {
        return -2;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  std::int64_t Receive(Parts& parts, int wait_ms)
  {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(wait_ms);
    while (true) {
      find_peers();
      for (auto peer = mPeers.begin(); peer != mPeers.end();) {
        if (!is_ready(*peer, POLLIN, 0)) {
          ++peer;
        } else if (const auto bytes = read(*peer, parts); bytes >= 0) {
          return bytes;
        } else {
          ::close(*peer);
          peer = mPeers.erase(peer);
        }
      }
      if (std::chrono::steady_clock::now() >= until) {
        return -2;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

 private:
  static bool is_ready(int socket, short events, int wait_ms)
  {
    pollfd waited{socket, events, 0};
    return ::poll(&waited, 1, wait_ms) > 0;
  }

  // Accepts peers, or connects.
  void find_peers()
  {
    while (mIsBound && is_ready(mListener, POLLIN, 0)) {
      const int peer = ::accept4(mListener, nullptr, nullptr, SOCK_CLOEXEC);
      if (peer >= 0) {
        mPeers.push_back(peer);
      }
    }
    if (!mIsBound && mPeers.empty()) {
      const int peer = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      const auto* address = reinterpret_cast<const sockaddr*>(&mAddress);
      if (::connect(peer, address, sizeof mAddress) == 0) {
        mPeers.push_back(peer);
      } else {
        ::close(peer);
      }
    }
  }

  // False: the peer is gone.
  static bool write(int peer, const std::vector<char>& frame)
  {
    std::size_t done = 0;
    while (done < frame.size()) {
      const auto count = ::send(peer, frame.data() + done, frame.size() - done, MSG_NOSIGNAL);
      if (count < 0 && errno != EINTR) {
        return false;
      }
      done += count < 0 ? 0 : static_cast<std::size_t>(count);
    }
    return true;
  }

  static bool read_all(int peer, void* data, std::size_t size)
  {
    std::size_t done = 0;
    while (done < size) {
      const auto count = ::recv(peer, static_cast<char*>(data) + done, size - done, 0);
      if (count == 0 || (count < 0 && errno != EINTR)) {
        return false;
      }
      done += count < 0 ? 0 : static_cast<std::size_t>(count);
    }
    return true;
  }

  std::int64_t read(int peer, Parts& parts)
  {
    Parts fresh;
    std::int64_t bytes = 0;
    std::uint64_t count = 0;
    if (!read_all(peer, &count, sizeof count)) {
      return -1;
    }
    for (std::uint64_t index = 0; index < count; ++index) {
      std::uint64_t size = 0;
      if (!read_all(peer, &size, sizeof size)) {
        return -1;
      }
      auto part = NewMessage(size);
      if (size > 0 && !read_all(peer, part->GetData(), size)) {
        return -1;
      }
      fresh.AddPart(std::move(part));
      bytes += static_cast<std::int64_t>(size);
    }
    parts = std::move(fresh);
    return bytes;
  }

  TransportFactory* mTransport;
  bool mIsBound;
  sockaddr_un mAddress{};
  int mListener = -1;
  std::vector<int> mPeers;
};

class Device
{
 public:
  virtual ~Device() = default;

  void run(ProgOptions& options, TransportFactory& transport,
           const std::vector<std::string>& channels)
  {
    fConfig = &options;
    for (const auto& channel : channels) {
      add_channel(channel, transport);
    }
    InitTask();
    while (!NewStatePending() && ConditionalRun()) {
    }
    ResetTask();
  }

 protected:
  virtual void InitTask() {}
  virtual bool ConditionalRun() { return false; }
  virtual void ResetTask() {}

  Channel& GetChannel(const std::string& name, int index = 0)
  {
    return *mChannels.at(name).at(static_cast<std::size_t>(index));
  }
  std::size_t GetNumSubChannels(const std::string& name) { return mChannels.at(name).size(); }
  static bool NewStatePending() { return stand_in::is_stopping; }

  ProgOptions* fConfig = nullptr;

 private:
  // name=…,type=…,method=bind|connect,address=…[,address=…]
  void add_channel(const std::string& text, TransportFactory& transport)
  {
    std::istringstream items(text);
    std::string item;
    std::string name;
    bool is_bound = false;
    while (std::getline(items, item, ',')) {
      const auto place = item.find('=');
      const auto key = item.substr(0, place);
      const auto value = item.substr(place + 1);
      if (key == "name") {
        name = value;
      } else if (key == "method") {
        is_bound = value == "bind";
      } else if (key == "address") {
        mChannels[name].push_back(std::make_unique<Channel>(transport, is_bound, value));
      }
    }
  }

  std::map<std::string, std::vector<std::unique_ptr<Channel>>> mChannels;
};
} // namespace fair::mq
