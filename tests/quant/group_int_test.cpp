// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "blockpack/quant.hpp"
#include "quant/rows.hpp"
#include "quant/weights.hpp"
#include "support/catch.hpp"

namespace {

using namespace blockpack;
using test::round_trip;

constexpr GroupGrid kGrids[] = {GroupGrid::signed_max, GroupGrid::half_step, GroupGrid::max_abs, GroupGrid::asymmetric};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> group_with(std::initializer_list<float> values, std::size_t size = 32) {
  std::vector<float> group(values);
  group.resize(size, 0.0f);
  return group;
}

test::Stored stored_row(const GroupInt& format, const std::vector<float>& w, NonFinite policy = NonFinite::reject) {
  EncodeOptions options;
  options.non_finite = policy;
  return test::encode_matrix(format, MatrixView<const float>(w.data(), 1, static_cast<index_t>(w.size())), options);
}

float scale_of(const test::Stored& stored, std::size_t g = 0) {
  return static_cast<float>(fp16::from_bits(static_cast<std::uint16_t>(
      std::to_integer<int>(stored[0][2 * g]) | (std::to_integer<int>(stored[0][2 * g + 1]) << 8))));
}

}  // namespace

TEST_CASE("the four grids of 4 bits by hand", "[quant][format]") {
  const std::vector<float> w = group_with({8.0f, -4.0f, 1.0f});
  const GroupParameters ggml = GroupInt{4, 32}.fit(w);
  REQUIRE(ggml.scale == -1.0f);  // 8 / -8
  REQUIRE(round_trip(GroupInt{4, 32}, w) == w);
  REQUIRE(std::to_integer<int>(stored_row(GroupInt{4, 32}, w)[1][0]) == 0xc0);  // codes 0 and 12

  const GroupParameters half = GroupInt{4, 32, GroupGrid::half_step}.fit(w);
  REQUIRE(half.scale == 16.0f / 15.0f);
  REQUIRE(half.zero_point == 8);
  const GroupParameters max_abs = GroupInt{4, 32, GroupGrid::max_abs}.fit(w);
  REQUIRE(max_abs.scale == 8.0f / 7.0f);
  const GroupParameters asymmetric = GroupInt{4, 32, GroupGrid::asymmetric}.fit(w);
  REQUIRE(asymmetric.scale == 12.0f / 15.0f);
  REQUIRE(asymmetric.zero_point == 5);

  // A half_step group without negative weights leaves its lower half unused, as the reference does.
  REQUIRE(GroupInt{4, 32, GroupGrid::half_step}.fit(group_with({8.0f, 1.0f})).scale == 8.0f / 15.0f);
  // Equal magnitudes of both signs: the first one counts.
  REQUIRE(GroupInt{4, 32}.fit(group_with({0.5f, -8.0f, 8.0f})).scale == 1.0f);
  REQUIRE(GroupInt{4, 32}.fit(group_with({0.5f, 8.0f, -8.0f})).scale == -1.0f);
}

TEST_CASE("codes are the nearest levels of the scale as stored", "[quant][format]") {
  for (const int bits : {2, 3, 4, 8}) {
    for (const GroupGrid grid : kGrids) {
      const GroupInt format{bits, 64, grid};
      const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 640, 11);
      const test::Stored stored = stored_row(format, w);
      const std::vector<float> decoded = round_trip(format, w);
      for (std::size_t i = 0; i < w.size(); ++i) {
        const std::size_t g = i / 64;
        const double scale = static_cast<double>(scale_of(stored, g));
        const double zero = grid == GroupGrid::asymmetric
                                ? detail::load_zero_point(reinterpret_cast<const std::uint8_t*>(stored[1].data()),
                                                          static_cast<index_t>(g), bits)
                                : std::ldexp(1.0, bits - 1);
        const double low = grid == GroupGrid::max_abs ? 1 : 0;
        const double t = static_cast<double>(w[i] / static_cast<float>(scale));
        const double q = std::min(std::max(std::nearbyint(t) + zero, low), std::ldexp(1.0, bits) - 1);
        CAPTURE(format.scheme(), i, w[i]);
        REQUIRE(static_cast<double>(decoded[i]) == scale * (q - zero));
      }
    }
  }
}

TEST_CASE("a group of zeros decodes to zeros", "[quant][format]") {
  for (const int bits : {2, 3, 4, 8}) {
    for (const GroupGrid grid : kGrids) {
      const GroupInt format{bits, 32, grid};
      const std::vector<float> w(32, -0.0f);
      const test::Stored stored = stored_row(format, w);
      const bool reference = grid == GroupGrid::half_step || grid == GroupGrid::asymmetric;
      CAPTURE(format.scheme());
      REQUIRE(scale_of(stored) ==
              (reference ? static_cast<float>(fp16(2.0f / static_cast<float>(format.max_code()))) : 0.0f));
      for (const float v : round_trip(format, w)) REQUIRE(std::bit_cast<std::uint32_t>(v) == 0);
    }
  }
}

TEST_CASE("scales outside fp16", "[quant][format]") {
  for (const int bits : {2, 3, 4, 8}) {
    for (const GroupGrid grid : kGrids) {
      const GroupInt format{bits, 32, grid};
      CAPTURE(format.scheme());
      // Too large: refused, or 65504 with the codes that follow.
      const float big = 3.0e38f;
      const std::vector<float> w = group_with({big, -big, 1.0f, 100000.0f});
      try {
        stored_row(format, w);
        FAIL("accepted");
      } catch (const ValueError& e) {
        REQUIRE(std::string(e.what()).find("row 0, column 0") != std::string::npos);
      }
      const std::vector<float> clamped = round_trip(format, w, NonFinite::saturate);
      REQUIRE(std::abs(scale_of(stored_row(format, w, NonFinite::saturate))) == 65504.0f);
      REQUIRE(clamped[0] > 0.0f);
      REQUIRE(clamped[1] < 0.0f);
      REQUIRE(clamped[2] == 0.0f);
      if (bits > 2) REQUIRE(clamped[3] == 2 * 65504.0f);
      const std::vector<float> infinite = group_with({kInfinity, -kInfinity, 1.0f, 100000.0f});
      REQUIRE(round_trip(format, infinite, NonFinite::saturate) == clamped);

      // Too small: every code is that of 0.
      const std::vector<float> tiny = group_with({0x1p-40f, -0x1p-41f, 0x1p-149f});
      REQUIRE(scale_of(stored_row(format, tiny)) == 0.0f);
      for (const float v : round_trip(format, tiny)) REQUIRE(v == 0.0f);
      // The smallest scale: no inverse is formed, so none overflows.
      const std::vector<float> small = group_with({0x1p-24f, -0x1p-24f});
      for (const float v : round_trip(format, small)) REQUIRE(std::isfinite(v));
      const std::vector<float> subnormal = group_with({std::numeric_limits<float>::denorm_min()});
      for (const float v : round_trip(format, subnormal)) REQUIRE(v == 0.0f);
    }
  }
}

TEST_CASE("group integers take infinity and NaN as the policy says", "[quant][format]") {
  std::vector<float> w(64, 1.0f);
  w[40] = std::numeric_limits<float>::quiet_NaN();
  const MatrixView<const float> view(w.data(), 1, 64);
  const GroupInt format{4, 32};
  REQUIRE_THROWS_AS(test::encode_matrix(format, view), ValueError);
  EncodeOptions options;
  options.non_finite = NonFinite::propagate;
  REQUIRE_THROWS_AS(test::encode_matrix(format, view, options), UnsupportedError);
  const std::vector<float> got = round_trip(format, w, NonFinite::saturate);
  REQUIRE(got[40] == 0.0f);
  REQUIRE(got[41] == 1.0f);
}

TEST_CASE("packed codes of 2, 3, 4 and 8 bits", "[quant][format]") {
  std::vector<std::int32_t> codes(32);
  for (std::int32_t i = 0; i < 32; ++i) codes[static_cast<std::size_t>(i)] = (i * 5 + 3) & 7;
  std::vector<std::uint8_t> bytes(12);
  GroupInt{3, 32}.pack(codes, 0, bytes.data());
  for (std::size_t p = 0; p < 3; ++p) {
    std::uint32_t plane = 0;
    for (std::size_t i = 0; i < 4; ++i) plane |= static_cast<std::uint32_t>(bytes[4 * p + i]) << (8 * i);
    for (std::size_t j = 0; j < 32; ++j)
      REQUIRE(((plane >> j) & 1u) == ((static_cast<std::uint32_t>(codes[j]) >> p) & 1u));
  }
  for (const int bits : {2, 3, 4, 8}) {
    const GroupInt format{bits, 0};
    for (std::size_t n = 0; n <= 70; ++n) {
      std::vector<std::int32_t> some(n);
      for (std::size_t i = 0; i < n; ++i) some[i] = static_cast<std::int32_t>(i * 7 + 1) & format.max_code();
      std::vector<std::uint8_t> packed(static_cast<std::size_t>(format.code_bytes(static_cast<index_t>(n))));
      format.pack(some, format.max_code(), packed.data());
      std::vector<std::int32_t> back(n);
      format.unpack(packed.data(), back);
      REQUIRE(back == some);
      if (n % 8 == 1 && bits < 8 && bits != 3) REQUIRE((packed.back() >> bits) == (255 >> bits));  // the fill
    }
  }
}

TEST_CASE("zero points are a bit stream of the row", "[quant][format]") {
  const GroupInt format{3, 32, GroupGrid::asymmetric};
  std::vector<float> w;
  for (int g = 0; g < 5; ++g) {  // lo = -g, hi = 7 - g: scale 1, zero point g
    const std::vector<float> group = group_with({static_cast<float>(-g), static_cast<float>(7 - g)});
    w.insert(w.end(), group.begin(), group.end());
  }
  const test::Stored stored = stored_row(format, w);
  REQUIRE(stored.size() == 3);
  const int stream = 0 | (1 << 3) | (2 << 6) | (3 << 9) | (4 << 12);
  REQUIRE(test::numbers(stored[1]) == std::vector<int>{stream & 255, stream >> 8});
  REQUIRE(round_trip(format, w) == w);
}

TEST_CASE("a short last group is stored whole, a row group ends at a full byte", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 45, 21);
  std::vector<float> whole = w;
  whole.resize(64, 0.0f);
  for (const int bits : {2, 3, 4, 8}) {
    for (const GroupGrid grid : kGrids) {
      const GroupInt grouped{bits, 32, grid};
      REQUIRE(stored_row(grouped, w) == stored_row(grouped, whole));
      const GroupInt row{bits, 0, grid};
      const test::Stored stored = stored_row(row, w);
      REQUIRE(stored[0].size() == 2);
      const int bytes = bits == 3 ? 24 : (45 * bits + 7) / 8;
      REQUIRE(stored.back().size() == static_cast<std::size_t>(bytes));
      const std::vector<float> decoded = round_trip(row, w);
      const GroupParameters p = row.stored(row.fit(w));
      std::vector<std::int32_t> codes(45);
      row.encode(w, p, codes);
      std::vector<float> expected(45);
      row.decode(codes, p, expected);
      REQUIRE(decoded == expected);
    }
  }
}

TEST_CASE("a row decodes from any multiple of 512 on", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 1300, 33);
  const MatrixView<const float> view(w.data(), 1, 1300);
  const auto check = [&](const auto& format) {
    const test::Stored stored = test::encode_matrix(format, view);
    const std::vector<float> whole = test::decode_matrix(format, stored, view.shape());
    for (const index_t col : {index_t{0}, index_t{512}, index_t{1024}}) {
      for (const index_t count : {index_t{1}, index_t{100}, std::min(index_t{512}, 1300 - col)}) {
        CAPTURE(format.scheme(), col, count);
        REQUIRE(test::decode_part(format, stored, 0, 1300, col, count) ==
                std::vector<float>(whole.begin() + col, whole.begin() + col + count));
      }
    }
  };
  for (const int bits : {2, 3, 4, 8})
    for (const int group : {0, 32, 128})
      for (const GroupGrid grid : kGrids) check(GroupInt{bits, group, grid});
  for (const MxElement element : Mx::kElements) check(Mx{element, 64});
  for (const int bits : {3, 4, 6, 16}) check(Bfp{bits, 128});
}

TEST_CASE("group schemes, sizes and refused parameters", "[quant][format]") {
  REQUIRE(GroupInt{}.scheme() == "int4-g32");
  REQUIRE(GroupInt{8, 0}.scheme() == "int8-row");
  REQUIRE(GroupInt{4, 128, GroupGrid::half_step}.scheme() == "int4-g128-half");
  REQUIRE(GroupInt{4, 32, GroupGrid::asymmetric}.scheme() == "int4-g32-asym");
  REQUIRE(GroupInt{3, 64, GroupGrid::max_abs}.scheme() == "int3-g64-maxabs");
  REQUIRE(bits_per_weight(GroupInt{8, 128}, 4096) == 8.125);
  REQUIRE(bits_per_weight(GroupInt{3, 64, GroupGrid::asymmetric}, 4096) == 3.296875);
  REQUIRE(GroupInt{8, 0}.sections(0)[0].bytes_per_row == 0);
  REQUIRE_THROWS_AS((GroupInt{5, 32}.sections(32)), ValueError);
  REQUIRE_THROWS_AS((GroupInt{4, 16}.sections(32)), ValueError);
}

TEST_CASE("the search of a range never loses to the whole range and follows importance", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 640, 17);
  std::vector<float> importance(640);
  for (std::size_t i = 0; i < importance.size(); ++i) importance[i] = i % 7 == 0 ? 20.0f : 0.5f;
  const auto error = [&](const std::vector<float>& decoded, bool weighted) {
    double sum = 0;
    for (std::size_t i = 0; i < w.size(); ++i)
      sum += (weighted ? double{importance[i]} : 1.0) * std::pow(double{w[i]} - double{decoded[i]}, 2);
    return sum;
  };
  EncodeOptions options;
  options.importance = MatrixView<const float>(importance.data(), 1, 640);
  const MatrixView<const float> view(w.data(), 1, 640);
  for (const int bits : {2, 3, 4, 8}) {
    for (const GroupGrid grid : kGrids) {
      for (const int group : {32, 0}) {
        const GroupInt plain{bits, group, grid}, searched{bits, group, grid, true};
        CAPTURE(searched.scheme());
        const double whole = error(round_trip(plain, w), false);
        REQUIRE(error(round_trip(searched, w), false) <= whole * 1.00001);
        const auto weighted = test::decode_matrix(searched, test::encode_matrix(searched, view, options), view.shape());
        REQUIRE(error(weighted, true) <= error(round_trip(searched, w), true) * 1.00001);
        if (bits < 4) REQUIRE(error(round_trip(searched, w), false) < whole);
      }
    }
  }
  const std::vector<float> zeros(32, 0.0f);
  REQUIRE(stored_row(GroupInt{4, 32, GroupGrid::asymmetric, true}, zeros) ==
          stored_row(GroupInt{4, 32, GroupGrid::asymmetric}, zeros));
  for (const test::Weights kind : test::kAllWeights)
    for (const GroupGrid grid : kGrids)
      for (const float v :
           round_trip(GroupInt{3, 32, grid, true}, test::make_weights(kind, 70, 2), NonFinite::saturate))
        REQUIRE(std::isfinite(v));
}

TEST_CASE("what an encoder refuses leaves the destination as it was", "[quant][format]") {
  std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 40 * 64, 3);
  w[37 * 64 + 40] = 3.0e38f;
  std::vector<float> importance(64, 1.0f);
  const auto refused = [&](const auto& format, const EncodeOptions& options) {
    CAPTURE(format.scheme());
    test::Stored stored;
    std::vector<std::byte*> dst;
    for (const SectionSpec& s : format.sections(64))
      stored.emplace_back(static_cast<std::size_t>(section_bytes(s, 40, "test")), std::byte{0xa5});
    for (auto& s : stored) dst.push_back(s.data());
    const test::Stored before = stored;
    REQUIRE_THROWS_AS(encode_rows(format, MatrixView<const float>(w.data(), 40, 64), 0, dst, options), ValueError);
    REQUIRE(stored == before);
  };
  refused(GroupInt{}, {});
  refused(GroupInt{4, 0, GroupGrid::asymmetric, true}, {});
  refused(Nf4{}, {});
  refused(Ternary{64}, {});
  w[37 * 64 + 40] = 1.0f;
  EncodeOptions options;
  options.importance = MatrixView<const float>(importance.data(), 1, 64);
  for (const float bad : {-1.0f, kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    importance[63] = bad;
    refused(GroupInt{}, options);
    refused(Mx{}, options);
  }
}
