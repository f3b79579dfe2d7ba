# The CUDA back end, on when BATON_CUDA is. Needs no GPU to build.
#
# BATON_CUDA_ROOT is a CUDA 13.0 toolkit: bin/nvcc, include, lib. A system toolkit, or one that
# deploy/cuda.sh makes from wheels (`make cuda`). Nothing of the driver is linked: a program that
# contains the back end starts on a machine without GPU and says there that it has none.
option(BATON_CUDA "Build kernels/cuda" OFF)
set(BATON_CUDA_ROOT "/usr/local/cuda" CACHE PATH "CUDA 13.0 toolkit")
# Beside Hopper (90a), for the operators that do not need its matrix instructions: 100a-real;120-real (30 more CPU seconds).
# Only compiled: no GPU of these runs a whole step, and CudaDevice names the operators it lacks.
set(BATON_CUDA_MORE_ARCHITECTURES "" CACHE STRING "Architectures to compile the general CUDA kernels for, beside 90a")
if(NOT BATON_CUDA)
  return()
endif()

if(NOT EXISTS ${BATON_CUDA_ROOT}/bin/nvcc)
  message(FATAL_ERROR "No ${BATON_CUDA_ROOT}/bin/nvcc: set BATON_CUDA_ROOT to a CUDA 13.0 toolkit (deploy/cuda.sh makes one)")
endif()
set(CMAKE_CUDA_COMPILER ${BATON_CUDA_ROOT}/bin/nvcc CACHE FILEPATH "nvcc")
set(CMAKE_CUDA_ARCHITECTURES 90a-real)
set(CMAKE_CUDA_STANDARD_REQUIRED OFF)
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.0)
  message(FATAL_ERROR "CUDA ${CMAKE_CUDA_COMPILER_VERSION} in ${BATON_CUDA_ROOT}: 13.0 is needed")
endif()

# CMake 3.25 knows no C++20 for nvcc. R8 of contracts.md 1.3: no contraction, no fast math.
add_library(baton_cuda_options INTERFACE)
target_include_directories(baton_cuda_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(baton_cuda_options INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 -O3 -fmad=false --compress-mode=size -Werror=all-warnings
    -Xcompiler=-Wall,-Wextra,-Werror,-ffp-contract=off>)

# Programs for a GPU machine carry what its distribution lacks: the targets of these packages are made
# here once for all folders and pointed at the static libraries, where Debian has them.
set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON)
find_package(absl REQUIRED)
find_package(gRPC REQUIRED)
find_package(yaml-cpp REQUIRED)
set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL OFF)
get_property(imported DIRECTORY PROPERTY IMPORTED_TARGETS)
foreach(target IN LISTS imported)
  foreach(property IMPORTED_LOCATION IMPORTED_LOCATION_NONE IMPORTED_LOCATION_RELEASE)
    get_target_property(location ${target} ${property})
    if(target MATCHES "^(absl|gRPC|protobuf|re2|c-ares)::|^yaml-cpp$" AND location MATCHES "\\.so")
      string(REGEX REPLACE "\\.so[.0-9]*$" ".a" static_location ${location})
      if(EXISTS ${static_location})
        set_target_properties(${target} PROPERTIES ${property} ${static_location})
      endif()
    endif()
  endforeach()
endforeach()

# Of ICU the router needs the classes of characters: a page of tables within libicuuc.a, none of libicudata's 31 MB.
find_library(BATON_ICU_STATIC libicuuc.a)
if(BATON_ICU_STATIC)
  set(ICU_UC_LIBRARY_RELEASE ${BATON_ICU_STATIC} CACHE FILEPATH "ICU's static library" FORCE)
endif()

# What nothing refers to stays out of the programs: most of the static libraries' sections.
target_link_options(baton_options INTERFACE -Wl,--gc-sections)

# Libraries that are still shared are looked for beside the program too, in ../lib.
set(CMAKE_BUILD_RPATH_USE_ORIGIN ON)
set(CMAKE_BUILD_RPATH "$ORIGIN/../lib")

# Tests and benchmarks for a GPU machine.
add_custom_target(baton_cuda_programs)

# baton_cuda_program(name SOURCES ... LIBS ...): runs on any machine with glibc, libstdc++ and OpenSSL 3.
function(baton_cuda_program name)
  baton_program(${name} ${ARGN})
  baton_cuda_link(${name})
endfunction()

# baton_cuda_test(name SOURCES ... LIBS ...): a test that needs a GPU and skips itself without one;
# label gpu.
function(baton_cuda_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS" ${ARGN})
  baton_test(${name} SOURCES ${arg_SOURCES} LIBS ${arg_LIBS} LABEL gpu TIMEOUT 600)
  baton_cuda_link(${name})
endfunction()

function(baton_cuda_link name)
  target_include_directories(${name} SYSTEM PRIVATE ${BATON_CUDA_ROOT}/include)
  # The standard library first, so that no other shared library is kept for what it also defines.
  target_link_options(${name} PRIVATE -Wl,--as-needed -lstdc++)
  add_dependencies(baton_cuda_programs ${name})
endfunction()
