# SPDX-License-Identifier: Apache-2.0
# The example evaluate_encoder. Its model is fetched by fetch_model.sh; without one it says so.
add_executable(evaluate_encoder evaluate_encoder.cpp)
target_link_libraries(evaluate_encoder PRIVATE blockpack CLI11::CLI11 fmt::fmt-header-only nlohmann_json::nlohmann_json
  blockpack_warnings)
add_test(NAME example.evaluate_encoder COMMAND evaluate_encoder ${CMAKE_CURRENT_BINARY_DIR}/no_model)
set_tests_properties(example.evaluate_encoder PROPERTIES LABELS "example;once"
  PASS_REGULAR_EXPRESSION "^evaluate_encoder: no model.safetensors in .*fetch_model.sh")
