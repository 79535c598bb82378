// A shmem transport of FairMQ, or of the stand-in where FairMQ is not installed.
#ifndef IOVCACHE_TESTS_TRANSPORT_HPP
#define IOVCACHE_TESTS_TRANSPORT_HPP

#include <fairmq/TransportFactory.h>
#include <fairmq/UnmanagedRegion.h>

#include <memory>
#include <string>

#ifndef FAIRMQ_STAND_IN
#include <fairmq/ProgOptions.h>
#endif

inline std::shared_ptr<fair::mq::TransportFactory>
transport(const std::string& session, const std::string& id, std::size_t segment_bytes)
{
#ifdef FAIRMQ_STAND_IN
  return std::make_shared<fair::mq::TransportFactory>(session, id, segment_bytes);
#else
  fair::mq::ProgOptions options;
  options.SetProperty<std::string>("session", session);
  options.SetProperty<std::size_t>("shm-segment-size", segment_bytes);
  options.SetProperty<bool>("shm-monitor", false);
  options.SetProperty<bool>("shm-no-cleanup", true);
  return fair::mq::TransportFactory::CreateTransportFactory("shmem", id, &options);
#endif
}

inline fair::mq::UnmanagedRegionPtr make_region(fair::mq::TransportFactory& transport,
                                                std::size_t bytes)
{
  return transport.CreateUnmanagedRegion(bytes, fair::mq::RegionCallback{},
                                         fair::mq::RegionConfig{});
}

#endif
