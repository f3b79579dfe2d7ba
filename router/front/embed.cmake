# Makes OUTPUT, C++ source that defines baton::router::kPageHtml, from the text of INPUT.
file(READ ${INPUT} text)
string(FIND "${text}" ")html\"" end)
if(NOT end EQUAL -1)
  message(FATAL_ERROR "${INPUT} must not hold the end of a raw string, )html\"")
endif()
# A semicolon or bracket of the text must survive CMake's lists: no list command touches it.
file(WRITE ${OUTPUT} "#include \"router/front/page.h\"\n\nnamespace baton::router {\n\n"
  "const std::string_view kPageHtml = R\"html(${text})html\";\n\n}  // namespace baton::router\n")
