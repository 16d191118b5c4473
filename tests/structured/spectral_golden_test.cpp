// SPDX-License-Identifier: Apache-2.0

/// Golden cases of the spectral mixer, `afno2d` and `afno1d`, made by NVlabs/AFNO-transformer in float32: at the
/// tolerance of the case, by products and by FFTs, at every level.

#include "blockpack/structured/spectral_mixer.hpp"
#include "structured/golden_support.hpp"
#include "structured/tensors.hpp"
#include "support/levels.hpp"

namespace blockpack::test {
namespace {

/// An array of the case with its own shape.
template <std::size_t N>
xt::xtensor<float, N> tensor(const nlohmann::json& one_case, const std::string& side, const std::string& name) {
  const GoldenArray<float> array = golden_array<float>(one_case, side, name);
  const std::vector<std::size_t> dims = one_case.at(side).at(name).at("shape");
  typename xt::xtensor<float, N>::shape_type shape{};
  REQUIRE(dims.size() == N);
  std::copy(dims.begin(), dims.end(), shape.begin());
  xt::xtensor<float, N> t(shape);
  std::copy(array.values.begin(), array.values.end(), t.data());
  return t;
}

void check(const nlohmann::json& one_case, bool one_dimension) {
  const nlohmann::json& params = one_case.at("params");
  const double atol = one_case.at("tolerance").at("atol"), rtol = one_case.at("tolerance").at("rtol");
  const auto x = tensor<3>(one_case, "inputs", "x");
  const auto expected = golden_array<float>(one_case, "outputs", "y");
  for (const index_t longest : {128, 1}) {
    SpectralMixerOptions options;
    options.sparsity_threshold = params.at("sparsity_threshold");
    options.kept_fraction = params.at("hard_thresholding_fraction");
    options.longest_product = longest;
    const SpectralMixer mixer =
        SpectralMixer::afno(tensor<4>(one_case, "inputs", "w1"), tensor<3>(one_case, "inputs", "b1"),
                            tensor<4>(one_case, "inputs", "w2"), tensor<3>(one_case, "inputs", "b2"), options);
    for (const Isa isa : levels_here()) {
      ApplyOptions how;
      how.execution.isa = isa;
      CAPTURE(longest, to_string(isa));
      xt::xtensor<float, 3> y = xt::zeros<float>(x.shape());
      if (one_dimension) {
        mixer.apply_1d(x, y, how);
      } else {
        mixer.apply(x, y, TokenGrid{params.at("H"), params.at("W")}, how);
      }
      require_close(std::vector<float>(y.data(), y.data() + y.size()), expected.values, atol, rtol);
    }
  }
}

TEST_CASE("AFNO2D is what NVlabs computes", "[structured][golden][kernels][smoke]") {
  CHECK(each_golden_case("afno2d", [](const nlohmann::json& c) { check(c, false); }) == 5);
}

TEST_CASE("AFNO1D is what NVlabs computes", "[structured][golden][kernels][smoke]") {
  CHECK(each_golden_case("afno1d", [](const nlohmann::json& c) { check(c, true); }) == 2);
}

}  // namespace
}  // namespace blockpack::test
