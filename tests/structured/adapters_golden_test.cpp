// SPDX-License-Identifier: Apache-2.0

/// Golden cases of the adapters: `miss_apply` and `bdlora_apply`, made by huggingface/peft in float64. What is
/// templated on the type runs in float64 at the tolerance of the case, operators in float32 at atol = rtol = 1e-4.

#include "blockpack/structured/bone.hpp"
#include "blockpack/structured/lora.hpp"
#include "structured/golden_support.hpp"
#include "support/levels.hpp"

namespace blockpack::test {
namespace {

constexpr double kFloat = 1e-4;

ApplyOptions at_level(Isa isa) {
  ApplyOptions how;
  how.execution.isa = isa;
  how.activations = Activations::f32;
  return how;
}

template <class Op>
std::vector<float> apply(const Op& op, const GoldenArray<float>& x, const ApplyOptions& how) {
  std::vector<float> y(static_cast<std::size_t>(x.rows * op.out_features()));
  op.apply(x.view(), MatrixView<float>(y.data(), x.rows, op.out_features()), how);
  return y;
}

template <class Op>
std::vector<float> decode(const Op& op) {
  std::vector<float> w(static_cast<std::size_t>(op.out_features() * op.in_features()));
  std::vector<index_t> rows;
  for (index_t i = 0; i < op.out_features(); ++i) rows.push_back(i);
  op.decode_rows(rows, MatrixView<float>(w.data(), op.out_features(), op.in_features()));
  return w;
}

TEST_CASE("Bone in all its modes is what peft computes", "[structured][golden][kernels][smoke]") {
  const int count = each_golden_case("miss_apply", [](const nlohmann::json& one_case) {
    const std::string mode = one_case.at("params").at("mode");
    const double atol = one_case.at("tolerance").at("atol"), rtol = one_case.at("tolerance").at("rtol");
    const auto w = golden_array<double>(one_case, "inputs", "W");
    const auto block = golden_array<double>(one_case, "inputs", "block");
    const auto merged = golden_array<double>(one_case, "outputs", "W_merged");
    // [out / r, r, r] is read as one matrix [out, r].
    const MatrixView<const double> d = block.view();

    std::vector<double> w2 = w.values;
    const MatrixView<double> in_place(w2.data(), w.rows, w.cols);
    if (mode == "bat") {
      merge_bat(in_place, d);
    } else {
      merge_bone(in_place, d);
    }
    require_close(w2, merged.values, atol, rtol);
    if (mode == "bat") {
      unmerge_bat(in_place, d);
    } else {
      unmerge_bone(in_place, d);
    }
    require_close(w2, w.values, 1e-12, 1e-12);

    const auto x = golden_narrowed(one_case, "inputs", "x");
    const auto bias = golden_narrowed(one_case, "inputs", "bias");
    const auto w32 = golden_narrowed(one_case, "inputs", "W");
    const auto d32 = golden_narrowed(one_case, "inputs", "block");
    const auto y = golden_array<double>(one_case, "outputs", "y");
    const auto base = Dense<float>::encode(w32.view());
    for (const Isa isa : levels_here()) {
      ApplyOptions how = at_level(isa);
      how.epilogue.bias = bias.values;
      const auto check = [&](const auto& op) {
        require_close(apply(op, x, how), y.values, kFloat, kFloat);
        require_close(decode(op), merged.values, kFloat, kFloat);
      };
      if (mode == "bone") {
        check(Bone<Dense<float>>(base, bone_update(d32.view(), w.cols)));
      } else if (mode == "mini") {
        check(MiniBone<Dense<float>>(base, mini_update(d32.view(), base.shape())));
      } else {
        REQUIRE(mode == "bat");
        check(bat_layer(base, d32.view()));
      }
    }
  });
  CHECK(count == 4);
}

TEST_CASE("block-diagonal LoRA is what peft computes", "[structured][golden][kernels][smoke]") {
  const int count = each_golden_case("bdlora_apply", [](const nlohmann::json& one_case) {
    const std::string factor = one_case.at("params").at("block_diagonal_factor");
    const index_t shards = one_case.at("params").at("nblocks");
    const auto scaling = one_case.at("params").at("scaling").get<float>();
    const auto x = golden_narrowed(one_case, "inputs", "x");
    const auto a = golden_narrowed(one_case, "inputs", "A"), b = golden_narrowed(one_case, "inputs", "B");
    const auto u = golden_array<double>(one_case, "outputs", "u");
    const auto y = golden_array<double>(one_case, "outputs", "y");
    const auto delta = golden_array<double>(one_case, "outputs", "delta_W");
    const auto check = [&](const auto& update) {
      for (const Isa isa : levels_here()) {
        require_close(apply(update.down(), x, at_level(isa)), u.values, kFloat, kFloat);
        require_close(apply(update, x, at_level(isa)), y.values, kFloat, kFloat);
      }
      require_close(decode(update), delta.values, kFloat, kFloat);
    };
    if (factor == "A") {
      check(row_parallel_update(a.view(), b.view(), shards, scaling));
    } else {
      REQUIRE(factor == "B");
      check(column_parallel_update(a.view(), b.view(), shards, scaling));
    }
  });
  CHECK(count == 2);
}

}  // namespace
}  // namespace blockpack::test
