// A consumer in C++: queries a service over Arrow Flight and reads the objects in place.
//
//   c++ -std=c++20 reader.cpp -I ../../schemas -liovcache -larrow_flight -larrow -o reader
//   ./reader grpc+unix:///run/iovcache/flight.sock PATH MS [MS ...]
//
// prints for each time: the time, the size of the object valid then, and its first bytes.
#include "iovcache.hpp"

#include <arrow/api.h>
#include <arrow/flight/api.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

namespace
{
namespace flight = arrow::flight;

std::string request(const std::string& path, int count, char** times, std::string_view session)
{
  std::string list;
  for (int place = 0; place < count; ++place) {
    list += (place == 0 ? "" : ", ") + std::string(times[place]);
  }
  std::string text = R"({"columns": {"object": ")" + path + R"("}, "timestamps": [)" + list + "]";
  if (!session.empty()) {
    text += R"(, "session": ")" + std::string(session) + "\"";
  }
  return text + "}";
}

arrow::Status run(const std::string& url, const std::string& path, int count, char** times)
{
  ARROW_ASSIGN_OR_RAISE(auto location, flight::Location::Parse(url));
  flight::FlightClientOptions options;
  // HTTP/2 requires a host name here; a socket's path is none.
  options.generic_options.emplace_back("grpc.default_authority", "localhost");
  ARROW_ASSIGN_OR_RAISE(auto client, flight::FlightClient::Connect(location, options));

  // The schema names the attach socket; reading it loads no object.
  const auto about = flight::FlightDescriptor::Command(request(path, count, times, {}));
  ARROW_ASSIGN_OR_RAISE(auto described, client->GetSchema(about));
  arrow::ipc::DictionaryMemo memo;
  ARROW_ASSIGN_OR_RAISE(auto schema, described->GetSchema(&memo));
  ARROW_ASSIGN_OR_RAISE(auto socket, schema->metadata()->Get("iovcache.attach"));
  auto attached = iovcache::Attachment::open(socket, "reader");
  if (!attached) {
    return arrow::Status::IOError(iovcache::last_error());
  }

  // A table requested with a session is held as long as this process lives.
  const flight::Ticket ticket{request(path, count, times, attached->session())};
  ARROW_ASSIGN_OR_RAISE(auto stream, client->DoGet(ticket));
  ARROW_ASSIGN_OR_RAISE(auto table, stream->ToTable());
  int row = 0;
  for (const auto& chunk : table->column(0)->chunks()) {
    const auto& keys = static_cast<const arrow::DictionaryArray&>(*chunk);
    const auto& cells = static_cast<const arrow::FixedSizeBinaryArray&>(*keys.dictionary());
    for (int64_t place = 0; place < keys.length(); ++place, ++row) {
      const auto* cell = cells.GetValue(keys.GetValueIndex(place));
      const auto bytes = attached->resolve(cell);
      if (!bytes) {
        return arrow::Status::Invalid(iovcache::last_error());
      }
      const auto shown = static_cast<int>(bytes->size() < 24 ? bytes->size() : 24);
      std::printf("%s %zu %.*s\n", times[row], bytes->size(), shown,
                  reinterpret_cast<const char*>(bytes->data()));
      if (!attached->still_valid(cell)) {
        return arrow::Status::Invalid("read too late: ", iovcache::last_error());
      }
    }
  }
  return arrow::Status::OK();
}
} // namespace

int main(int count, char** arguments)
{
  if (count < 4 || iovc_abi_version() != IOVC_ABI_VERSION) {
    std::cerr << "usage: reader URL PATH MS [MS ...]\n";
    return 2;
  }
  const auto done = run(arguments[1], arguments[2], count - 3, arguments + 3);
  if (!done.ok()) {
    std::cerr << done.ToString() << '\n';
    return 1;
  }
  return 0;
}
