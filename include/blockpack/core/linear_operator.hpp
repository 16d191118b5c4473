// SPDX-License-Identifier: Apache-2.0
#pragma once

/// One vocabulary for every compressed form: a linear operator y = x · Wᵀ with W [out, in], x [tokens, in], y [tokens,
/// out].
///
/// An operator is immutable after construction; its const members may be called from any number of threads at once.
/// What it stores is a list of named byte sections, in file order; `from_sections` is the inverse.

#include <concepts>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// What the activations are rounded to inside a product; sums are float32 (or exact integers). docs/numerics.md has the
/// error bound of each mode.
enum class Activations : std::uint8_t {
  automatic,  ///< the fastest mode whose own error lies 6 dB or more below the weight format's
  f32,        ///< none
  bf16,       ///< x to bf16, half to even
  int8,       ///< x per group of 32 along `in` to multiples of absmax / 127
  int8_token  ///< x per token to multiples of absmax / 127; never what `automatic` means
};
constexpr std::string_view to_string(Activations mode) noexcept {
  constexpr std::string_view kNames[] = {"automatic", "f32", "bf16", "int8", "int8_token"};
  return kNames[static_cast<std::size_t>(mode)];
}

/// Element-wise function of the epilogue. gelu is the exact one, v/2 · (1 + erf(v/√2)); silu is v / (1 + e^-v).
enum class EpilogueFunction : std::uint8_t { none, relu, gelu, silu };

/// y = function(diag(token_scales) · x · Wᵀ + bias) ∘ gate + residual, each part optional. The type of the result is
/// that of the y view.
struct Epilogue {
  std::span<const float> bias;                         ///< [out], or empty
  EpilogueFunction function = EpilogueFunction::none;  ///< applied after the bias
  MatrixView<const float> gate;                        ///< [tokens, out], multiplied after the function, or empty
  MatrixView<const float> residual;                    ///< [tokens, out], added last, or empty; may be y itself
  std::span<const float> token_scales = {};            ///< [tokens], multiplied first (x kept as integers), or empty
  bool empty() const noexcept {
    return bias.empty() && function == EpilogueFunction::none && gate.data() == nullptr && residual.data() == nullptr &&
           token_scales.empty();
  }
};

struct ApplyOptions {
  Execution execution;
  Activations activations = Activations::automatic;
  Epilogue epilogue;
};

/// x of a product: a read-only view of float or bf16.
class ActivationView {
 public:
  ActivationView(MatrixView<const float> x) noexcept  // NOLINT(google-explicit-constructor)
      : f32_(x), shape_(x.shape()) {}
  ActivationView(MatrixView<float> x) noexcept : ActivationView(MatrixView<const float>(x)) {}  // NOLINT
  ActivationView(MatrixView<const bf16> x) noexcept                                             // NOLINT
      : bf16_(x), shape_(x.shape()), is_bf16_(true) {}
  ActivationView(MatrixView<bf16> x) noexcept : ActivationView(MatrixView<const bf16>(x)) {}  // NOLINT

  index_t rows() const noexcept { return shape_.rows; }
  index_t cols() const noexcept { return shape_.cols; }
  MatrixShape shape() const noexcept { return shape_; }
  bool is_bf16() const noexcept { return is_bf16_; }
  MatrixView<const float> f32() const noexcept { return f32_; }      ///< meaningful when !is_bf16()
  MatrixView<const bf16> as_bf16() const noexcept { return bf16_; }  ///< meaningful when is_bf16()

  /// Rows [row, row + rows) and columns [col, col + cols). ShapeError if they do not lie inside.
  ActivationView block(index_t row, index_t col, index_t rows, index_t cols) const {
    if (is_bf16_) return bf16_.block(row, col, rows, cols);
    return f32_.block(row, col, rows, cols);
  }

 private:
  MatrixView<const float> f32_;
  MatrixView<const bf16> bf16_;
  MatrixShape shape_;
  bool is_bf16_ = false;
};

/// y of a product: a writable view of float or bf16 (rounded half to even after the epilogue).
class ResultView {
 public:
  ResultView(MatrixView<float> y) noexcept : f32_(y), shape_(y.shape()) {}                  // NOLINT
  ResultView(MatrixView<bf16> y) noexcept : bf16_(y), shape_(y.shape()), is_bf16_(true) {}  // NOLINT

  index_t rows() const noexcept { return shape_.rows; }
  index_t cols() const noexcept { return shape_.cols; }
  MatrixShape shape() const noexcept { return shape_; }
  bool is_bf16() const noexcept { return is_bf16_; }
  MatrixView<float> f32() const noexcept { return f32_; }
  MatrixView<bf16> as_bf16() const noexcept { return bf16_; }

  /// Rows [row, row + rows) and columns [col, col + cols). ShapeError if they do not lie inside.
  ResultView block(index_t row, index_t col, index_t rows, index_t cols) const {
    if (is_bf16_) return bf16_.block(row, col, rows, cols);
    return f32_.block(row, col, rows, cols);
  }

 private:
  MatrixView<float> f32_;
  MatrixView<bf16> bf16_;
  MatrixShape shape_;
  bool is_bf16_ = false;
};

/// A named run of the stored bytes of an operator.
struct Section {
  std::string name;
  SharedBytes data;
};

/// Sum of the sizes of the sections.
inline std::size_t section_bytes(std::span<const Section> sections) noexcept {
  std::size_t sum = 0;
  for (const Section& s : sections) sum += s.data.bytes.size();
  return sum;
}

template <class Op>
concept LinearOperator = requires(const Op& op, MatrixView<const float> x, MatrixView<float> y,
                                  std::span<const index_t> rows, const ApplyOptions& how) {
  { op.out_features() } -> std::convertible_to<index_t>;       // rows of W
  { op.in_features() } -> std::convertible_to<index_t>;        // columns of W, the reduction dimension
  { op.sections() } -> std::same_as<std::vector<Section>>;     // named views of the stored bytes, in file order
  { op.storage_bytes() } -> std::convertible_to<std::size_t>;  // their sum; headers and packed caches not counted
  op.apply(x, y, how);                                         // y = epilogue(x · Wᵀ)
  op.decode_rows(rows, y);                                     // chosen rows of the dense matrix it stands for
};

template <class Op>
concept TransposableOperator = LinearOperator<Op> &&
    requires(const Op& op, MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how) {
  op.apply_transpose(y, x, how);  // x [tokens, in] = y [tokens, out] · W; the epilogue must be empty
};

namespace detail {

/// Shapes of x, y and the epilogue against an [out, in] operator; ShapeError that names `function` and the argument.
inline void check_apply_shapes(const char* function, index_t out, index_t in, MatrixShape x, MatrixShape y,
                               const Epilogue& epilogue) {
  const auto fail = [&](const std::string& text) { throw ShapeError(std::string(function) + ": " + text); };
  if (x.cols != in)
    fail("x has " + std::to_string(x.cols) + " columns, in_features = " + std::to_string(in) + " needed");
  if (y.cols != out)
    fail("y has " + std::to_string(y.cols) + " columns, out_features = " + std::to_string(out) + " needed");
  if (y.rows != x.rows) fail("y has " + std::to_string(y.rows) + " rows, x has " + std::to_string(x.rows) + " tokens");
  if (!epilogue.bias.empty() && static_cast<index_t>(epilogue.bias.size()) != out)
    fail("epilogue.bias has " + std::to_string(epilogue.bias.size()) +
         " values, out_features = " + std::to_string(out) + " needed");
  if (!epilogue.token_scales.empty() && static_cast<index_t>(epilogue.token_scales.size()) != x.rows)
    fail("epilogue.token_scales has " + std::to_string(epilogue.token_scales.size()) + " values, x has " +
         std::to_string(x.rows) + " tokens");
  if (epilogue.gate.data() != nullptr && epilogue.gate.shape() != y)
    fail("epilogue.gate is " + to_string(epilogue.gate.shape()) + ", y is " + to_string(y));
  if (epilogue.residual.data() != nullptr && epilogue.residual.shape() != y)
    fail("epilogue.residual is " + to_string(epilogue.residual.shape()) + ", y is " + to_string(y));
}

/// The same for a product that another operator gates; ValueError for a gate in the epilogue.
inline void check_gated_shapes(const char* function, MatrixShape w, MatrixShape gate, MatrixShape x, MatrixShape y,
                               const Epilogue& epilogue) {
  if (gate != w)
    throw ShapeError(std::string(function) + ": the gate is " + to_string(gate) + ", " + to_string(w) + " needed");
  if (epilogue.gate.data() != nullptr)
    throw ValueError(std::string(function) + ": epilogue.gate must be empty, the gate is a product");
  check_apply_shapes(function, w.rows, w.cols, x, y, epilogue);
}

/// y = epilogue(x · Wᵀ) whose gate is x · gateᵀ, as two products with a matrix [tokens, out] between them.
template <class Op, class Gate>
void apply_gated_apart(const Op& op, const Gate& gate, ActivationView x, ResultView y, ApplyOptions how) {
  auto values = AlignedBuffer<float>::uninitialized(checked_mul(y.rows(), y.cols(), "apply_gated"));
  const MatrixView<float> product(values.data(), y.rows(), y.cols());
  ApplyOptions first = how;
  first.epilogue = {};
  first.epilogue.token_scales = how.epilogue.token_scales;
  gate.apply(x, product, first);
  how.epilogue.gate = product;
  op.apply(x, y, how);
}

/// Whether two views of floats share memory, gaps between rows included.
inline bool may_overlap(MatrixView<const float> a, MatrixView<const float> b) noexcept {
  if (a.empty() || b.empty()) return false;
  const auto end = [](MatrixView<const float> v) { return v.data() + (v.rows() - 1) * v.row_stride() + v.cols(); };
  const std::less<const float*> before;
  return before(a.data(), end(b)) && before(b.data(), end(a));
}

/// rows in [0, out) and y [rows.size(), in]; ShapeError that names `function` and the argument.
inline void check_decode_rows(const char* function, MatrixShape w, std::span<const index_t> rows, MatrixShape y) {
  const MatrixShape needed{static_cast<index_t>(rows.size()), w.cols};
  if (y != needed)
    throw ShapeError(std::string(function) + ": y is " + to_string(y) + ", " + to_string(needed) + " needed");
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (rows[i] < 0 || rows[i] >= w.rows)
      throw ShapeError(std::string(function) + ": rows[" + std::to_string(i) + "] = " + std::to_string(rows[i]) +
                       " is not in [0, " + std::to_string(w.rows) + ")");
}

}  // namespace detail

}  // namespace blockpack::inline BLOCKPACK_ABI
