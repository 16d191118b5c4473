# SPDX-License-Identifier: Apache-2.0
# The example compress_model: several files, the embedded model and the report page.
add_executable(compress_model compress_model.cpp compress_model/calibrate.cpp compress_model/commands.cpp
  compress_model/demo.cpp compress_model/families.cpp compress_model/inspect.cpp compress_model/quality.cpp)
target_include_directories(compress_model PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(compress_model PRIVATE blockpack CLI11::CLI11 Eigen3::Eigen fmt::fmt-header-only nlohmann_json::nlohmann_json
  blockpack_warnings)
target_compile_definitions(compress_model PRIVATE BLOCKPACK_EXAMPLE_DATA="${CMAKE_CURRENT_SOURCE_DIR}/data/bytelm"
  BLOCKPACK_EXAMPLE_REPORT="${CMAKE_CURRENT_SOURCE_DIR}/report")

if(BLOCKPACK_BUILD_TESTS)
  # The demo writes the report, a browser renders it; 77 means that there is no browser here.
  set(report ${CMAKE_CURRENT_BINARY_DIR}/report.html)
  set(windows 128)
  if(CMAKE_CROSSCOMPILING OR BLOCKPACK_SANITIZE OR CMAKE_BUILD_TYPE STREQUAL "Debug")
    set(windows 2)
  endif()
  add_test(NAME example.demo COMMAND compress_model demo --windows ${windows} --report ${report})
  set_tests_properties(example.demo PROPERTIES LABELS "example;once" FIXTURES_SETUP blockpack_report)
  add_test(NAME example.report COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/report/check.sh ${report})
  set_tests_properties(example.report PROPERTIES LABELS "example;once" FIXTURES_REQUIRED blockpack_report SKIP_RETURN_CODE 77
    TIMEOUT 300)
endif()
