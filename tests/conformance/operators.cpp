// SPDX-License-Identifier: Apache-2.0
#include "conformance/operators.hpp"

#include <cmath>
#include <map>
#include <memory>
#include <optional>

#include "blockpack/core/compose.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/quant.hpp"
#include "blockpack/quant/input_transforms.hpp"
#include "blockpack/sparse/armor_matrix.hpp"
#include "blockpack/sparse/block_sparse.hpp"
#include "blockpack/sparse/n_m.hpp"
#include "blockpack/sparse/prune/criterion.hpp"
#include "blockpack/structured.hpp"
#include "blockpack/structured/bone.hpp"
#include "blockpack/structured/lora.hpp"
#include "support/budget.hpp"
#include "support/random.hpp"

namespace blockpack::test::conformance {
namespace {

using Sections = std::span<const Section>;

/// The weights of a format that does not store all of them.
template <RowFormat Format>
void prune(const Format&, MatrixView<float>) {}
template <RowFormat Values>
void prune(const NmFormat<Values>& format, MatrixView<float> w) {
  const NmLayout& n_m = format.layout();
  prune_mask(w, magnitude(), MaskPattern::nm(n_m.keep, n_m.of, Tail::short_group)).apply(w);
}

/// A row matrix in the given format.
template <RowFormat Format>
Operator rows(const Format& format, PackPolicy policy = {}) {
  using Matrix = RowMatrix<Format>;
  Operator form;
  form.name = format.scheme();
  form.make = [format, policy](MatrixShape shape, std::uint64_t seed) -> AnyLinear {
    std::vector<float> w = random_weights(shape.rows, shape.cols, seed);
    const MatrixView<float> view(w.data(), shape.rows, shape.cols);
    prune(format, view);
    return Matrix::encode(view, format, {}, policy);
  };
  form.reopen = [format, policy](const AnyLinear&, MatrixShape shape, Sections sections) -> AnyLinear {
    return Matrix::from_sections(shape, format, sections, policy);
  };
  form.checker = [format](const AnyLinear&) -> Operator::Check {
    return [exact = format.exact_in_bf16()](std::span<const float> x, std::span<const float> w, index_t,
                                            Activations mode) { return check_product(x, w, mode, exact); };
  };
  form.transpose_checker = [](const AnyLinear&) -> Operator::TransposeCheck {
    return [](std::span<const float> y, std::span<const float> w, index_t) {
      return check_product(y, w, Activations::f32, false);
    };
  };
  return form;
}

/// Two of five blocks, in the given format.
template <RowFormat Format>
Operator block_sparse(MatrixShape block, const Format& format) {
  using Matrix = BlockSparse<Format>;
  Operator form = rows(format);  // the checks of a decoded matrix
  form.name = (block == MatrixShape{1, 1} ? "bitmask-" : "bsr" + to_string(block) + "-") + form.name;
  form.make = [block, format](MatrixShape shape, std::uint64_t seed) -> AnyLinear {
    const std::vector<float> w = random_weights(shape.rows, shape.cols, seed);
    Mask kept({ceil_div(shape.rows, block.rows), ceil_div(shape.cols, block.cols)});
    Random random(seed);
    for (index_t r = 0; r < kept.shape().rows; ++r)
      for (index_t c = 0; c < kept.shape().cols; ++c) kept.set(r, c, random() % 5 < 2);
    return Matrix::encode(MatrixView<const float>(w.data(), shape.rows, shape.cols), kept, block, format);
  };
  form.reopen = [](const AnyLinear& op, MatrixShape shape, Sections sections) -> AnyLinear {
    return Matrix::from_sections(shape, op.get_if<Matrix>()->parameters(), sections);
  };
  return form;
}

/// PTQ1.61 without a fit; its channels are chosen by the weights themselves.
Operator ptq161() {
  Operator form = rows(Nf4{});  // the checks of a decoded matrix
  form.name = "ptq1.61";
  form.make = [](MatrixShape shape, std::uint64_t seed) -> AnyLinear {
    const std::vector<float> w = random_weights(shape.rows, shape.cols, seed);
    std::vector<float> statistic(static_cast<std::size_t>(shape.cols), 1.0f);
    for (std::size_t i = 0; i < std::min(w.size(), statistic.size()); ++i) statistic[i] = std::abs(w[i]);
    return Ptq161Matrix::encode(MatrixView<const float>(w.data(), shape.rows, shape.cols), statistic);
  };
  form.reopen = [](const AnyLinear&, MatrixShape shape, Sections sections) -> AnyLinear {
    return Ptq161Matrix::from_sections(shape, {}, sections);
  };
  return form;
}

std::vector<float> decode(const auto& op) {
  std::vector<float> w(static_cast<std::size_t>(op.out_features() * op.in_features()));
  for (index_t i = 0; i < op.out_features(); ++i)
    op.decode_rows(std::span(&i, 1), MatrixView<float>(w.data() + i * op.in_features(), 1, op.in_features()));
  return w;
}

/// Σ_j weights[j] · (x · first(j)), where each inner product carries its own error: |weights| times that, plus the
/// error of the second product on operands as large as the first one can make them.
template <class First>
ProductCheck through(std::span<const float> x, First&& first, const std::vector<float>& weights, Activations mode) {
  ProductCheck total;
  std::vector<float> largest;
  for (std::size_t j = 0; j < weights.size(); ++j) {
    const std::span<const float> w = first(j);
    const ProductCheck part = check_product(x, w, mode, false);
    double absolute = part.bound;
    for (std::size_t i = 0; i < x.size(); ++i) absolute += std::abs(double{x[i]} * double{w[i]});
    total.value += double{weights[j]} * part.value;
    total.bound += std::abs(double{weights[j]}) * part.bound;
    largest.push_back(static_cast<float>(absolute));
  }
  total.bound += check_product(largest, weights, mode, false).bound;
  return total;
}

/// A composition through a few features. Both its product and its decoded matrix round in two places, so a result is
/// compared with the exact product of the decoded parts.
Operator composed() {
  using Op = Compose<Dense<float>, Dense<bf16>>;
  static const index_t kMiddle = budget(24, 5);
  Operator form;
  form.name = "compose(f32, bf16)";
  form.make = [](MatrixShape shape, std::uint64_t seed) -> AnyLinear {
    const std::vector<float> outer = random_weights(shape.rows, kMiddle, seed);
    const std::vector<float> inner = random_weights(kMiddle, shape.cols, seed + 1);
    return Op(Dense<float>::encode(MatrixView<const float>(outer.data(), shape.rows, kMiddle)),
              Dense<bf16>::encode(MatrixView<const float>(inner.data(), kMiddle, shape.cols)));
  };
  form.reopen = [](const AnyLinear& op, MatrixShape shape, Sections sections) -> AnyLinear {
    return Op::from_sections(shape, op.get_if<Op>()->parameters(), sections);
  };
  form.checker = [](const AnyLinear& any) -> Operator::Check {
    const Op& op = *any.get_if<Op>();
    return [outer = decode(op.outer()), inner = decode(op.inner())](std::span<const float> x, std::span<const float>,
                                                                    index_t n, Activations mode) {
      const std::vector<float> weights(outer.begin() + n * kMiddle, outer.begin() + (n + 1) * kMiddle);
      return through(
          x, [&](std::size_t j) { return std::span(inner).subspan(j * x.size(), x.size()); }, weights, mode);
    };
  };
  form.transpose_checker = [](const AnyLinear& any) -> Operator::TransposeCheck {
    const Op& op = *any.get_if<Op>();
    const std::vector<float> rows = decode(op.outer());  // [out, middle] to [middle, out]
    const auto out = static_cast<std::size_t>(op.out_features()), middle = static_cast<std::size_t>(kMiddle);
    std::vector<float> outer(rows.size());
    for (std::size_t n = 0; n < out; ++n)
      for (std::size_t j = 0; j < middle; ++j) outer[j * out + n] = rows[n * middle + j];
    return [outer, inner = decode(op.inner()), in = op.in_features()](std::span<const float> y, std::span<const float>,
                                                                      index_t k) {
      std::vector<float> weights;
      for (index_t j = 0; j < kMiddle; ++j) weights.push_back(inner[static_cast<std::size_t>(j * in + k)]);
      return through(
          y, [&](std::size_t j) { return std::span(outer).subspan(j * y.size(), y.size()); }, weights,
          Activations::f32);
    };
  };
  return form;
}

/// A quantized matrix behind a transform of its input: a rotation or a scale of every feature.
template <class Inner, class MakeInner>
Operator transformed(const char* name, const MakeInner& make_inner) {
  using Op = Compose<RowMatrix<Mx>, Inner>;
  Operator form;
  form.name = name;
  form.make = [make_inner](MatrixShape shape, std::uint64_t seed) -> AnyLinear {
    const std::vector<float> w = random_weights(shape.rows, shape.cols, seed);
    return Op(RowMatrix<Mx>::encode(MatrixView<const float>(w.data(), shape.rows, shape.cols)), make_inner(shape.cols));
  };
  form.reopen = [](const AnyLinear& op, MatrixShape shape, Sections sections) -> AnyLinear {
    return Op::from_sections(shape, op.get_if<Op>()->parameters(), sections);
  };
  // The inner product runs in float32 whatever the mode: each middle value has at most 8 roundings of its sum of
  // magnitudes, and is then an operand of the outer product.
  form.checker = [](const AnyLinear& any) -> Operator::Check {
    const Op& op = *any.get_if<Op>();
    return [outer = decode(op.outer()), inner = decode(op.inner())](std::span<const float> x, std::span<const float>,
                                                                    index_t n, Activations mode) {
      const std::size_t in = x.size();
      const std::span<const float> weights = std::span(outer).subspan(static_cast<std::size_t>(n) * in, in);
      ProductCheck check;
      std::vector<float> largest;
      for (std::size_t j = 0; j < in; ++j) {
        double middle = 0, magnitude = 0;
        for (std::size_t i = j / 64 * 64; i < std::min(in, j / 64 * 64 + 64); ++i) {  // no block is wider
          const double p = static_cast<double>(x[i]) * static_cast<double>(inner[j * in + i]);
          middle += p;
          magnitude += std::abs(p);
        }
        const double error = gamma_bound(8) * magnitude;
        check.value += static_cast<double>(weights[j]) * middle;
        check.bound += std::abs(static_cast<double>(weights[j])) * error;
        largest.push_back(static_cast<float>((std::abs(middle) + error) * (1 + 0x1p-23)));
      }
      check.bound += check_product(largest, weights, mode, false).bound;
      return check;
    };
  };
  form.transpose_checker = [](const AnyLinear& any) -> Operator::TransposeCheck {
    const Op& op = *any.get_if<Op>();
    return [outer = decode(op.outer()), inner = decode(op.inner()), in = static_cast<std::size_t>(op.in_features())](
               std::span<const float> y, std::span<const float>, index_t k) {
      std::vector<float> weights;
      std::vector<std::size_t> middle;
      for (std::size_t j = 0; j < in; ++j)
        if (inner[j * in + static_cast<std::size_t>(k)] != 0.0f) {
          weights.push_back(inner[j * in + static_cast<std::size_t>(k)]);
          middle.push_back(j);
        }
      std::vector<float> column(y.size());
      return through(
          y,
          [&](std::size_t j) {
            for (std::size_t n = 0; n < y.size(); ++n) column[n] = outer[n * in + middle[j]];
            return std::span<const float>(column);
          },
          weights, Activations::f32);
    };
  };
  return form;
}

/// Σ_j w[j] · x[j] in blocks of `size` inputs, each of which is a product of its own that is added to the others: the
/// int8 groups of a block-diagonal factor start anew in every block.
ProductCheck check_blocks(std::span<const float> x, std::span<const float> w, Activations mode, std::size_t size) {
  ProductCheck total;
  for (std::size_t first = 0; first < x.size(); first += size) {
    const std::size_t count = std::min(size, x.size() - first);
    const ProductCheck part = check_product(x.subspan(first, count), w.subspan(first, count), mode, false);
    total.value += part.value;
    total.bound += part.bound;
  }
  return total;
}

/// The part of an adapter that both products of a checker need: scaling · up · (down · x), each inner product with its
/// own error, then the product with `up` on operands as large as those can be, and the sum with the base.
struct UpdateCheck {
  std::vector<float> up;  ///< one row, [rank]
  double scaling = 1;
  std::size_t up_block = 0;  ///< inputs of a block of the factors
  Activations up_mode = Activations::f32;

  /// `inner(j)` is the check of component j and the sum of magnitudes of its terms.
  template <class Inner>
  ProductCheck operator()(const ProductCheck& base, const Inner& inner) const {
    ProductCheck total = base;
    std::vector<float> largest;
    double delta = 0;
    for (std::size_t j = 0; j < up.size(); ++j) {
      const auto [part, magnitude] = inner(j);
      const double weight = std::abs(scaling * static_cast<double>(up[j]));
      delta += scaling * static_cast<double>(up[j]) * part.value;
      total.bound += weight * part.bound + weight * 0x1p-23 * (std::abs(part.value) + part.bound);
      largest.push_back(static_cast<float>(std::abs(scaling) * (magnitude + part.bound) * (1 + 0x1p-20)));
    }
    total.bound += check_blocks(largest, up, up_mode, up_block).bound;
    total.value += delta;
    total.bound += 0x1p-23 * (std::abs(base.value) + std::abs(delta) + total.bound);
    return total;
  }
};

/// An adapter over any base. `make_update(shape, seed)` makes the update; the down-projection of Bone sums in float32
/// whatever the mode.
template <class Base, class Update, class MakeUpdate>
Operator adapted(const char* name, bool exact_base, bool exact_down, const MakeUpdate& make_update) {
  using Op = Adapted<Base, Update>;
  Operator form;
  form.name = name;
  form.make = [make_update](MatrixShape shape, std::uint64_t seed) -> AnyLinear {
    const std::vector<float> w = random_weights(shape.rows, shape.cols, seed);
    return Op(Base::encode(MatrixView<const float>(w.data(), shape.rows, shape.cols)), make_update(shape, seed + 1));
  };
  form.reopen = [](const AnyLinear& op, MatrixShape shape, Sections sections) -> AnyLinear {
    return Op::from_sections(shape, op.get_if<Op>()->parameters(), sections);
  };
  const auto block_of = [](const auto& factor) {
    index_t size = factor.in_features();
    if constexpr (requires { factor.block_cols(); }) size = factor.block_cols();
    return static_cast<std::size_t>(std::max<index_t>(1, size));
  };
  const auto magnitude = [](std::span<const float> a, std::span<const float> b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += std::abs(static_cast<double>(a[i]) * static_cast<double>(b[i]));
    return sum;
  };
  form.checker = [=](const AnyLinear& any) -> Operator::Check {
    const Op& op = *any.get_if<Op>();
    const std::size_t rank = static_cast<std::size_t>(op.update().rank());
    const std::size_t down_block = block_of(op.update().down()), up_block = block_of(op.update().up());
    return [=, base = decode(op.base()), down = decode(op.update().down()), up = decode(op.update().up()),
            scaling = op.update().scaling()](std::span<const float> x, std::span<const float>, index_t n,
                                             Activations mode) {
      const std::size_t in = x.size(), row = static_cast<std::size_t>(n);
      const ProductCheck first = check_product(x, std::span(base).subspan(row * in, in), mode, exact_base);
      UpdateCheck update;
      update.up.assign(up.begin() + static_cast<index_t>(row * rank),
                       up.begin() + static_cast<index_t>((row + 1) * rank));
      update.scaling = static_cast<double>(scaling);
      update.up_block = up_block;
      update.up_mode = mode;
      return update(first, [&](std::size_t j) {
        const std::span<const float> w = std::span(down).subspan(j * in, in);
        return std::pair(check_blocks(x, w, exact_down ? Activations::f32 : mode, down_block), magnitude(x, w));
      });
    };
  };
  form.transpose_checker = [=](const AnyLinear& any) -> Operator::TransposeCheck {
    const Op& op = *any.get_if<Op>();
    const std::size_t in = static_cast<std::size_t>(op.in_features()),
                      rank = static_cast<std::size_t>(op.update().rank());
    return [=, base = decode(op.base()), down = decode(op.update().down()), up = decode(op.update().up()),
            scaling = op.update().scaling()](std::span<const float> y, std::span<const float>, index_t k) {
      const auto column = [&](const std::vector<float>& w, std::size_t cols, std::size_t at) {
        std::vector<float> values;
        for (std::size_t i = at; i < w.size(); i += cols) values.push_back(w[i]);
        return values;
      };
      const auto at = static_cast<std::size_t>(k);
      UpdateCheck update;
      update.up = column(down, in, at);
      update.scaling = static_cast<double>(scaling);
      update.up_block = std::max<std::size_t>(1, rank);
      return update(check_product(y, column(base, in, at), Activations::f32, false), [&](std::size_t j) {
        const std::vector<float> w = column(up, rank, j);
        return std::pair(check_product(y, w, Activations::f32, false), magnitude(y, w));
      });
    };
  };
  return form;
}

std::vector<float> factor(index_t rows, index_t cols, std::uint64_t seed) { return random_weights(rows, cols, seed); }

/// The largest number of shards up to 5 that divides a side.
index_t shards_of(index_t features) {
  index_t shards = 5;
  while (features % shards != 0) --shards;
  return shards;
}

LoraUpdate make_lora(MatrixShape shape, std::uint64_t seed) {
  const index_t rank = 6;
  const std::vector<float> a = factor(rank, shape.cols, seed), b = factor(shape.rows, rank, seed + 1);
  return lora_update({a.data(), rank, shape.cols}, {b.data(), shape.rows, rank}, 0.75f);
}
ColumnParallelUpdate make_column_parallel(MatrixShape shape, std::uint64_t seed) {
  const index_t shards = shards_of(shape.rows), rank = 3 * shards;
  const std::vector<float> a = factor(rank, shape.cols, seed), b = factor(shape.rows, 3, seed + 1);
  return column_parallel_update({a.data(), rank, shape.cols}, {b.data(), shape.rows, 3}, shards, 0.75f);
}
RowParallelUpdate make_row_parallel(MatrixShape shape, std::uint64_t seed) {
  const index_t shards = shards_of(shape.cols), rank = 3 * shards, in = shape.cols / shards;
  const std::vector<float> a = factor(rank, in, seed), b = factor(shape.rows, rank, seed + 1);
  return row_parallel_update({a.data(), rank, in}, {b.data(), shape.rows, rank}, shards);
}
BoneUpdate make_bone(MatrixShape shape, std::uint64_t seed) {
  const std::vector<float> d = factor(5, shape.rows, seed);
  return bone_update({d.data(), 5, shape.rows}, shape.cols);
}
MiniUpdate make_mini(MatrixShape shape, std::uint64_t seed) {
  const index_t columns = shards_of(shape.rows);
  const std::vector<float> d = factor(5, columns, seed);
  return mini_update({d.data(), 5, columns}, shape);
}

/// How one result of a structured product comes about: y = Σ weights[ρ] z_ρ, z_ρ = Σ coupling · (x[begin …] · row).
struct Chain {
  struct Term {
    float coupling;
    index_t begin;
    std::vector<float> row;
  };
  std::vector<float> weights;
  std::vector<std::vector<Term>> values;
};

/// Chains whose rows are kept once: many results pass through the same ones.
struct Paths {
  struct Step {
    double coupling;
    std::size_t row;
  };
  struct Result {
    std::vector<float> weights;
    std::vector<std::vector<Step>> values;
  };
  using Row = std::pair<index_t, std::vector<float>>;  ///< where it begins in x, and its values

  explicit Paths(const std::vector<Chain>& chains) {
    std::map<Row, std::size_t> known;
    for (const Chain& chain : chains) {
      results.push_back({chain.weights, {}});
      for (const std::vector<Chain::Term>& terms : chain.values) {
        results.back().values.emplace_back();
        for (const Chain::Term& t : terms) {
          const auto [at, is_new] = known.try_emplace({t.begin, t.row}, rows.size());
          if (is_new) rows.push_back(at->first);
          results.back().values.back().push_back({static_cast<double>(t.coupling), at->second});
        }
      }
    }
  }

  std::vector<Row> rows;
  std::vector<Result> results;
};

/// Checks of a structured operator from the chains of its results. `exact`: the factors are bf16. Every stage rounds
/// what comes in as the mode says, and errors of a stage pass through the weights of the next. What a check takes from
/// x alone is kept for the next results of the same x.
void check_chains(Operator& form, const std::function<std::vector<Chain>(const AnyLinear&)>& chains, bool exact) {
  form.checker = [chains, exact](const AnyLinear& any) -> Operator::Check {
    struct Kept {
      std::vector<float> x;
      std::optional<Activations> mode;
      std::vector<ProductCheck> products;  // of x with each row
    };
    return [paths = std::make_shared<const Paths>(chains(any)), kept = std::make_shared<Kept>(), exact](
               std::span<const float> x, std::span<const float>, index_t n, Activations mode) {
      if (kept->mode != mode || !std::equal(x.begin(), x.end(), kept->x.begin(), kept->x.end())) {
        kept->x.assign(x.begin(), x.end());
        kept->mode = mode;
        kept->products.clear();
        for (const auto& [begin, row] : paths->rows)
          kept->products.push_back(
              check_product(x.subspan(static_cast<std::size_t>(begin), row.size()), row, mode, exact));
      }
      const Paths::Result& result = paths->results[static_cast<std::size_t>(n)];
      ProductCheck check;
      std::vector<float> largest;
      for (std::size_t r = 0; r < result.weights.size(); ++r) {
        double value = 0, error = 0, magnitude = 0;
        for (const Paths::Step& step : result.values[r]) {
          const ProductCheck& product = kept->products[step.row];
          const double scale = std::abs(step.coupling);
          value += step.coupling * product.value;
          error += scale * product.bound;
          magnitude += scale * (std::abs(product.value) + product.bound);
        }
        error += gamma_bound(static_cast<double>(result.values[r].size()) + 1) * magnitude;
        check.value += static_cast<double>(result.weights[r]) * value;
        check.bound += std::abs(static_cast<double>(result.weights[r])) * error;
        largest.push_back(static_cast<float>((std::abs(value) + error) * (1 + 0x1p-23)));
      }
      check.bound += check_product(largest, result.weights, mode, exact).bound;
      return check;
    };
  };
  form.transpose_checker = [chains](const AnyLinear& any) -> Operator::TransposeCheck {
    struct Kept {
      std::vector<float> y;
      std::vector<double> values, magnitudes;  // what y sends back into each row
      double roundings = 0;
    };
    return [paths = std::make_shared<const Paths>(chains(any)), kept = std::make_shared<Kept>()](
               std::span<const float> y, std::span<const float>, index_t k) {
      if (kept->values.size() != paths->rows.size() ||
          !std::equal(y.begin(), y.end(), kept->y.begin(), kept->y.end())) {
        kept->y.assign(y.begin(), y.end());
        kept->values.assign(paths->rows.size(), 0.0);
        kept->magnitudes.assign(paths->rows.size(), 0.0);
        std::size_t most = 0;
        for (std::size_t n = 0; n < y.size(); ++n) {
          const Paths::Result& result = paths->results[n];
          most = std::max(most, 2 * result.weights.size());
          for (std::size_t r = 0; r < result.weights.size(); ++r)
            for (const Paths::Step& step : result.values[r]) {
              const double path = static_cast<double>(y[n]) * static_cast<double>(result.weights[r]) * step.coupling;
              kept->values[step.row] += path;
              kept->magnitudes[step.row] += std::abs(path);
            }
        }
        kept->roundings = static_cast<double>(y.size() + most + 16);
      }
      ProductCheck check;
      double magnitude = 0;
      for (std::size_t r = 0; r < paths->rows.size(); ++r) {
        const auto& [begin, row] = paths->rows[r];
        if (k < begin || k >= begin + static_cast<index_t>(row.size())) continue;
        const double w = static_cast<double>(row[static_cast<std::size_t>(k - begin)]);
        check.value += w * kept->values[r];
        magnitude += std::abs(w) * kept->magnitudes[r];
      }
      check.bound = gamma_bound(kept->roundings) * magnitude + 0x1p-120;
      return check;
    };
  };
}

/// Row `row` of a factor of `cols` columns, its first `width` values.
std::vector<float> cut_row(const std::vector<float>& factor, index_t cols, index_t row, index_t width) {
  const auto first = factor.begin() + row * cols;
  return {first, first + width};
}

/// A factor with random weights.
struct RandomFactor {
  RandomFactor(MatrixShape s, std::uint64_t seed) : shape(s), values(random_weights(s.rows, s.cols, seed)) {}
  MatrixView<const float> view() const { return {values.data(), shape.rows, shape.cols}; }
  MatrixShape shape;
  std::vector<float> values;
};

template <class Op>
Operator structured(std::string name, const std::function<Op(MatrixShape, std::uint64_t)>& make) {
  Operator form;
  form.name = std::move(name);
  form.make = [make](MatrixShape shape, std::uint64_t seed) -> AnyLinear { return make(shape, seed); };
  form.reopen = [](const AnyLinear& op, MatrixShape shape, Sections sections) -> AnyLinear {
    return Op::from_sections(shape, op.get_if<Op>()->parameters(), sections);
  };
  return form;
}

Operator block_diagonal(const FactorFormat& factors, bool exact) {
  static constexpr index_t kBlocks = 3;
  Operator form =
      structured<BlockDiagonal>("blockdiag-b3-" + factors.scheme, [factors](MatrixShape shape, std::uint64_t seed) {
        const RandomFactor w(BlockDiagonal::stack_shape(shape, kBlocks), seed);
        return BlockDiagonal::encode(shape, w.view(), {kBlocks, factors});
      });
  // One product of a block.
  form.checker = [exact](const AnyLinear& any) -> Operator::Check {
    const index_t p = ceil_div(any.in_features(), kBlocks), q = ceil_div(any.out_features(), kBlocks);
    return [exact, p, q](std::span<const float> x, std::span<const float> w, index_t n, Activations mode) {
      const std::size_t begin = std::min(x.size(), static_cast<std::size_t>(n / q * p));
      const std::size_t width = std::min(x.size() - begin, static_cast<std::size_t>(p));
      return check_product(x.subspan(begin, width), w.subspan(begin, width), mode, exact);
    };
  };
  form.transpose_checker = [](const AnyLinear&) -> Operator::TransposeCheck {
    return [](std::span<const float> y, std::span<const float> w, index_t) {
      return check_product(y, w, Activations::f32, false);
    };
  };
  return form;
}

Operator low_rank(const FactorFormat& factors, bool exact) {
  static constexpr index_t kRank = 9;
  Operator form = structured<LowRank>("lowrank-r9-" + factors.scheme, [factors](MatrixShape shape, std::uint64_t seed) {
    const RandomFactor left({shape.rows, kRank}, seed), right({kRank, shape.cols}, seed + 1);
    return LowRank::encode(left.view(), right.view(), factors);
  });
  check_chains(
      form,
      [](const AnyLinear& any) {
        const LowRank& op = *any.get_if<LowRank>();
        const std::vector<float> left = decode(op.left()), right = decode(op.right());
        std::vector<Chain> chains(static_cast<std::size_t>(op.out_features()));
        for (index_t n = 0; n < op.out_features(); ++n) {
          Chain& c = chains[static_cast<std::size_t>(n)];
          c.weights = cut_row(left, kRank, n, kRank);
          for (index_t r = 0; r < kRank; ++r)
            c.values.push_back({{1.0f, 0, cut_row(right, op.in_features(), r, op.in_features())}});
        }
        return chains;
      },
      exact);
  return form;
}

Operator monarch(const FactorFormat& factors, OutputOrder order, bool exact) {
  const std::string kind = order == OutputOrder::blocked ? "" : "interleaved-";
  Operator form = structured<Monarch>("monarch-2x3-r5-" + kind + factors.scheme,
                                      [factors, order](MatrixShape shape, std::uint64_t seed) {
                                        const Monarch::Parameters m{2, 3, 5, order, factors};
                                        const RandomFactor first(Monarch::first_shape(shape, m), seed);
                                        const RandomFactor second(Monarch::second_shape(shape, m), seed + 1);
                                        return Monarch::encode(shape, first.view(), second.view(), m);
                                      });
  check_chains(
      form,
      [](const AnyLinear& any) {
        const Monarch& op = *any.get_if<Monarch>();
        const Monarch::Parameters& m = op.parameters();
        const std::vector<float> first = decode(op.first()), second = decode(op.second());
        const index_t p = op.first().in_features(), q = ceil_div(op.out_features(), m.out_blocks);
        std::vector<Chain> chains(static_cast<std::size_t>(op.out_features()));
        for (index_t n = 0; n < op.out_features(); ++n) {
          const bool blocked = m.order == OutputOrder::blocked;
          const index_t k = blocked ? n / q : n % m.out_blocks;
          index_t row = blocked ? n : n / m.out_blocks;
          for (index_t before = 0; !blocked && before < k; ++before)
            row += ceil_div(op.out_features() - before, m.out_blocks);
          Chain& c = chains[static_cast<std::size_t>(n)];
          c.weights = cut_row(second, m.in_blocks * m.rank, row, m.in_blocks * m.rank);
          for (index_t l = 0; l < m.in_blocks; ++l) {
            const index_t begin = std::min(l * p, op.in_features());
            const index_t width = std::min(p, op.in_features() - begin);
            for (index_t r = 0; r < m.rank; ++r)
              c.values.push_back({{1.0f, begin, cut_row(first, p, (l * m.out_blocks + k) * m.rank + r, width)}});
          }
        }
        return chains;
      },
      exact);
  return form;
}

Operator blast(const FactorFormat& factors, index_t rank, bool exact) {
  static constexpr index_t kBlocks = 3;
  Operator form = structured<Blast>("blast-b3-r" + std::to_string(rank) + "-" + factors.scheme,
                                    [factors, rank](MatrixShape shape, std::uint64_t seed) {
                                      const Blast::Parameters b{kBlocks, rank, factors};
                                      const RandomFactor left(Blast::left_shape(shape, b), seed);
                                      const RandomFactor right(Blast::right_shape(shape, b), seed + 1);
                                      const RandomFactor coupling(Blast::coupling_shape(b), seed + 2);
                                      return Blast::encode(shape, left.view(), right.view(), coupling.view(), b);
                                    });
  check_chains(
      form,
      [](const AnyLinear& any) {
        const Blast& op = *any.get_if<Blast>();
        const index_t ranks = op.parameters().rank;
        const std::vector<float> left = decode(op.left()), right = decode(op.right()), s = decode(op.coupling());
        const index_t p = op.right().in_features(), q = ceil_div(op.out_features(), kBlocks);
        std::vector<Chain> chains(static_cast<std::size_t>(op.out_features()));
        for (index_t n = 0; n < op.out_features(); ++n) {
          Chain& c = chains[static_cast<std::size_t>(n)];
          c.weights = cut_row(left, ranks, n, ranks);
          for (index_t r = 0; r < ranks; ++r) {
            c.values.emplace_back();
            for (index_t j = 0; j < kBlocks; ++j) {
              const index_t begin = std::min(j * p, op.in_features());
              c.values.back().push_back({s[static_cast<std::size_t>((n / q * kBlocks + j) * ranks + r)], begin,
                                         cut_row(right, p, j * ranks + r, std::min(p, op.in_features() - begin))});
            }
          }
        }
        return chains;
      },
      exact);
  return form;
}

/// Tiles of 13 x 17 of ranks 0 to 4, every fifth one dense.
Operator block_low_rank(const FactorFormat& factors, bool exact) {
  Operator form =
      structured<BlockLowRank>("blr-13x17-" + factors.scheme, [factors](MatrixShape shape, std::uint64_t seed) {
        const BlockLowRank::Parameters b{13, 17, factors};
        const MatrixShape grid = BlockLowRank::grid(shape, b);
        std::vector<std::int32_t> ranks;
        index_t sum = 0, dense = 0;
        for (index_t i = 0; i < grid.rows * grid.cols; ++i) {
          ranks.push_back(i % 5 == 2 ? BlockLowRank::kDense : static_cast<std::int32_t>((i * 7 + 3) % 5));
          dense += ranks.back() == BlockLowRank::kDense;
          sum += std::max(ranks.back(), std::int32_t{0});
        }
        const RandomFactor left({sum, 13}, seed), right({sum, 17}, seed + 1), tiles({dense * 13, 17}, seed + 2);
        return BlockLowRank::encode(shape, ranks, left.view(), right.view(), tiles.view(), b);
      });
  check_chains(
      form,
      [](const AnyLinear& any) {
        const BlockLowRank& op = *any.get_if<BlockLowRank>();
        const MatrixShape shape{op.out_features(), op.in_features()};
        const MatrixShape grid = BlockLowRank::grid(shape, op.parameters());
        const std::vector<float> left = decode(op.left()), right = decode(op.right()), tiles = decode(op.tiles());
        std::vector<Chain> chains(static_cast<std::size_t>(shape.rows));
        index_t left_row = 0, dense = 0;
        for (index_t k = 0; k < grid.rows; ++k)
          for (index_t l = 0; l < grid.cols; ++l) {
            const std::int32_t rank = op.rank(k, l);
            index_t right_row = 0;  // of the tiles before, column after column
            for (index_t c = 0; c <= l; ++c)
              for (index_t r = 0; r < (c < l ? grid.rows : k); ++r)
                right_row += std::max(op.rank(r, c), std::int32_t{0});
            const index_t width = std::min<index_t>(17, shape.cols - l * 17);
            for (index_t s = 0; s < std::min<index_t>(13, shape.rows - k * 13); ++s) {
              Chain& c = chains[static_cast<std::size_t>(k * 13 + s)];
              if (rank == BlockLowRank::kDense) {
                c.weights.push_back(1.0f);
                c.values.push_back({{1.0f, l * 17, cut_row(tiles, 17, dense * 13 + s, width)}});
              }
              for (index_t r = 0; r < rank; ++r) {
                c.weights.push_back(left[static_cast<std::size_t>((left_row + r) * 13 + s)]);
                c.values.push_back({{1.0f, l * 17, cut_row(right, 17, right_row + r, width)}});
              }
            }
            if (rank == BlockLowRank::kDense) ++dense;
            left_row += std::max(rank, std::int32_t{0});
          }
        return chains;
      },
      exact);
  return form;
}

/// One of several products in a row: a dense matrix, and what its activations are rounded in.
struct Stage {
  std::vector<float> w;  ///< [out, in]
  std::size_t out = 0, in = 0;
  std::size_t block = 0;  ///< inputs a group of int8 does not cross
};

/// What stages make of x, its errors passed on: a value of a stage is an operand of the next one, at most as large as
/// its error can make it.
std::vector<ProductCheck> check_stages(std::span<const float> x, const std::vector<Stage>& stages, Activations mode) {
  std::vector<ProductCheck> values;
  for (const float v : x) values.push_back({static_cast<double>(v), 0.0});
  for (const Stage& stage : stages) {
    std::vector<float> largest;
    for (const ProductCheck& v : values)
      largest.push_back(static_cast<float>((std::abs(v.value) + v.bound) * (1 + 0x1p-23)));
    std::vector<ProductCheck> next;
    for (std::size_t n = 0; n < stage.out; ++n) {
      const auto row = std::span(stage.w).subspan(n * stage.in, stage.in);
      ProductCheck check{0.0, check_blocks(largest, row, mode, stage.block).bound};
      for (std::size_t j = 0; j < stage.in; ++j) {
        check.value += static_cast<double>(row[j]) * values[j].value;
        check.bound += std::abs(static_cast<double>(row[j])) * values[j].bound;
      }
      next.push_back(check);
    }
    values = std::move(next);
  }
  return values;
}

/// Block-diagonal factors of three blocks around a 2:4 core. Its products are checked stage by stage; those of one
/// vector are kept for the next results.
Operator armor() {
  using Op = ArmorMatrix<DenseFormat<bf16>>;
  static constexpr std::size_t kBlocks = 3;
  Operator form;
  form.name = "armor-2:4-bf16";
  form.make = [](MatrixShape shape, std::uint64_t seed) -> AnyLinear {
    const auto side = [](index_t features, std::uint64_t factor_seed) {
      const MatrixShape square{features, features};
      const RandomFactor w(BlockDiagonal::stack_shape(square, index_t{kBlocks}), factor_seed);
      return BlockDiagonal::encode(square, w.view(), {index_t{kBlocks}, FactorFormat::bf16()});
    };
    const NmFormat<DenseFormat<bf16>> core;
    std::vector<float> w = random_weights(shape.rows, shape.cols, seed);
    const MatrixView<float> view(w.data(), shape.rows, shape.cols);
    prune(core, view);
    return Op({side(shape.rows, seed + 1), NmMatrix<DenseFormat<bf16>>::encode(view, core)},
              side(shape.cols, seed + 2));
  };
  form.reopen = [](const AnyLinear& op, MatrixShape shape, Sections sections) -> AnyLinear {
    return Op::from_sections(shape, op.get_if<Op>()->parameters(), sections);
  };
  const auto stage = [](const auto& op, bool transposed, std::size_t blocks) {
    const auto rows = static_cast<std::size_t>(op.out_features()), cols = static_cast<std::size_t>(op.in_features());
    const std::vector<float> w = decode(op);
    Stage s{w, transposed ? cols : rows, transposed ? rows : cols,
            std::max<std::size_t>(1, (cols + blocks - 1) / blocks)};
    for (std::size_t i = 0; transposed && i < rows; ++i)
      for (std::size_t j = 0; j < cols; ++j) s.w[j * rows + i] = w[i * cols + j];
    return s;
  };
  const auto kept_checks = [](std::vector<Stage> stages) {
    struct Kept {
      std::vector<float> x;
      std::optional<Activations> mode;
      std::vector<ProductCheck> results;
    };
    return [stages = std::move(stages), kept = std::make_shared<Kept>()](std::span<const float> x, index_t n,
                                                                         Activations mode) {
      if (kept->mode != mode || !std::equal(x.begin(), x.end(), kept->x.begin(), kept->x.end()))
        *kept = {{x.begin(), x.end()}, mode, check_stages(x, stages, mode)};
      return kept->results[static_cast<std::size_t>(n)];
    };
  };
  form.checker = [=](const AnyLinear& any) -> Operator::Check {
    const Op& op = *any.get_if<Op>();
    return [check = kept_checks({stage(op.inner(), false, kBlocks), stage(op.outer().inner(), false, 1),
                                 stage(op.outer().outer(), false, kBlocks)})](
               std::span<const float> x, std::span<const float>, index_t n, Activations mode) {
      return check(x, n, mode);
    };
  };
  form.transpose_checker = [=](const AnyLinear& any) -> Operator::TransposeCheck {
    const Op& op = *any.get_if<Op>();
    return [check = kept_checks(
                {stage(op.outer().outer(), true, 1), stage(op.outer().inner(), true, 1), stage(op.inner(), true, 1)})](
               std::span<const float> y, std::span<const float>, index_t k) { return check(y, k, Activations::f32); };
  };
  return form;
}

}  // namespace

const std::vector<Operator>& operators() {
  static const std::vector<Operator> all = {
      rows(DenseFormat<float>{}),
      rows(DenseFormat<float>{}, PackPolicy::ahead()),
      rows(DenseFormat<float>{}, PackPolicy::none()),
      rows(DenseFormat<bf16>{}),
      rows(DenseFormat<bf16>{}, PackPolicy::none()),
      rows(DenseFormat<fp16>{}),
      composed(),
      transformed<BlockHadamard>("hadamard-b32", [](index_t features) { return BlockHadamard(features, 32); }),
      transformed<ChannelScale>("channel-scale",
                                [](index_t features) {
                                  std::vector<float> scales(static_cast<std::size_t>(features));
                                  for (std::size_t j = 0; j < scales.size(); ++j)
                                    scales[j] = 0.25f + 0.125f * static_cast<float>(j % 13);
                                  return ChannelScale(scales);
                                }),
      adapted<Dense<float>, LoraUpdate>("lora over f32", false, false, make_lora),
      adapted<QuantizedMatrix<Mx>, LoraUpdate>("lora over mxfp8", false, false, make_lora),
      adapted<Dense<bf16>, ColumnParallelUpdate>("column-parallel lora over bf16", true, false, make_column_parallel),
      adapted<Dense<float>, RowParallelUpdate>("row-parallel lora over f32", false, false, make_row_parallel),
      adapted<Dense<float>, BoneUpdate>("bone over f32", false, true, make_bone),
      adapted<Dense<bf16>, MiniUpdate>("mini bone over bf16", true, true, make_mini),
      rows(Bfp{.mantissa_bits = 4, .block = 32}),
      rows(Bfp{.mantissa_bits = 6, .block = 32}),
      rows(Bfp{.mantissa_bits = 8, .block = 64, .asymmetric = true}),
      rows(Bfp{.mantissa_bits = 11, .block = 16}),
      rows(Mx{.element = MxElement::e4m3}),
      rows(Mx{.element = MxElement::e5m2}),
      rows(Mx{.element = MxElement::e2m3}),
      rows(Mx{.element = MxElement::e3m2}),
      rows(Mx{.element = MxElement::e2m1}),
      rows(Mx{.element = MxElement::int8}),
      rows(Mx{.element = MxElement::int4}),
      rows(GroupInt{.bits = 4, .group_size = 32}),
      rows(GroupInt{.bits = 4, .group_size = 32, .grid = GroupGrid::asymmetric}),
      rows(GroupInt{.bits = 8, .group_size = 128}),
      rows(GroupInt{.bits = 3, .group_size = 0}),
      rows(GroupInt{.bits = 2, .group_size = 32}),
      rows(Nvfp4{}),
      rows(Nf4{}),
      rows(Ternary{}),
      rows(StatsQ{.bits = 2}),
      rows(StatsQ{.bits = 3}),
      rows(StatsQ{.bits = 4}),
      ptq161(),
      rows(Ternary{Ternary::kTensor, TernaryRule::mean, TernaryPacking::base3}),
      rows(Ggml{GgmlType::q4_0}),
      rows(Ggml{GgmlType::q4_1}),
      rows(Ggml{GgmlType::q5_0}),
      rows(Ggml{GgmlType::q5_1}),
      rows(Ggml{GgmlType::q8_0}),
      rows(Ggml{GgmlType::q2_k}),
      rows(Ggml{GgmlType::q3_k}),
      rows(Ggml{GgmlType::q4_k}),
      rows(Ggml{GgmlType::q5_k}),
      rows(Ggml{GgmlType::q6_k}),
      rows(Ggml{GgmlType::q8_k}),
      rows(Ggml{GgmlType::iq4_nl}),
      rows(Ggml{GgmlType::iq4_xs}),
      rows(Ggml{GgmlType::tq1_0}),
      rows(Ggml{GgmlType::tq2_0}),
      rows(Ggml{GgmlType::mxfp4}),
      rows(Ggml{GgmlType::nvfp4}),
      rows(NmFormat<DenseFormat<bf16>>()),
      rows(NmFormat<DenseFormat<float>>()),
      rows(NmFormat(NmLayout{}, GroupInt{.bits = 4, .group_size = 32})),
      rows(NmFormat(NmLayout{}, Mx{.element = MxElement::e4m3})),
      rows(NmFormat<DenseFormat<bf16>>({4, 8})),
      rows(NmFormat<DenseFormat<bf16>>({1, 4})),
      armor(),
      block_sparse({32, 32}, DenseFormat<bf16>{}),
      block_sparse({16, 32}, DenseFormat<float>{}),
      block_sparse({64, 64}, DenseFormat<bf16>{}),
      block_sparse({16, 1}, DenseFormat<float>{}),
      block_sparse({32, 32}, Mx{.element = MxElement::e4m3}),
      block_sparse({1, 1}, DenseFormat<bf16>{}),
      block_sparse({4, 1}, GroupInt{.bits = 8, .group_size = 0}),
      block_sparse({5, 7}, GroupInt{.bits = 4, .group_size = 32}),
      block_diagonal(FactorFormat::f32(), false),
      block_diagonal(FactorFormat::bf16(), true),
      block_diagonal(FactorFormat::of(Mx{.element = MxElement::e2m1}), true),
      low_rank(FactorFormat::f32(), false),
      low_rank(FactorFormat::bf16(), true),
      low_rank(FactorFormat::of(Mx{.element = MxElement::e4m3}), true),
      monarch(FactorFormat::f32(), OutputOrder::blocked, false),
      monarch(FactorFormat::bf16(), OutputOrder::blocked, true),
      monarch(FactorFormat::bf16(), OutputOrder::interleaved, true),
      monarch(FactorFormat::of(Mx{.element = MxElement::e4m3}), OutputOrder::blocked, true),
      blast(FactorFormat::f32(), 5, false),
      blast(FactorFormat::bf16(), 37, true),
      blast(FactorFormat::of(Mx{.element = MxElement::e4m3}), 6, true),
      block_low_rank(FactorFormat::f32(), false),
      block_low_rank(FactorFormat::bf16(), true),
      block_low_rank(FactorFormat::of(Mx{.element = MxElement::e4m3}), true),
  };
  return all;
}

}  // namespace blockpack::test::conformance
