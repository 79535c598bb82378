// Stands in for FairMQ's main function of a device; see Device.h.
#pragma once

#include "Device.h"

#include <memory>
#include <string>
#include <type_traits>

namespace boost::program_options
{
struct Value {
  bool is_required = false;
  bool has_default = false;
  std::string text;
};

template <typename T>
struct TypedValue : Value {
  // Boost gives a pointer.
  TypedValue* operator->() { return this; }
  TypedValue& required()
  {
    is_required = true;
    return *this;
  }
  TypedValue& default_value(const T& value)
  {
    std::ostringstream stream;
    stream << value;
    text = stream.str();
    has_default = true;
    return *this;
  }
};

template <typename T>
TypedValue<T> value()
{
  return {};
}

class options_description
{
 public:
  options_description& add_options() { return *this; }
  options_description& operator()(const char* name, const Value& value, const char*)
  {
    mValues[name] = value;
    return *this;
  }
  const std::map<std::string, Value>& values() const { return mValues; }

 private:
  std::map<std::string, Value> mValues;
};
} // namespace boost::program_options

void addCustomOptions(boost::program_options::options_description& options);
std::unique_ptr<fair::mq::Device> getDevice(fair::mq::ProgOptions& config);

int main(int count, char** arguments)
{
  const auto stop = [](int) { fair::mq::stand_in::is_stopping = true; };
  (void)std::signal(SIGTERM, stop);
  (void)std::signal(SIGINT, stop);
  boost::program_options::options_description custom;
  addCustomOptions(custom);
  fair::mq::ProgOptions options;
  options.set("session", "default");
  options.set("shm-segment-size", "2147483648");
  options.set("shm-segment-id", "0");
  for (const auto& [name, value] : custom.values()) {
    if (value.has_default) {
      options.set(name, value.text);
    }
  }
  std::vector<std::string> channels;
  for (int place = 1; place + 1 < count; place += 2) {
    const std::string name = std::string(arguments[place]).substr(2);
    if (name == "channel-config") {
      channels.emplace_back(arguments[place + 1]);
    } else {
      options.set(name, arguments[place + 1]);
    }
  }
  for (const auto& [name, value] : custom.values()) {
    if (value.is_required && !options.has(name)) {
      std::cerr << "--" << name << " is required\n";
      return 1;
    }
  }
  try {
    fair::mq::TransportFactory transport(
      options.GetProperty<std::string>("session"), "",
      options.GetProperty<std::size_t>("shm-segment-size"),
      options.GetProperty<std::uint16_t>("shm-segment-id"), true);
    const auto device = getDevice(options);
    device->run(options, transport, channels);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
