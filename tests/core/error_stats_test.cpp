// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/error_stats.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/core/scalar.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

MatrixView<const float> view(const std::vector<float>& v, index_t rows, index_t cols) { return {v.data(), rows, cols}; }

}  // namespace

TEST_CASE("error statistics of a matrix computed by hand", "[core][smoke]") {
  const std::vector<float> r{3, 4, 0, -1}, a{3, 3, 2, -1};
  const ErrorStats s = error_stats(view(r, 2, 2), view(a, 2, 2));  // e = 0 -1 2 0
  CHECK(s.count() == 4);
  CHECK(s.signal_energy() == 26.0);
  CHECK(s.noise_energy() == 5.0);
  CHECK(s.sqnr_db() == Approx(10 * std::log10(26.0 / 5.0)).epsilon(1e-14));
  CHECK(s.relative_frobenius() == Approx(std::sqrt(5.0 / 26.0)).epsilon(1e-14));
  CHECK(s.cosine() == Approx(22.0 / std::sqrt(26.0 * 23.0)).epsilon(1e-14));
  CHECK(s.mean_error() == 0.25);
  CHECK(s.mean_absolute_error() == 0.75);
  CHECK(s.rms_error() == Approx(std::sqrt(1.25)).epsilon(1e-14));
  CHECK(s.max_error() == 2.0);
  CHECK(s.max_error_position() == MatrixShape{1, 0});
}

TEST_CASE("error statistics are defined for nothing, zeros and equal matrices", "[core]") {
  const ErrorStats nothing;
  CHECK(nothing.count() == 0);
  CHECK(nothing.sqnr_db() == std::numeric_limits<double>::infinity());
  CHECK(nothing.relative_frobenius() == 0.0);
  CHECK(nothing.cosine() == 1.0);
  CHECK(nothing.max_error() == 0.0);
  CHECK(nothing.max_error_position() == MatrixShape{-1, -1});
  CHECK(nothing.mean_error() == 0.0);

  const std::vector<float> zeros(6), ones(6, 1.0f);
  const ErrorStats equal = error_stats(view(ones, 2, 3), view(ones, 2, 3));
  CHECK(equal.sqnr_db() == std::numeric_limits<double>::infinity());
  CHECK(equal.cosine() == 1.0);
  CHECK(equal.max_error_position() == MatrixShape{0, 0});
  const ErrorStats both_zero = error_stats(view(zeros, 2, 3), view(zeros, 2, 3));
  CHECK(both_zero.cosine() == 1.0);
  CHECK(both_zero.relative_frobenius() == 0.0);
  const ErrorStats from_zero = error_stats(view(zeros, 2, 3), view(ones, 2, 3));
  CHECK(from_zero.sqnr_db() == -std::numeric_limits<double>::infinity());
  CHECK(from_zero.relative_frobenius() == std::numeric_limits<double>::infinity());
  CHECK(from_zero.cosine() == 0.0);
  const ErrorStats to_zero = error_stats(view(ones, 2, 3), view(zeros, 2, 3));
  CHECK(to_zero.sqnr_db() == 0.0);
  CHECK(to_zero.relative_frobenius() == 1.0);
  CHECK(error_stats(view(zeros, 0, 3), view(zeros, 0, 3)).count() == 0);
  CHECK(error_stats(view(zeros, 3, 0), view(zeros, 3, 0)).count() == 0);
}

TEST_CASE("equal non-finite entries are set aside, others break the figures", "[core]") {
  const std::vector<float> r{1, kInf, kNaN, -kInf}, same{2, kInf, kNaN, -kInf}, other{2, kInf, 0, kInf};
  const ErrorStats kept = error_stats(view(r, 1, 4), view(same, 1, 4));
  CHECK(kept.count() == 4);
  CHECK(kept.matching_non_finite() == 3);
  CHECK(kept.broken() == 0);
  CHECK(kept.mean_error() == 1.0);
  CHECK(kept.max_error() == 1.0);
  const ErrorStats broken = error_stats(view(r, 1, 4), view(other, 1, 4));
  CHECK(broken.broken() == 2);
  CHECK(broken.matching_non_finite() == 1);
  CHECK(broken.max_error() == std::numeric_limits<double>::infinity());
  CHECK(broken.max_error_position() == MatrixShape{0, 2});
  CHECK(broken.sqnr_db() == -std::numeric_limits<double>::infinity());
  CHECK(broken.relative_frobenius() == std::numeric_limits<double>::infinity());
  CHECK(broken.cosine() == 0.0);
  CHECK(std::isnan(broken.mean_error()));
}

TEST_CASE("extreme magnitudes neither overflow nor vanish", "[core]") {
  const float big = std::numeric_limits<float>::max(), tiny = std::numeric_limits<float>::denorm_min();
  const std::vector<float> r{big, big}, a{-big, big};
  CHECK(error_stats(view(r, 1, 2), view(a, 1, 2)).relative_frobenius() == Approx(std::sqrt(2.0)));
  const std::vector<float> s{tiny, tiny}, t{tiny, 0};
  CHECK(error_stats(view(s, 1, 2), view(t, 1, 2)).relative_frobenius() == Approx(std::sqrt(0.5)));
}

TEST_CASE("panels, merging, strides and threads give the statistics of the whole", "[core]") {
  const index_t rows = 131, cols = 1037;
  const std::vector<float> r = test::random_weights(rows, cols, 1);
  std::vector<float> a = r;
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(bf16(a[i]));
  a[77 * cols + 901] += 3.0f;
  a[90 * cols + 1] = r[90 * cols + 1];
  long double signal = 0, noise = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    signal += static_cast<long double>(r[i]) * r[i];
    const long double e = static_cast<long double>(a[i]) - r[i];
    noise += e * e;
  }
  const ErrorStats whole = error_stats(view(r, rows, cols), view(a, rows, cols));
  constexpr double kBound = 132 * 0x1p-53;  // 128 additions to a lane, 2 of lanes, the compensated sum of the runs
  CHECK(whole.signal_energy() == Approx(static_cast<double>(signal)).epsilon(kBound));
  CHECK(whole.noise_energy() == Approx(static_cast<double>(noise)).epsilon(kBound));
  CHECK(whole.max_error_position() == MatrixShape{77, 901});

  for (int threads = 1; threads <= 4; ++threads) {
    Execution how;
    how.threads = threads;
    const ErrorStats s = error_stats(view(r, rows, cols), view(a, rows, cols), how);
    CHECK(s.noise_energy() == whole.noise_energy());
    CHECK(s.sqnr_db() == whole.sqnr_db());
    CHECK(s.mean_error() == whole.mean_error());
  }
  ErrorStats panels, second;
  for (index_t i = 0; i < rows; i += 17) {
    const index_t n = std::min<index_t>(17, rows - i);
    (i < 60 ? panels : second).add(view(r, rows, cols).rows_from(i, n), view(a, rows, cols).rows_from(i, n), i);
  }
  second.merge(panels);
  CHECK(second.count() == whole.count());
  CHECK(second.noise_energy() == Approx(whole.noise_energy()).epsilon(kBound));
  CHECK(second.max_error_position() == MatrixShape{77, 901});
  const ErrorStats part =
      error_stats(view(r, rows, cols).block(70, 900, 20, 5), view(a, rows, cols).block(70, 900, 20, 5));
  CHECK(part.count() == 100);
  CHECK(part.max_error_position() == MatrixShape{7, 1});
}

TEST_CASE("equal maxima are reported at the first place whatever the order of merging", "[core]") {
  const std::vector<float> r{0, 0, 0, 0}, a{0, 1, -1, 0};
  ErrorStats top, bottom;
  top.add(view(r, 2, 2).rows_from(0, 1), view(a, 2, 2).rows_from(0, 1), 0);
  bottom.add(view(r, 2, 2).rows_from(1, 1), view(a, 2, 2).rows_from(1, 1), 1);
  bottom.merge(top);
  CHECK(bottom.max_error_position() == MatrixShape{0, 1});
}

TEST_CASE("error statistics refuse matrices of different shapes and keep what they had", "[core]") {
  const std::vector<float> v(6, 1.0f);
  ErrorStats s = error_stats(view(v, 2, 3), view(v, 2, 3));
  CHECK_THROWS_WITH(s.add(view(v, 2, 3), view(v, 3, 2)), "ErrorStats::add: approximation is 3x2, reference is 2x3");
  CHECK(s.count() == 6);
}
