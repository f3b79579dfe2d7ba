# Targets of one folder: baton_library, baton_program and baton_test carry the warnings and sanitizer flags.
find_package(Threads REQUIRED)
find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()
find_program(MOLD mold)

add_library(baton_options INTERFACE)
target_include_directories(baton_options INTERFACE ${CMAKE_SOURCE_DIR})
# R8 of contracts.md 1.3: a multiply and an add become one rounding only where the code says fma.
target_compile_options(baton_options INTERFACE -Wall -Wextra -Wshadow -Wconversion -Werror -ffp-contract=off)
# g++ 12 sees uninitialized members in moves of std::variant and std::optional that it has inlined (GCC bug 105562 and kin).
target_compile_options(baton_options INTERFACE $<$<CONFIG:Release>:-Wno-maybe-uninitialized>)
if(BATON_SANITIZE)
  target_compile_options(baton_options INTERFACE -fsanitize=${BATON_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(baton_options INTERFACE -fsanitize=${BATON_SANITIZE})
endif()
if(BATON_FUZZ)  # a finding ends the program; g++ is the compiler whose warnings are errors
  target_compile_options(baton_options INTERFACE -fno-sanitize-recover=undefined -Wno-error)
endif()
if(MOLD)
  target_link_options(baton_options INTERFACE $<$<NOT:$<BOOL:$<TARGET_PROPERTY:BATON_BUNDLED>>>:-fuse-ld=mold>)
endif()

# For code that runs once a start or a request, not once a token: half as large. See deploy/bundle.sh.
set(BATON_COLD $<$<CONFIG:Release>:-Os>)

# baton_library(name SOURCES ... [PUBLIC libs...] [PRIVATE libs...]): baton_<name> with alias baton::<name>.
function(baton_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(baton_${name} STATIC ${arg_SOURCES})
  add_library(baton::${name} ALIAS baton_${name})
  target_link_libraries(baton_${name} PUBLIC baton_options ${arg_PUBLIC} PRIVATE ${arg_PRIVATE})
endfunction()

# baton_program(name SOURCES ... LIBS ... [BUNDLED]): an executable in bin/; BUNDLED: `make bundle` packs it.
function(baton_program name)
  cmake_parse_arguments(arg "BUNDLED" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
  target_link_libraries(${name} PRIVATE baton_options ${arg_LIBS})
  if(arg_BUNDLED AND BATON_CUDA)
    # Relative relocations packed: 1 MB less. glibc (2.36) takes GNU ld's, and refuses those of Debian 12's mold.
    set_target_properties(${name} PROPERTIES BATON_BUNDLED ON)
    target_link_options(${name} PRIVATE -fuse-ld=bfd -Wl,-z,pack-relative-relocs)
  endif()
endfunction()

# What the sanitizer runs build: all unit tests, and those of parts with threads of their own (not HTTP:
# TSan does not know the fences of Asio).
add_custom_target(baton_unit_tests)
add_custom_target(baton_threaded_tests)

# baton_test(name SOURCES ... LIBS ... [LABEL unit] [THREADED] [TIMEOUT 60]): one gtest program, one ctest entry.
# Labels: unit (no process, no network), grpc, process (real processes; alone on the machine), golden, sim.
function(baton_test name)
  cmake_parse_arguments(arg "THREADED" "LABEL;TIMEOUT" "SOURCES;LIBS" ${ARGN})
  find_package(GTest REQUIRED)
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE baton_options ${arg_LIBS} GTest::gmock GTest::gtest GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  if(NOT arg_LABEL)
    set(arg_LABEL unit)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  if(BATON_SANITIZE)  # tens of times slower
    math(EXPR arg_TIMEOUT "5 * ${arg_TIMEOUT}")
  endif()
  set(labels ${arg_LABEL})
  if(arg_LABEL STREQUAL unit)
    add_dependencies(baton_unit_tests ${name})
  endif()
  if(arg_THREADED)
    list(APPEND labels threads)
    add_dependencies(baton_threaded_tests ${name})
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${labels}" TIMEOUT ${arg_TIMEOUT})
  if(arg_LABEL STREQUAL process)
    set_tests_properties(${name} PROPERTIES RUN_SERIAL TRUE)
  endif()
endfunction()

include(cmake/cuda.cmake)
