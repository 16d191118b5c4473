// SPDX-License-Identifier: Apache-2.0

#include <fstream>
#include <set>
#include <string>

#include "quant/byte_hashes.hpp"
#include "support/catch.hpp"

using namespace blockpack;

TEST_CASE("every scheme gives the bytes it always gave", "[quant][golden]") {
  std::ifstream file(BLOCKPACK_GOLDEN_DEFAULT "/quantization/bytes.txt");
  std::set<std::string> expected;
  for (std::string line; std::getline(file, line);) expected.insert(line);
  std::size_t count = 0;
  test::for_each_hash_line([&](const std::string& line) {
    CAPTURE(line);
    CHECK(expected.count(line) == 1);
    ++count;
  });
  REQUIRE(count == expected.size());
  REQUIRE(count > 300);
}
