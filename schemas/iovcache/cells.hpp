/**
 * @file
 * The cells of a column, as the Arrow C Data Interface carries them: binary, struct or o2, plain,
 * dictionary or run-end encoded.
 */
#ifndef IOVCACHE_CELLS_HPP
#define IOVCACHE_CELLS_HPP

#include "../iovcache.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>

// As the specification of the Arrow C Data Interface defines them.
#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE
extern "C" {
struct ArrowSchema {
  const char* format;
  const char* name;
  const char* metadata;
  std::int64_t flags;
  std::int64_t n_children;
  struct ArrowSchema** children;
  struct ArrowSchema* dictionary;
  void (*release)(struct ArrowSchema*);
  void* private_data;
};
struct ArrowArray {
  std::int64_t length;
  std::int64_t null_count;
  std::int64_t offset;
  std::int64_t n_buffers;
  std::int64_t n_children;
  const void** buffers;
  struct ArrowArray** children;
  struct ArrowArray* dictionary;
  void (*release)(struct ArrowArray*);
  void* private_data;
};
}
#endif

namespace iovcache::cells
{

/** The header of AliceO2's cell: handle, segment, size. It has no generation (hint 0). */
[[nodiscard]] inline std::optional<iovc_meta_header_t>
header_of_o2(std::int64_t handle, std::int64_t segment, std::int64_t size) noexcept
{
  if (segment < 0 || segment > UINT16_MAX || size < 0) {
    return std::nullopt;
  }
  iovc_meta_header_t header{};
  header.size = static_cast<std::uint64_t>(size);
  header.handle = handle;
  header.shared = -1;
  header.segment_id = static_cast<std::uint16_t>(segment);
  header.managed = 1;
  return header;
}

namespace detail
{
inline bool is_valid(const ArrowArray& array, std::int64_t index) noexcept
{
  if (array.n_buffers < 1 || array.buffers[0] == nullptr || array.null_count == 0) {
    return true;
  }
  const auto* bits = static_cast<const std::uint8_t*>(array.buffers[0]);
  return ((bits[index / 8] >> (index % 8)) & 1) != 0;
}

template <typename T>
T value_at(const ArrowArray& array, std::int64_t index) noexcept
{
  T value;
  const auto* values = static_cast<const char*>(array.buffers[1]);
  std::memcpy(&value, values + static_cast<std::size_t>(index) * sizeof value, sizeof value);
  return value;
}

/** Cells in a plain array of one of the three kinds. */
class Values
{
 public:
  static std::optional<Values> of(const ArrowSchema& schema, const ArrowArray& array) noexcept
  {
    if (std::strcmp(schema.format, "w:40") == 0 && array.n_buffers == 2) {
      return Values(Kind::Binary, array);
    }
    if (std::strcmp(schema.format, "+s") == 0 && is_struct(schema, array)) {
      return Values(Kind::Struct, array);
    }
    if (std::strcmp(schema.format, "+w:3") == 0 && array.n_children == 1 &&
        std::strcmp(schema.children[0]->format, "l") == 0) {
      return Values(Kind::O2, array);
    }
    return std::nullopt;
  }

  [[nodiscard]] std::int64_t length() const noexcept { return mArray->length; }

  /** False: null, or no header. */
  bool read(std::int64_t row, iovc_meta_header_t& header, iovc_status_t& status) const noexcept
  {
    const ArrowArray& array = *mArray;
    const std::int64_t at = array.offset + row;
    if (!is_valid(array, at)) {
      return false;
    }
    switch (mKind) {
      case Kind::Binary:
        std::memcpy(&header,
                    static_cast<const char*>(array.buffers[1]) +
                      static_cast<std::size_t>(at) * sizeof header,
                    sizeof header);
        return true;
      case Kind::Struct:
        read_struct(at, header);
        return true;
      case Kind::O2:
        break;
    }
    const ArrowArray& numbers = *array.children[0];
    const std::int64_t first = numbers.offset + at * 3;
    const auto found = header_of_o2(value_at<std::int64_t>(numbers, first),
                                    value_at<std::int64_t>(numbers, first + 1),
                                    value_at<std::int64_t>(numbers, first + 2));
    if (!found) {
      status = IOVC_INVALID_ARGUMENT;
      return false;
    }
    header = *found;
    return true;
  }

 private:
  enum class Kind { Binary, Struct, O2 };

  Values(Kind kind, const ArrowArray& array) noexcept : mKind(kind), mArray(&array) {}

  static bool is_struct(const ArrowSchema& schema, const ArrowArray& array) noexcept
  {
    // size, hint, handle, shared, region_id, segment_id, managed
    constexpr const char* formats[] = {"L", "L", "l", "l", "S", "S", "C"};
    if (schema.n_children != 7 || array.n_children != 7) {
      return false;
    }
    for (int field = 0; field < 7; ++field) {
      if (std::strcmp(schema.children[field]->format, formats[field]) != 0) {
        return false;
      }
    }
    return true;
  }

  void read_struct(std::int64_t at, iovc_meta_header_t& header) const noexcept
  {
    const auto field = [this, at](int number, auto& value) {
      const ArrowArray& child = *mArray->children[number];
      value = value_at<std::remove_reference_t<decltype(value)>>(child, child.offset + at);
    };
    header = iovc_meta_header_t{};
    field(0, header.size);
    field(1, header.hint);
    field(2, header.handle);
    field(3, header.shared);
    field(4, header.region_id);
    field(5, header.segment_id);
    field(6, header.managed);
  }

  Kind mKind;
  const ArrowArray* mArray;
};

/** Calls `call` for one value, over rows `start` to `end`. */
template <typename Call>
iovc_status_t with_value(const Values& values, std::int64_t value, std::int64_t start,
                         std::int64_t end, Call& call)
{
  if (value < 0 || value >= values.length()) {
    return IOVC_INVALID_ARGUMENT;
  }
  iovc_meta_header_t header;
  iovc_status_t status = IOVC_OK;
  const bool found = values.read(value, header, status);
  if (status != IOVC_OK) {
    return status;
  }
  return call(start, end, found ? &header : static_cast<const iovc_meta_header_t*>(nullptr));
}

template <typename Call>
iovc_status_t for_each_run_end(const ArrowSchema& schema, const ArrowArray& array, Call& call)
{
  if (schema.n_children != 2 || array.n_children != 2 ||
      std::strcmp(schema.children[0]->format, "i") != 0) {
    return IOVC_INVALID_ARGUMENT;
  }
  const ArrowArray& ends = *array.children[0];
  const auto values = Values::of(*schema.children[1], *array.children[1]);
  if (!values) {
    return IOVC_INVALID_ARGUMENT;
  }
  std::int64_t start = 0;
  for (std::int64_t run = 0; run < ends.length && start < array.length; ++run) {
    const std::int64_t end = value_at<std::int32_t>(ends, ends.offset + run) - array.offset;
    const std::int64_t cut = end < array.length ? end : array.length;
    if (cut <= start) {
      continue;
    }
    const auto status = with_value(*values, run, start, cut, call);
    if (status != IOVC_OK) {
      return status;
    }
    start = cut;
  }
  return start == array.length ? IOVC_OK : IOVC_INVALID_ARGUMENT;
}

template <typename Call>
iovc_status_t for_each_key(const ArrowSchema& schema, const ArrowArray& array, Call& call)
{
  if (std::strcmp(schema.format, "i") != 0 || array.dictionary == nullptr) {
    return IOVC_INVALID_ARGUMENT;
  }
  const auto values = Values::of(*schema.dictionary, *array.dictionary);
  if (!values) {
    return IOVC_INVALID_ARGUMENT;
  }
  const auto key_of = [&array](std::int64_t row) -> std::int64_t {
    const std::int64_t at = array.offset + row;
    return is_valid(array, at) ? value_at<std::int32_t>(array, at) : -1;
  };
  for (std::int64_t start = 0; start < array.length;) {
    const std::int64_t key = key_of(start);
    std::int64_t end = start + 1;
    while (end < array.length && key_of(end) == key) {
      ++end;
    }
    const auto status = key < 0 ? call(start, end, static_cast<const iovc_meta_header_t*>(nullptr))
                                : with_value(*values, key, start, end, call);
    if (status != IOVC_OK) {
      return status;
    }
    start = end;
  }
  return IOVC_OK;
}
} // namespace detail

/**
 * Calls `call(start, end, header)` for each run of equal rows of a column, in order; `header` is null
 * for null rows. It returns IOVC_OK to go on. IOVC_INVALID_ARGUMENT: no column of cells.
 *
 * Offsets and lengths inside of the arrays are trusted, as the interface has it.
 */
template <typename Call>
iovc_status_t for_each_run(const ArrowSchema& schema, const ArrowArray& array, Call call)
{
  if (std::strcmp(schema.format, "+r") == 0) {
    return detail::for_each_run_end(schema, array, call);
  }
  if (schema.dictionary != nullptr) {
    return detail::for_each_key(schema, array, call);
  }
  const auto values = detail::Values::of(schema, array);
  if (!values) {
    return IOVC_INVALID_ARGUMENT;
  }
  for (std::int64_t row = 0; row < array.length; ++row) {
    const auto status = detail::with_value(*values, row, row, row + 1, call);
    if (status != IOVC_OK) {
      return status;
    }
  }
  return IOVC_OK;
}

} // namespace iovcache::cells

#endif // IOVCACHE_CELLS_HPP
