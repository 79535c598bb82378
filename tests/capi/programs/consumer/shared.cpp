#include <iovcache.hpp>

#include <cstdio>

int main() { std::printf("%u %s\n", iovc_abi_version(), iovc_strerror(IOVC_NOT_FOUND)); }
