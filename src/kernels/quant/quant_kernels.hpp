// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the quant family: rows of shared-exponent formats (block floating point, MX) and groups of integers, to
/// codes and back. Installers are called weakest level first, each overwrites what it does better.
///
/// Codes and values are bit-identical on every level. What encoders leave to integer arithmetic is exact; a group's
/// codes need one true division each.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

/// A shared-exponent format in plain numbers. Rounding is half to even; other roundings and scale searches do not reach
/// the kernels. `fixed` elements are two's complement (BFP, MXINT), `small` elements sign and magnitude (MXFP).
struct BlockCode {
  std::uint32_t block;          ///< 16, 32, 64 or 128
  std::uint32_t bits;           ///< stored bits of a code: 4, 6 or 8
  std::uint32_t mantissa_bits;  ///< of small floats; of fixed elements the bits after the point, bits - 2
  std::uint32_t bias;           ///< of small floats
  std::uint32_t max_code;       ///< magnitude code of the largest value
  std::uint32_t infinity_code;  ///< magnitude code of infinity, 0x100 where there is none; other codes above
                                ///< max_code are NaN
  std::uint32_t max_exponent;   ///< the scale byte is the exponent field of the block's maximum less this …
  std::uint32_t max_fraction;   ///< … plus 1, up to 254 - max_exponent, where its fraction is above this
  bool asymmetric;              ///< fixed: below scale byte 254, -max_code - 1 is used where it does not grow the error
  const float* factors;         ///< [256] value of a scale byte times the unit of a code; byte 255 means NaN
  const void* self;             ///< for the two below
  /// The reference for one whole block: encoders call it for blocks that hold NaN or infinity or whose maximum is below
  /// 2^-80, the scalar level for all.
  void (*encode_block)(const void* self, const float* w, std::uint8_t* scale, std::uint8_t* codes) noexcept;
  void (*decode_block)(const void* self, std::uint8_t scale, const std::uint8_t* codes, float* dst) noexcept;
};

/// Exponent fields from here on take the fast path: then subnormal weights of the block round to code 0.
inline constexpr std::uint32_t kFastExponentField = 47;
/// Scale bytes from here on give no value below 2^-126, so that bf16 is the upper half of float32.
inline constexpr std::uint32_t kExactBf16Scale = 32;

/// The grid of one group.
struct GroupCode {
  float scale;         ///< divides; not 0: infinity where every code is the zero point
  float zero;          ///< zero point
  float low;           ///< smallest code
  float high;          ///< largest code
  std::uint32_t bits;  ///< 2, 3, 4 or 8
};

/// Codes of 4 bits over a table of levels: x = w * multiplier, code = the number of thresholds strictly below x, or
/// below |x| with the sign of x in bit 3.
struct TableThresholds {
  const float* thresholds;  ///< [15], ascending; the first 7 count for signed_magnitude
  float multiplier;
  bool signed_magnitude;
};

/// A row of `cols` weights; the last block may be short (the missing weights are 0). Reads cols floats, writes
/// ceil(cols / block) scales and as many whole blocks of codes.
using EncodeBlocks = void (*)(const float* w, std::size_t cols, const BlockCode& f, std::uint8_t* scales,
                              std::uint8_t* codes) noexcept;
/// `count` values from a block boundary on; the blocks are there whole.
template <class T>
using DecodeBlocks = void (*)(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count,
                              const BlockCode& f, T* dst) noexcept;

/// Rows that are rounded side by side, and columns at most: what is in flight stays in the first-level cache.
inline constexpr std::size_t kRoundRows = 16;
inline constexpr std::size_t kRoundColumns = 64;

/// The grids of kRoundRows rows in one group. Integers from a to b: the value is scale * nearest(w / scale); scale is
/// not 0. Units of a table: scale * nearest(u) * b, u = w * a, or w / scale where a is 0 and scale is not. Both of what
/// w is above `offset`, which is then added.
struct RowGrids {
  float scale[kRoundRows], a[kRoundRows], b[kRoundRows], offset[kRoundRows];
};

/// Columns rounded one after the other, the last one first: q = the nearest value, e = (q - w) / updates[s][s], and
/// w[t] += e * updates[s][t] for the columns t before s. With `kept`, q = 0 where the bit of the column is 0; with `of`
/// the bits are written: from the last column on, of every `of` columns the `keep` of largest |w / updates[s][s]| as
/// they are when the first of them has its turn, the later column of two that are equal. kRoundColumns columns at most
/// stand for whole groups, but for those of the first columns.
struct RoundColumns {
  float* values;  ///< [rows][columns]; weights, and errors e afterwards
  std::size_t values_stride;
  float* chosen;  ///< [rows][columns]
  std::size_t chosen_stride;
  std::size_t rows;              ///< 1 … kRoundRows
  std::size_t columns;           ///< 1 … kRoundColumns
  const float* updates;          ///< [columns][kRoundColumns]
  const RowGrids* const* grids;  ///< of each column; null: q = w
  const float* units;            ///< ascending, thresholds[i] <= u going to units[i + 1]; null: integers, ties to even
  const float* thresholds;
  std::size_t thresholds_count;
  std::uint64_t* kept;  ///< of each row; bit s is column s; null: all are kept
  std::size_t keep, of;
};

/// Columns and rows of a tile of XᵀX.
inline constexpr std::size_t kGramTile = 32;

/// sums[i][j] += Σ x[t][left + i] * x[t][right + j]. Columns that are not there count as 0.
struct GramTile {
  const float* left;  ///< x[0][left]
  const float* right;
  std::size_t stride;  ///< of x
  std::size_t tokens;
  std::size_t left_columns, right_columns;  ///< 1 … kGramTile
  double* sums;                             ///< [kGramTile][kGramTile]
};

struct QuantKernels {
  Slot<EncodeBlocks> encode_small;
  Slot<EncodeBlocks> encode_fixed;
  Slot<DecodeBlocks<float>> decode_f32_small;
  Slot<DecodeBlocks<float>> decode_f32_fixed;
  Slot<DecodeBlocks<std::uint16_t>> decode_bf16_small;  ///< bf16 bits, half to even
  Slot<DecodeBlocks<std::uint16_t>> decode_bf16_fixed;
  /// min(0, smallest) and max(0, largest).
  Slot<void (*)(const float* w, std::size_t n, float* low, float* high) noexcept> group_range;
  /// clip(round_half_even(w / scale) + zero, low, high), packed as docs/formats/group_int.md says; missing codes of the
  /// last byte (3 bits: of the last 32) are the zero point.
  Slot<void (*)(const float* w, std::size_t n, const GroupCode& g, std::uint8_t* codes) noexcept> group_encode;
  /// scale * (code - zero); reads no byte that holds none of the n codes (3 bits: whole runs of 32).
  Slot<void (*)(const std::uint8_t* codes, std::size_t n, const GroupCode& g, float* dst) noexcept> group_decode;
  /// Bits of the largest magnitude.
  Slot<std::uint32_t (*)(const float* w, std::size_t n) noexcept> table_absmax;
  /// An even number of codes, two to a byte, the first in the low nibble.
  Slot<void (*)(const float* w, std::size_t n, const TableThresholds& t, std::uint8_t* codes) noexcept> table_encode;
  /// levels[code] * first * second, in this order; levels has 16. Reads ceil(n / 2) bytes.
  Slot<void (*)(const std::uint8_t* codes, std::size_t n, const float* levels, float first, float second,
                float* dst) noexcept>
      table_decode;
  /// Whole blocks of 16 in NVFP4, to a scale and 8 bytes of codes each: no NaN, infinity as the largest float; `unit`
  /// is Nvfp4::encode_scale(). The same bytes on every level.
  Slot<void (*)(const float* w, std::size_t blocks, float unit, bool four_over_six, std::uint8_t* scales,
                std::uint8_t* codes) noexcept>
      nvfp4_encode;
  /// The same bits on every level.
  Slot<void (*)(const RoundColumns& p) noexcept> round_columns;
  /// The same bits on every level: those of GramMatrix (core/calibration.hpp).
  Slot<void (*)(const GramTile& p) noexcept> gram_tile;
};

/// Calls visit("name", slot) for every slot of the family: kernel_report() and the tests walk the table with it.
template <class Visitor>
void visit_slots(const QuantKernels& k, Visitor&& visit) {
  visit("encode_small", k.encode_small);
  visit("encode_fixed", k.encode_fixed);
  visit("decode_f32_small", k.decode_f32_small);
  visit("decode_f32_fixed", k.decode_f32_fixed);
  visit("decode_bf16_small", k.decode_bf16_small);
  visit("decode_bf16_fixed", k.decode_bf16_fixed);
  visit("group_range", k.group_range);
  visit("group_encode", k.group_encode);
  visit("group_decode", k.group_decode);
  visit("table_absmax", k.table_absmax);
  visit("table_encode", k.table_encode);
  visit("table_decode", k.table_decode);
  visit("nvfp4_encode", k.nvfp4_encode);
  visit("round_columns", k.round_columns);
  visit("gram_tile", k.gram_tile);
}

void install_quant_scalar(QuantKernels& t, Features features) noexcept;
void install_quant_avx2(QuantKernels& t, Features features) noexcept;
void install_quant_avx512(QuantKernels& t, Features features) noexcept;
void install_quant_neon(QuantKernels& t, Features features) noexcept;

/// The table slots of a level, which have files of their own; the installers above call them.
void install_table_scalar(QuantKernels& t) noexcept;
void install_table_avx2(QuantKernels& t) noexcept;
void install_table_avx512(QuantKernels& t) noexcept;
void install_table_neon(QuantKernels& t) noexcept;

/// The slot of NVFP4 rows. The scalar level's four lanes are what NEON has, here and below.
void install_nvfp4_scalar(QuantKernels& t) noexcept;
void install_nvfp4_avx2(QuantKernels& t) noexcept;
void install_nvfp4_avx512(QuantKernels& t) noexcept;

/// The slot of rounding algorithms.
void install_rounding_scalar(QuantKernels& t) noexcept;
void install_rounding_avx2(QuantKernels& t) noexcept;
void install_rounding_avx512(QuantKernels& t) noexcept;

/// The slot of calibration.
void install_gram_scalar(QuantKernels& t) noexcept;
void install_gram_avx2(QuantKernels& t) noexcept;
void install_gram_avx512(QuantKernels& t) noexcept;
void install_gram_neon(QuantKernels& t) noexcept;

}  // namespace blockpack::kernels
