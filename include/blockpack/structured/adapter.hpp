// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Adapters: a frozen layer and a small trainable update beside it, y = base(x) + update(x), where
///
///     update(x) = scaling · up(down(x)),      down [rank, in],  up [out, rank].
///
/// LoRA, block-diagonal LoRA (structured/lora.hpp) and Bone (structured/bone.hpp) differ in `down` and `up` alone. Base
/// and update are operators of any form; `merge` adds an update to a dense matrix and `unmerge` takes it out again.

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/compose.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/parts.hpp"
#include "blockpack/core/reference.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {

inline constexpr index_t kAdapterRowsPerTask = 16;

/// y = epilogue(sum): `sum(z, how)` writes a sum of products to z [tokens, out] and obeys the epilogue of its own
/// `how`. A bias and a residual are passed on to it; everything else waits until the sum is complete.
template <class Sum>
void apply_sum(ResultView y, const ApplyOptions& how, const Sum& sum) {
  const Epilogue& e = how.epilogue;
  const bool linear = e.function == EpilogueFunction::none && e.gate.data() == nullptr && e.token_scales.empty();
  const bool in_place = !y.is_bf16() && (linear || !(may_overlap(e.residual, y.f32()) || may_overlap(e.gate, y.f32())));
  CallMatrix own(in_place ? 0 : y.rows(), y.cols());
  const MatrixView<float> z = in_place ? y.f32() : own.view();
  ApplyOptions parts = how;
  if (!linear) parts.epilogue = {};
  sum(z, parts);
  if (linear && in_place) return;
  const Epilogue rest = linear ? Epilogue{} : e;
  parallel_for(how.execution, ceil_div(y.rows(), kAdapterRowsPerTask), [&](index_t task) {
    const index_t end = std::min(y.rows(), (task + 1) * kAdapterRowsPerTask);
    for (index_t m = task * kAdapterRowsPerTask; m < end; ++m)
      for (index_t n = 0; n < y.cols(); ++n) reference::store(y, m, n, reference::apply_epilogue(rest, m, n, z(m, n)));
  });
}

/// y += update(x): the residual of its epilogue is y itself.
template <class Op>
void add_product(const Op& op, ActivationView x, MatrixView<float> y, ApplyOptions how) {
  how.epilogue = {};
  how.epilogue.residual = y;
  op.apply(x, y, how);
}

/// dst += sign · src, of equal shapes.
inline void add_scaled(MatrixView<float> dst, MatrixView<const float> src, float sign) noexcept {
  for (index_t m = 0; m < dst.rows(); ++m) {
    float* d = dst.row_data(m);
    const float* s = src.row_data(m);
    for (index_t n = 0; n < dst.cols(); ++n) d[n] += sign * s[n];
  }
}

/// A part that can be read back from its sections; AnyLinear cannot, nobody knows what is inside.
template <class Op>
concept Reopenable = requires(MatrixShape shape, const typename ParametersOf<Op>::type& parameters,
                              std::span<const Section> sections) {
  { Op::from_sections(shape, parameters, sections) } -> std::convertible_to<Op>;
};

}  // namespace detail

/// The update W = scaling · W_up · W_down [out, in] of an adapter, of rank at most `rank()`.
template <TransposableOperator Down = Dense<float>, TransposableOperator Up = Dense<float>>
class AdapterUpdate {
 public:
  /// ShapeError unless down.out_features() == up.in_features(). ValueError for rank 0 or a scaling that is not finite.
  AdapterUpdate(Down down, Up up, float scaling = 1.0f)
      : down_(std::move(down)), up_(std::move(up)), scaling_(scaling) {
    if (down_.out_features() != up_.in_features())
      throw ShapeError("AdapterUpdate: down has " + std::to_string(down_.out_features()) + " rows, up has " +
                       std::to_string(up_.in_features()) + " columns; both are the rank");
    if (down_.out_features() == 0) throw ValueError("AdapterUpdate: the rank is 0, 1 or more needed");
    if (!std::isfinite(scaling)) throw ValueError("AdapterUpdate: scaling is not finite");
  }

  /// What from_sections needs beside the sections.
  struct Parameters {
    index_t rank = 0;
    float scaling = 1.0f;
    typename detail::ParametersOf<Down>::type down;
    typename detail::ParametersOf<Up>::type up;
  };
  Parameters parameters() const requires detail::Reopenable<Down> && detail::Reopenable<Up> {
    return {rank(), scaling_, down_.parameters(), up_.parameters()};
  }

  /// The update whose `sections()` are these. FormatError for a section of neither part; errors of the parts.
  static AdapterUpdate from_sections(
      MatrixShape shape, const Parameters& parameters,
      std::span<const Section> sections) requires detail::Reopenable<Down> && detail::Reopenable<Up> {
    for (const Section& s : sections)
      if (!s.name.starts_with("down.") && !s.name.starts_with("up."))
        throw FormatError("from_sections: section " + s.name + " belongs to neither factor of the update");
    return {Down::from_sections({parameters.rank, shape.cols}, parameters.down, detail::sections_of(sections, "down.")),
            Up::from_sections({shape.rows, parameters.rank}, parameters.up, detail::sections_of(sections, "up.")),
            parameters.scaling};
  }

  index_t out_features() const { return up_.out_features(); }
  index_t in_features() const { return down_.in_features(); }
  index_t rank() const { return down_.out_features(); }
  float scaling() const noexcept { return scaling_; }
  const Down& down() const noexcept { return down_; }
  const Up& up() const noexcept { return up_; }

  /// The sections of both factors, named `down.…` and `up.…`.
  std::vector<Section> sections() const {
    std::vector<Section> all;
    detail::append_sections(all, "down.", down_);
    detail::append_sections(all, "up.", up_);
    return all;
  }
  std::size_t storage_bytes() const { return down_.storage_bytes() + up_.storage_bytes(); }
  std::size_t packed_bytes() const { return detail::packed_bytes_of(down_) + detail::packed_bytes_of(up_); }

  /// Both factors under the same options; the epilogue belongs to `up`. The intermediate u [tokens, rank] is float32
  /// and is scaled before `up` sees it.
  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", out_features(), in_features(), x.shape(), y.shape(), how.epilogue);
    detail::CallMatrix u(x.rows(), rank());
    ApplyOptions first = how;
    first.epilogue = {};
    down_.apply(x, u.view(), first);
    scale(u.view());
    up_.apply(MatrixView<const float>(u.view()), y, how);
  }

  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    if (!how.epilogue.empty()) throw ValueError("apply_transpose: an epilogue is not supported");
    detail::check_apply_shapes("apply_transpose", in_features(), out_features(), y.shape(), x.shape(), {});
    detail::CallMatrix u(y.rows(), rank());
    up_.apply_transpose(y, u.view(), how);
    scale(u.view());
    down_.apply_transpose(MatrixView<const float>(u.view()), x, how);
  }

  /// Rows of `up`, scaled, through the transposed `down`.
  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const {
    detail::check_decode_rows("decode_rows", {out_features(), in_features()}, rows, y.shape());
    detail::CallMatrix u(y.rows(), rank());
    up_.decode_rows(rows, u.view());
    scale(u.view());
    ApplyOptions serial;
    serial.execution.threads = 1;
    down_.apply_transpose(MatrixView<const float>(u.view()), y, serial);
  }

 private:
  void scale(MatrixView<float> u) const noexcept {
    if (scaling_ == 1.0f) return;
    for (index_t m = 0; m < u.rows(); ++m)
      for (float& v : u.row(m)) v *= scaling_;
  }

  Down down_;
  Up up_;
  float scaling_;
};

/// base + update, as one operator: y = epilogue(base(x) + update(x)). Base: any operator, AnyLinear included.
template <LinearOperator Base, LinearOperator Update>
class Adapted {
 public:
  /// ShapeError unless both have the same shape.
  Adapted(Base base, Update update) : base_(std::move(base)), update_(std::move(update)) {
    const MatrixShape b{base_.out_features(), base_.in_features()};
    const MatrixShape u{update_.out_features(), update_.in_features()};
    if (b != u) throw ShapeError("Adapted: the base is " + to_string(b) + ", the update " + to_string(u));
  }

  struct Parameters {
    typename detail::ParametersOf<Base>::type base;
    typename detail::ParametersOf<Update>::type update;
  };
  Parameters parameters() const requires detail::Reopenable<Base> && detail::Reopenable<Update> {
    return {base_.parameters(), update_.parameters()};
  }

  /// The operator whose `sections()` are these. Over an opened base of unknown form, build it from the base and
  /// Update::from_sections instead.
  static Adapted from_sections(
      MatrixShape shape, const Parameters& parameters,
      std::span<const Section> sections) requires detail::Reopenable<Base> && detail::Reopenable<Update> {
    std::vector<Section> update;
    for (const Section& s : sections)
      if (!s.name.starts_with("base.")) update.push_back(s);
    return {Base::from_sections(shape, parameters.base, detail::sections_of(sections, "base.")),
            Update::from_sections(shape, parameters.update, update)};
  }

  index_t out_features() const { return base_.out_features(); }
  index_t in_features() const { return base_.in_features(); }
  const Base& base() const noexcept { return base_; }
  const Update& update() const noexcept { return update_; }

  /// The sections of the base, named `base.…`, then those of the update.
  std::vector<Section> sections() const {
    std::vector<Section> all;
    detail::append_sections(all, "base.", base_);
    detail::append_sections(all, "", update_);
    return all;
  }
  std::size_t storage_bytes() const { return base_.storage_bytes() + update_.storage_bytes(); }
  std::size_t packed_bytes() const { return detail::packed_bytes_of(base_) + detail::packed_bytes_of(update_); }

  /// Both parts under the same options, added in float32. Extra memory: the intermediate of the update; a second
  /// [tokens, out] for a y of bf16, or a gate or function whose operand is y itself.
  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", out_features(), in_features(), x.shape(), y.shape(), how.epilogue);
    detail::apply_sum(y, how, [&](MatrixView<float> z, const ApplyOptions& parts) {
      base_.apply(x, z, parts);
      detail::add_product(update_, x, z, parts);
    });
  }

  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const requires
      TransposableOperator<Base> && TransposableOperator<Update> {
    if (!how.epilogue.empty()) throw ValueError("apply_transpose: an epilogue is not supported");
    detail::check_apply_shapes("apply_transpose", in_features(), out_features(), y.shape(), x.shape(), {});
    base_.apply_transpose(y, x, how);
    detail::CallMatrix delta(x.rows(), x.cols());
    update_.apply_transpose(y, delta.view(), how);
    detail::add_scaled(x, delta.view(), 1.0f);
  }

  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const {
    detail::check_decode_rows("decode_rows", {out_features(), in_features()}, rows, y.shape());
    base_.decode_rows(rows, y);
    detail::CallMatrix delta(y.rows(), y.cols());
    update_.decode_rows(rows, delta.view());
    detail::add_scaled(y, delta.view(), 1.0f);
  }

 private:
  Base base_;
  Update update_;
};

namespace detail {
template <LinearOperator Update>
void add_update(const char* function, MatrixView<float> w, const Update& update, float sign, const Execution& how) {
  const MatrixShape shape{update.out_features(), update.in_features()};
  if (w.shape() != shape)
    throw ShapeError(std::string(function) + ": w is " + to_string(w.shape()) + ", the update " + to_string(shape));
  constexpr index_t kRows = 64;
  parallel_for(how, ceil_div(w.rows(), kRows), [&](index_t task) {
    std::vector<index_t> rows;
    for (index_t r = task * kRows; r < std::min(w.rows(), (task + 1) * kRows); ++r) rows.push_back(r);
    CallMatrix delta(static_cast<index_t>(rows.size()), w.cols());
    update.decode_rows(rows, delta.view());
    add_scaled(w.rows_from(rows[0], delta.view().rows()), delta.view(), sign);
  });
}
}  // namespace detail

/// w += update, element by element in float32. ShapeError for another shape. Cost: the product of the factors once.
template <LinearOperator Update>
void merge(MatrixView<float> w, const Update& update, const Execution& how = {}) {
  detail::add_update("merge", w, update, 1.0f, how);
}

/// w -= update: what `merge` added, to one rounding of the merged weight.
template <LinearOperator Update>
void unmerge(MatrixView<float> w, const Update& update, const Execution& how = {}) {
  detail::add_update("unmerge", w, update, -1.0f, how);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
