#pragma once

#include <string>
#include <string_view>

#include "router/http/http_message.h"

namespace baton::router {

// page.html, put into the program by the build.
extern const std::string_view kPageHtml;

// What a browser may do with the page: run its one script and style, which are named by their
// hashes, and talk to this server. Made from `html`; pure.
std::string PagePolicy(std::string_view html);

// The chat page at "/"; 304 to who has it already.
void ServePage(const HttpRequest& request, const std::string& request_id, HttpExchange& exchange);

}  // namespace baton::router
