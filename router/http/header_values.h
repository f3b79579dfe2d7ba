#pragma once

#include <string>
#include <string_view>

namespace baton::router {

// Whether a client's request id is taken over: [A-Za-z0-9._:-]{1,128} (protocol.md 5.2).
bool IsRequestId(std::string_view text);

// The client's id if it is one, else 32 hex digits drawn here. Any thread.
std::string TakeOrDrawId(std::string_view given);

// Whether a Content-Type is application/json; parameters such as a charset are allowed.
bool IsJsonType(std::string_view content_type);

}  // namespace baton::router
