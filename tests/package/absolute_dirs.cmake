# SPDX-License-Identifier: Apache-2.0
# Distributions configure with absolute folders; blockpack.pc and the CMake package must then name them as they are.

set(lib /opt/blockpack-elsewhere/lib)
set(include /opt/blockpack-elsewhere/include)
execute_process(COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK}/build -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${CXX}
  -DCMAKE_INSTALL_LIBDIR=${lib} -DCMAKE_INSTALL_INCLUDEDIR=${include}
  -DBLOCKPACK_SCALAR_ONLY=ON -DBLOCKPACK_BUILD_TESTS=OFF -DBLOCKPACK_BUILD_EXAMPLES=OFF
  -DBLOCKPACK_BUILD_BENCHMARKS=OFF OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
file(READ ${WORK}/build/blockpack.pc pc)
foreach(line "libdir=${lib}" "includedir=${include}")
  string(FIND "${pc}" "${line}\n" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "blockpack.pc lacks the line ${line}:\n${pc}")
  endif()
endforeach()
