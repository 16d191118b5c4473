# SPDX-License-Identifier: Apache-2.0
# The example evaluate_vit: a vision transformer and 512 images that are shipped, more that fetch_images.sh fetches.
add_executable(evaluate_vit evaluate_vit.cpp)
target_link_libraries(evaluate_vit PRIVATE blockpack CLI11::CLI11 fmt::fmt-header-only nlohmann_json::nlohmann_json
  blockpack_warnings)
target_compile_definitions(evaluate_vit PRIVATE BLOCKPACK_EXAMPLE_FVIT="${CMAKE_CURRENT_SOURCE_DIR}/data/fvit")
add_test(NAME example.evaluate_vit COMMAND evaluate_vit)
set_tests_properties(example.evaluate_vit PROPERTIES LABELS "example;once" TIMEOUT 600
  PASS_REGULAR_EXPRESSION "Accuracy on the 512 images: 0.88.*removal by entropy 0, 2, 1")
