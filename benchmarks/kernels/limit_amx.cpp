// SPDX-License-Identifier: Apache-2.0
// Limit of the amx level: tile products on registers, four independent sums (a product takes 16 cycles and has a
// latency of about 52). Configuration, loads, loop and release are one asm statement: GCC 12's own intrinsics tell
// the optimiser too little about memory. Operands are not zero, for the clock depends on them.
#include "kernels/limit_loops.hpp"

namespace bench {
namespace {

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

struct alignas(64) Tile {
  std::uint16_t value[16][32];
};

#define BENCH_TILE_LOOP(product)                                                                   \
  asm volatile(                                                                                    \
      "ldtilecfg %[config]\n\t"                                                                    \
      "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"               \
      "tileloadd (%[tile],%[stride],1), %%tmm4\n\ttileloadd (%[tile],%[stride],1), %%tmm5\n\t"     \
      "tileloadd (%[tile],%[stride],1), %%tmm6\n\ttileloadd (%[tile],%[stride],1), %%tmm7\n\t"     \
      ".p2align 5\n"                                                                               \
      "1:\n\t" product " %%tmm6, %%tmm4, %%tmm0\n\t" product " %%tmm7, %%tmm4, %%tmm1\n\t" product \
      " %%tmm6, %%tmm5, %%tmm2\n\t" product                                                        \
      " %%tmm7, %%tmm5, %%tmm3\n\t"                                                                \
      "dec %[n]\n\t"                                                                               \
      "jnz 1b\n\t"                                                                                 \
      "tilerelease"                                                                                \
      : [n] "+r"(n)                                                                                \
      : [config] "m"(config), [tile] "r"(&tile), [stride] "r"(std::int64_t{64}), "m"(tile)         \
      : "cc", "memory")

}  // namespace

double tiles_amx_bf16(std::int64_t steps) noexcept {
  const TileConfig config;
  Tile tile;
  for (int i = 0; i < 16; ++i)  // bf16 of about +-1, signs mixed
    for (int j = 0; j < 32; ++j)
      tile.value[i][j] = static_cast<std::uint16_t>(0x3f80 + ((i * 7 + j * 3) & 31) + ((i ^ j) & 1) * 0x8000);
  std::int64_t n = steps;
  BENCH_TILE_LOOP("tdpbf16ps");
  return static_cast<double>(steps) * 4 * 16 * 16 * 32 * 2;
}

double tiles_amx_int8(std::int64_t steps) noexcept {
  const TileConfig config;
  Tile tile;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 32; ++j) tile.value[i][j] = static_cast<std::uint16_t>((i * 32 + j) * 40503);
  std::int64_t n = steps;
  BENCH_TILE_LOOP("tdpbssd");
  return static_cast<double>(steps) * 4 * 16 * 16 * 64 * 2;
}

}  // namespace bench
