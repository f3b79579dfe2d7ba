#pragma once

#include <string>

#include "cli/http_client.h"
#include <boost/asio/ssl/context.hpp>
#include <boost/beast/http/fields.hpp>
#include <boost/beast/http/message.hpp>

// What the HTTP clients of this program share.
namespace baton::cli {

// TLS 1.2 and later; a server must have a certificate that the system trusts, or one of the
// authorities in the file that OpenSSL's SSL_CERT_FILE names.
boost::asio::ssl::context MakeTlsClient();

// Before the handshake: the name to ask for and to find in the certificate.
boost::system::error_code NameTlsHost(const std::string& host, SSL* connection);

template <typename Body>
void SetCommonHeaders(const HttpUrl& url, const std::string& api_key,
                      boost::beast::http::request<Body>& request) {
  const bool is_ipv6 = url.host.find(':') != std::string::npos;
  request.set(boost::beast::http::field::host,
              (is_ipv6 ? "[" + url.host + "]" : url.host) + ":" + url.port);
  request.set(boost::beast::http::field::user_agent, "baton");
  if (!api_key.empty()) request.set(boost::beast::http::field::authorization, "Bearer " + api_key);
}

}  // namespace baton::cli
