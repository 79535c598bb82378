// A consumer that looks objects up by itself: local SOCKET PATH TIME…
// First it says its session and waits for a line, so that the path is asked for in its name.
#include "iovcache.hpp"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>

static int failed(const char* what)
{
  std::fprintf(stderr, "%s: %s\n", what, iovcache::last_error().c_str());
  return 1;
}

int main(int count, char** arguments)
{
  auto attached = iovcache::Attachment::open(arguments[1], "local");
  if (!attached) {
    return failed("attach");
  }
  auto local = iovcache::Local::open(*attached);
  if (!local) {
    return failed("local");
  }
  auto path = local->path(arguments[2]);
  if (!path || local->path("A//B").status() != IOVC_INVALID_ARGUMENT) {
    return failed("path");
  }
  if (path->get(1000).status() != IOVC_UNAVAILABLE) {
    return failed("nothing is published yet");
  }
  std::cout << attached->session() << std::endl;
  std::string line;
  std::getline(std::cin, line);
  // The session lives on with what looks up.
  { auto gone = std::move(*attached); }
  for (int number = 3; number < count; ++number) {
    const auto time = std::strtoll(arguments[number], nullptr, 10);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    auto view = path->get(time);
    while (!view && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      view = path->get(time);
    }
    if (!view || time < view->valid_from() || time >= view->valid_until()) {
      return failed("get");
    }
    const std::string bytes(reinterpret_cast<const char*>(view->data()), view->size());
    std::cout << time << ' ' << bytes.size() << ' ' << bytes << std::endl;
  }
  // One that is found and one that is not.
  auto views = path->get_many({1000, 9000});
  if (!views || !(*views)[0] || (*views)[1]) {
    return failed("get_many");
  }
  // A wait without a change, and one that a newer version ends.
  const auto notice = path->notice();
  const auto before = path->get(1000);
  if (!notice || !before) {
    return failed("notice");
  }
  const auto waited = path->wait(*notice, std::chrono::milliseconds(50));
  if (!waited || *waited) {
    return failed("wait");
  }
  std::cout << "waits" << std::endl;
  const auto changed = path->wait(*notice, std::chrono::seconds(60));
  if (!changed || !*changed) {
    return failed("change");
  }
  return 0;
}
