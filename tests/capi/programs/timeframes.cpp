// A consumer of timeframes, driven by lines on stdin: timeframes SOCKET NAME
//
//   take ID NAME MS    takes a table ("-": the name of the session); prints its cells
//   event ID           makes a descriptor for a timeframe
//   poll ID MS         waits for the descriptor of a timeframe in epoll
//   views ID           takes a view of each cell, and prints its validity interval
//   bytes ID           prints the bytes of the views
//   forget ID          releases the views
//   consumed ID        reports the timeframe as consumed
//   release ID         releases the table
//   descriptors        prints the number of open descriptors
//   close              closes look-ups and session
//   alive              prints whether the service is connected
// Each answer is one line: a status and what belongs to it.
#include "iovcache.hpp"

#include <sys/epoll.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace
{
std::string text(const iovcache::View& view)
{
  return {reinterpret_cast<const char*>(view.data()), view.size()};
}

std::string failed(iovc_status_t status)
{
  return std::string("failed ") + iovc_strerror(status) + ": " + iovcache::last_error();
}

// The arrays of a column hold what its views hold.
bool agrees(const iovcache::Timeframe& table, std::size_t number, std::size_t row,
            const iovcache::Result<iovcache::View>& view)
{
  const auto column = table.column(number);
  if (!column) {
    return false;
  }
  std::size_t run = 0;
  while (run < column->runs && static_cast<std::size_t>(column->run_ends[run]) <= row) {
    ++run;
  }
  const bool null =
    column->validity != nullptr && ((column->validity[run / 8] >> (run % 8)) & 1) == 0;
  if (null || !view) {
    return null && view.status() == IOVC_NOT_FOUND;
  }
  return column->cells[run].size == view->size() &&
         column->intervals[2 * run] == view->valid_from() &&
         column->intervals[2 * run + 1] == view->valid_until();
}

std::string cells(const iovcache::Timeframe& table)
{
  std::ostringstream line;
  line << "taken " << table.rows() << 'x' << table.columns();
  for (std::size_t number = 0; number < table.columns(); ++number) {
    const auto column = table.column(number);
    if (!column || *table.find(column->name) != number) {
      return failed(column.status());
    }
    line << ' ' << column->name << ':' << column->runs;
    for (std::size_t row = 0; row < table.rows(); ++row) {
      const auto view = table.object(number, row);
      if (!agrees(table, number, row, view)) {
        return "arrays and views differ";
      }
      line << (row == 0 ? '=' : ',') << (view ? text(*view) : "null");
    }
  }
  if (table.object(table.columns(), 0).status() != IOVC_INVALID_ARGUMENT ||
      table.object(0, table.rows()).status() != IOVC_INVALID_ARGUMENT ||
      table.column(table.columns()).status() != IOVC_INVALID_ARGUMENT ||
      table.find("no such column").status() != IOVC_NOT_FOUND) {
    return "a wrong place is no error";
  }
  return line.str();
}

std::string polled(int descriptor, int millis)
{
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  epoll_event wanted{};
  wanted.events = EPOLLIN;
  epoll_event got{};
  const bool added = epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &wanted) == 0;
  const int count = added ? epoll_wait(epoll, &got, 1, millis) : -1;
  close(epoll);
  return count == 1 ? "readable" : count == 0 ? "not readable" : "no descriptor";
}

struct Consumer
{
  std::optional<iovcache::Attachment> attached;
  std::optional<iovcache::Local> local;
  std::map<std::uint64_t, iovcache::Timeframe> tables;
  std::map<std::uint64_t, iovcache::Event> events;
  std::map<std::uint64_t, std::vector<iovcache::View>> views;

  std::string take(std::uint64_t id, const std::string& name, std::int64_t millis)
  {
    auto taken = local->timeframe(id, name == "-" ? "" : name, std::chrono::milliseconds(millis));
    if (!taken) {
      return failed(taken.status());
    }
    const auto line = cells(*taken);
    tables.erase(id);
    tables.emplace(id, std::move(*taken));
    return line;
  }

  std::string take_views(std::uint64_t id)
  {
    std::ostringstream line;
    line << "views";
    const auto& table = tables.at(id);
    for (std::size_t number = 0; number < table.columns(); ++number) {
      for (std::size_t row = 0; row < table.rows(); ++row) {
        if (auto view = table.object(number, row)) {
          line << ' ' << view->valid_from() << '-' << view->valid_until();
          views[id].push_back(std::move(*view));
        }
      }
    }
    return line.str();
  }

  std::string answer(const std::string& command, std::istream& rest)
  {
    std::uint64_t id = 0;
    if (command == "take") {
      std::string name;
      std::int64_t millis = 0;
      rest >> id >> name >> millis;
      return take(id, name, millis);
    }
    if (command == "close") {
      local.reset();
      attached.reset();
      return "closed";
    }
    if (command == "alive") {
      return attached->alive() ? "alive" : "gone";
    }
    if (command == "descriptors") {
      std::filesystem::directory_iterator all("/proc/self/fd");
      return std::to_string(std::distance(begin(all), end(all)));
    }
    rest >> id;
    if (command == "event") {
      auto event = local->timeframe_event(id);
      if (!event) {
        return failed(event.status());
      }
      events.erase(id);
      events.emplace(id, std::move(*event));
      return "event";
    }
    if (command == "poll") {
      int millis = 0;
      rest >> millis;
      return polled(events.at(id).fd(), millis);
    }
    if (command == "views") {
      return take_views(id);
    }
    if (command == "bytes") {
      std::string line = "bytes";
      for (const auto& view : views[id]) {
        line += ' ' + text(view);
      }
      return line;
    }
    if (command == "consumed") {
      const auto status = tables.at(id).consumed();
      return status == IOVC_OK ? "consumed" : failed(status);
    }
    if (command == "forget") {
      views.erase(id);
      return "forgotten";
    }
    if (command == "close-event") {
      events.erase(id);
      return "closed";
    }
    tables.erase(id);
    return "released";
  }
};
} // namespace

int main(int count, char** arguments)
{
  Consumer consumer;
  auto attached = iovcache::Attachment::open(arguments[1], count > 2 ? arguments[2] : "");
  if (!attached) {
    std::cout << failed(attached.status()) << std::endl;
    return 1;
  }
  consumer.attached.emplace(std::move(*attached));
  auto local = iovcache::Local::open(*consumer.attached);
  if (!local) {
    std::cout << failed(local.status()) << std::endl;
    return 1;
  }
  consumer.local.emplace(std::move(*local));
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream rest(line);
    std::string command;
    rest >> command;
    std::cout << consumer.answer(command, rest) << std::endl;
  }
  return 0;
}
