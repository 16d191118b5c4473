# SPDX-License-Identifier: Apache-2.0
# Packages of the build. fmt and nlohmann_json are used header-only inside src and never by public headers; Eigen inside src
# by the fits of structured schemes, and by public headers of fits.

# blockpack_find_headers(<target> <package> <version> <header> [<include suffix>])
#
# Makes the header-only <target> available: from the package's config file where one is found, otherwise (cross builds:
# the files of Debian's packages for the build machine) from its headers. /usr/include of the build machine must not
# come before the headers of the cross compiler, so the package's folder is linked into the build tree by itself.
function(blockpack_find_headers target package version header)
  if(TARGET ${target})
    return()
  endif()
  if(NOT CMAKE_CROSSCOMPILING)
    find_package(${package} ${version} QUIET CONFIG)
    if(TARGET ${target})
      set(${package}_VERSION ${${package}_VERSION} PARENT_SCOPE)
      return()
    endif()
  endif()
  find_path(BLOCKPACK_${package}_INCLUDE ${header} PATHS /usr/include /usr/local/include PATH_SUFFIXES ${ARGN}
    NO_CMAKE_FIND_ROOT_PATH)
  mark_as_advanced(BLOCKPACK_${package}_INCLUDE)
  if(NOT BLOCKPACK_${package}_INCLUDE)
    message(FATAL_ERROR "blockpack: ${package} ${version} or newer is needed (no config file, no ${header})")
  endif()
  set(folder ${BLOCKPACK_${package}_INCLUDE})
  if(CMAKE_CROSSCOMPILING AND NOT ARGN)
    string(REGEX MATCH "^[^/]+" top ${header})
    file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/cross-include)
    file(CREATE_LINK ${folder}/${top} ${PROJECT_BINARY_DIR}/cross-include/${top} SYMBOLIC)
    set(folder ${PROJECT_BINARY_DIR}/cross-include)
  endif()
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} INTERFACE ${folder})
  message(STATUS "blockpack: ${package} found by its headers")
endfunction()

blockpack_find_headers(fmt::fmt-header-only fmt 9 fmt/core.h)
set_property(TARGET fmt::fmt-header-only APPEND PROPERTY INTERFACE_COMPILE_DEFINITIONS FMT_HEADER_ONLY=1)
blockpack_find_headers(nlohmann_json::nlohmann_json nlohmann_json 3.11 nlohmann/json.hpp)
blockpack_find_headers(Eigen3::Eigen Eigen3 3.4 Eigen/Core eigen3)
if(BLOCKPACK_OPENMP)
  find_package(OpenMP COMPONENTS CXX)
endif()

if(BLOCKPACK_BUILD_TESTS OR BLOCKPACK_BUILD_EXAMPLES OR BLOCKPACK_BUILD_BENCHMARKS)
  blockpack_find_headers(xtl xtl 0.7 xtl/xsequence.hpp)
  blockpack_find_headers(xtensor xtensor 0.24 xtensor/xtensor.hpp)
  if(CMAKE_CROSSCOMPILING)
    target_link_libraries(xtensor INTERFACE xtl)
  endif()
endif()
if(BLOCKPACK_BUILD_TESTS)
  blockpack_find_headers(Catch2::Catch2 Catch2 2.13 catch2/catch.hpp)
endif()
if(BLOCKPACK_BUILD_EXAMPLES)
  blockpack_find_headers(CLI11::CLI11 CLI11 2.1 CLI/CLI.hpp)
endif()
