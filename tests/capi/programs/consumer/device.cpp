#include <iovcache/fairmq.hpp>

#include <cstdio>

int main()
{
  const auto cell = iovcache::cells::header_of_o2(4096 + 48, 7, 5);
  std::printf("%u %u\n", iovc_abi_version(), static_cast<unsigned>(cell->segment_id));
}
