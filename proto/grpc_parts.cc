// Parts of gRPC that Baton never asks for: load balancing other than "the first address that
// answers", which only a service config could choose, and what gRPC's own tests use. A program that
// defines their registration, as nothing, does not link them from libgrpc.a: 0.5 MB less each. The
// signatures are those of gRPC 1.51 (Debian 12, Ubuntu 24.04); under another these are functions
// that nobody calls.
namespace grpc_core {

class CoreConfiguration {
 public:
  class Builder;
};

void RegisterRlsLbPolicy(CoreConfiguration::Builder*) {}
void RegisterGrpcLbPolicy(CoreConfiguration::Builder*) {}
void RegisterOutlierDetectionLbPolicy(CoreConfiguration::Builder*) {}
void RegisterPriorityLbPolicy(CoreConfiguration::Builder*) {}
void RegisterRingHashLbPolicy(CoreConfiguration::Builder*) {}
void RegisterRoundRobinLbPolicy(CoreConfiguration::Builder*) {}
void RegisterWeightedTargetLbPolicy(CoreConfiguration::Builder*) {}
void RegisterFakeResolver(CoreConfiguration::Builder*) {}
void FaultInjectionFilterRegister(CoreConfiguration::Builder*) {}

}  // namespace grpc_core
