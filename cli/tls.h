#pragma once

#include <string>

#include <boost/asio/ssl/context.hpp>
#include <boost/system/error_code.hpp>

// What the HTTP clients of this program share.
namespace baton::cli {

// TLS 1.2 and later; a server must have a certificate that the system trusts, or one of the
// authorities in the file that OpenSSL's SSL_CERT_FILE names.
boost::asio::ssl::context MakeTlsClient();

// Before the handshake: the name to ask for and to find in the certificate.
boost::system::error_code NameTlsHost(const std::string& host, SSL* connection);

}  // namespace baton::cli
