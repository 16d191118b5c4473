# SPDX-License-Identifier: Apache-2.0
# Toolchain: Debian's cross compiler for 64-bit Arm; tests and examples run under qemu-user. The emulated CPU comes from
# the environment: QEMU_CPU=max (all extensions) or cortex-a53 (no dotprod).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
find_program(BLOCKPACK_QEMU_AARCH64 NAMES qemu-aarch64 qemu-aarch64-static)
if(BLOCKPACK_QEMU_AARCH64)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${BLOCKPACK_QEMU_AARCH64} -L /usr/aarch64-linux-gnu)
endif()
