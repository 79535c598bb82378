// Messages between the devices of this example: parts of plain, little-endian numbers.
//
//   timestamps  source -> cache      [u64 timeslice] [i64 per row, ms]
//   tables      cache -> consumer    [TableHead] [i64 per row, ms] [40-byte MetaHeader per row] per column
//   results     consumer -> sink     [ResultHead] [i64 per row, ms] [u64 digest per row and column]
//   feedback    sink -> cache        [i64 oldest possible timeslice]
//
// A table without columns announces the 'oldest possible timeslice': none below it follows. Consumers
// pass it on as a result without rows. So the watermark moves on although a device was killed with all
// that it had received: no device waits for lost messages.
//
// A workflow with Arrow sends tables as Arrow IPC instead; the cells are the same.
#ifndef IOVCACHE_EXAMPLES_MESSAGES_HPP
#define IOVCACHE_EXAMPLES_MESSAGES_HPP

#include <fairmq/Device.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace messages
{
// An object's place in shared memory: fair::mq::shmem::MetaHeader.
inline constexpr std::size_t cell_bytes = 40;

struct TableHead {
  std::uint64_t timeslice;
  std::uint32_t rows;
  std::uint32_t columns;
};

struct ResultHead {
  std::uint64_t timeslice;
  // The consumer receives no timeslice below this one any more.
  std::uint64_t oldest_possible;
  std::uint32_t consumer;
  std::uint32_t rows;
  std::uint32_t columns;
  std::uint32_t reserved;
};

inline void add(fair::mq::Parts& parts, fair::mq::Channel& channel, const void* data,
                std::size_t bytes)
{
  auto message = channel.NewMessage(bytes);
  if (bytes > 0) {
    std::memcpy(message->GetData(), data, bytes);
  }
  parts.AddPart(std::move(message));
}

template <typename T>
void add(fair::mq::Parts& parts, fair::mq::Channel& channel, const T& value)
{
  static_assert(std::is_trivially_copyable_v<T>);
  add(parts, channel, &value, sizeof value);
}

template <typename T>
void add(fair::mq::Parts& parts, fair::mq::Channel& channel, const std::vector<T>& values)
{
  static_assert(std::is_trivially_copyable_v<T>);
  add(parts, channel, values.data(), values.size() * sizeof(T));
}

// Fills `parts` by `write`, unless that was done. False: the segment is full, until receivers free
// messages.
template <typename Write>
bool made(fair::mq::Parts& parts, const Write& write)
{
  if (parts.Size() > 0) {
    return true;
  }
  try {
    write(parts);
    return true;
  } catch (const fair::mq::MessageBadAlloc&) {
    parts = fair::mq::Parts();
    return false;
  }
}

// False: the part is missing or has another size.
template <typename T>
bool read(const fair::mq::Parts& parts, std::size_t index, T& value)
{
  static_assert(std::is_trivially_copyable_v<T>);
  if (index >= parts.Size() || parts[index].GetSize() != sizeof value) {
    return false;
  }
  std::memcpy(&value, parts[index].GetData(), sizeof value);
  return true;
}

template <typename T>
bool read(const fair::mq::Parts& parts, std::size_t index, std::vector<T>& values)
{
  static_assert(std::is_trivially_copyable_v<T>);
  if (index >= parts.Size() || parts[index].GetSize() % sizeof(T) != 0) {
    return false;
  }
  values.resize(parts[index].GetSize() / sizeof(T));
  if (!values.empty()) {
    std::memcpy(values.data(), parts[index].GetData(), parts[index].GetSize());
  }
  return true;
}
} // namespace messages

#endif
