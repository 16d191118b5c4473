// SPDX-License-Identifier: Apache-2.0
// Reading in plain C++, for CPUs without the levels below.
#include <cstring>

#include "kernels/limit_loops.hpp"

namespace bench {
namespace {

struct Vector {
  std::uint64_t lane[4];
};
Vector load(const unsigned char* p) noexcept {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
Vector add(Vector a, const Vector& b) noexcept {
  for (int i = 0; i < 4; ++i) a.lane[i] += b.lane[i];
  return a;
}
std::uint64_t total(const Vector& v) noexcept { return v.lane[0] + v.lane[1] + v.lane[2] + v.lane[3]; }
#include "kernels/read_streams.inc"

}  // namespace

std::uint64_t read_generic(const void* data, std::size_t bytes, int streams) noexcept {
  return read_any(data, bytes, streams);
}

}  // namespace bench
