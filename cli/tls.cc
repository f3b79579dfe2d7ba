#include "cli/tls.h"

#include <boost/asio/ip/address.hpp>

namespace baton::cli {

namespace ssl = boost::asio::ssl;
using boost::system::error_code;

ssl::context MakeTlsClient() {
  ssl::context context(ssl::context::tls_client);
  context.set_options(ssl::context::default_workarounds | ssl::context::no_tlsv1 |
                      ssl::context::no_tlsv1_1);
  context.set_default_verify_paths();
  context.set_verify_mode(ssl::verify_peer);
  return context;
}

error_code NameTlsHost(const std::string& host, SSL* connection) {
  error_code no_address;
  boost::asio::ip::make_address(host, no_address);
  X509_VERIFY_PARAM* const check = SSL_get0_param(connection);
  const bool is_set = no_address
                          ? SSL_set_tlsext_host_name(connection, host.c_str()) == 1 &&
                                X509_VERIFY_PARAM_set1_host(check, host.data(), host.size()) == 1
                          : X509_VERIFY_PARAM_set1_ip_asc(check, host.c_str()) == 1;
  return is_set ? error_code() : make_error_code(boost::system::errc::invalid_argument);
}

}  // namespace baton::cli
