# SPDX-License-Identifier: Apache-2.0
# ISA flags are per file (src/kernels/<family>/<family>_<level>.cpp) and probed: a compiler without a flag drops the level.
include(CheckCXXCompilerFlag)

# blockpack_add_isa_level(<name> <flag>...) compiles every src/kernels/*/*_<name>.cpp with the flags.
function(blockpack_add_isa_level name)
  foreach(flag IN LISTS ARGN)
    string(MAKE_C_IDENTIFIER "BLOCKPACK_HAS_${flag}" probe)
    check_cxx_compiler_flag(${flag} ${probe})
    if(NOT ${probe})
      message(STATUS "blockpack: ${name} left out, the compiler lacks ${flag}")
      return()
    endif()
  endforeach()
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/kernels/*/*_${name}.cpp)
  target_sources(blockpack PRIVATE ${sources})
  set_property(TARGET blockpack APPEND PROPERTY BLOCKPACK_ISA_SOURCES ${sources})
  set_source_files_properties(${sources} TARGET_DIRECTORY blockpack PROPERTIES
    # g++ 12 takes its own AVX-512 intrinsics for uses of uninitialized registers.
    # Checked at every address they form, they take clang minutes each.
    COMPILE_OPTIONS "${ARGN};-ffp-contract=off;-fno-exceptions;$<$<CXX_COMPILER_ID:Clang>:-fno-sanitize=object-size,null>;$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>;$<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized>")
  string(TOUPPER ${name} upper)
  # Of the two files that ask: the objects of the others are the same with and without a level.
  set_property(SOURCE ${PROJECT_SOURCE_DIR}/src/dispatch.cpp ${PROJECT_SOURCE_DIR}/src/kernel_table.cpp
    TARGET_DIRECTORY blockpack APPEND PROPERTY COMPILE_DEFINITIONS BLOCKPACK_WITH_${upper}=1)
endfunction()

function(blockpack_add_isa_levels)
  if(BLOCKPACK_SCALAR_ONLY)
    return()
  endif()
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(avx2 -mavx2 -mfma -mf16c)
    set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd)
    set(avx512vnni ${avx512} -mavx512vnni)
    blockpack_add_isa_level(avx2 ${avx2})
    blockpack_add_isa_level(avx512 ${avx512})
    blockpack_add_isa_level(avx512vnni ${avx512vnni})
    # Features: slots that need one bit more than their level live in files of their own.
    blockpack_add_isa_level(avx512bf16 ${avx512vnni} -mavx512bf16)
    blockpack_add_isa_level(avx512vbmi2 ${avx512vnni} -mavx512bf16 -mavx512vbmi2)
    blockpack_add_isa_level(amx ${avx512vnni} -mavx512bf16 -mavx512vbmi -mavx512vbmi2 -mamx-tile -mamx-int8 -mamx-bf16)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
    blockpack_add_isa_level(neon -march=armv8-a)
    blockpack_add_isa_level(neon_dot -march=armv8.2-a+dotprod)
    blockpack_add_isa_level(neon_bf16 -march=armv8.2-a+dotprod+bf16)
  endif()
endfunction()
