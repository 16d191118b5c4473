// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Many adapters of one layer, served in one batch: each token names the adapter it wants.
///
/// Tokens are put together by adapter (stably, by counting) and every adapter multiplies its own as one small product.
/// What an adapter adds to a token does not depend on the batch: its products run with `batch_invariant` set, and each
/// token meets one adapter. Ranks and forms may differ from adapter to adapter.

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/structured/adapter.hpp"
#include "blockpack/structured/lora.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The adapters of a layer [out, in], numbered from 0 in the order they were added. Adding is not safe beside an apply.
class AdapterBank {
 public:
  explicit AdapterBank(MatrixShape shape) : shape_(shape) {}

  /// Takes any update of this layer and returns its number. ShapeError for another shape.
  index_t add(AnyLinear update) {
    if (update.shape() != shape_)
      throw ShapeError("AdapterBank::add: the update is " + to_string(update.shape()) + ", the layer " +
                       to_string(shape_));
    bytes_.push_back(update.storage_bytes());
    updates_.push_back(std::move(update));
    return size() - 1;
  }
  /// A LoRA, its factors copied as float32: a [r, in], b [out, r]. Errors of lora_update.
  index_t add(MatrixView<const float> a, MatrixView<const float> b, float scaling = 1.0f) {
    return add(lora_update(a, b, scaling));
  }

  index_t size() const noexcept { return static_cast<index_t>(updates_.size()); }
  MatrixShape shape() const noexcept { return shape_; }
  /// ShapeError when there is no such adapter.
  const AnyLinear& update(index_t id) const {
    if (id < 0 || id >= size())
      throw ShapeError("AdapterBank::update: " + std::to_string(id) + " is not in [0, " + std::to_string(size()) + ")");
    return updates_[static_cast<std::size_t>(id)];
  }
  std::size_t storage_bytes() const noexcept {
    std::size_t sum = 0;
    for (const std::size_t b : bytes_) sum += b;
    return sum;
  }

  /// y[m] += update_{ids[m]}(x[m]); tokens whose id is negative are left alone.
  ///
  /// Shapes:  x [tokens, in], y [tokens, out], one id a token.
  /// Errors:  ShapeError for other shapes, or an id that is no adapter's, before y is written; ValueError for an
  ///          epilogue.
  /// Cost:    the factors of each adapter in the batch are read once. Two small arrays a call; a copy of those tokens
  ///          of an adapter that are not evenly spaced in the batch.
  void add_to(ActivationView x, std::span<const index_t> ids, MatrixView<float> y, const ApplyOptions& how = {}) const {
    if (!how.epilogue.empty()) throw ValueError("AdapterBank::add_to: an epilogue is not supported");
    detail::check_apply_shapes("AdapterBank::add_to", shape_.rows, shape_.cols, x.shape(), y.shape(), {});
    check_ids("AdapterBank::add_to", ids, x.rows());
    run(x, ids, y, how);
  }

  /// y = epilogue(base(x) + update_{ids}(x)). The base runs as `how` says: set `batch_invariant` for it too where whole
  /// results must not depend on the batch.
  template <LinearOperator Base>
  void apply(const Base& base, ActivationView x, std::span<const index_t> ids, ResultView y,
             const ApplyOptions& how = {}) const {
    const MatrixShape b{base.out_features(), base.in_features()};
    if (b != shape_)
      throw ShapeError("AdapterBank::apply: the base is " + to_string(b) + ", the adapters " + to_string(shape_));
    detail::check_apply_shapes("AdapterBank::apply", shape_.rows, shape_.cols, x.shape(), y.shape(), how.epilogue);
    check_ids("AdapterBank::apply", ids, x.rows());
    detail::apply_sum(y, how, [&](MatrixView<float> z, const ApplyOptions& parts) {
      base.apply(x, z, parts);
      run(x, ids, z, parts);
    });
  }

 private:
  /// The tokens of one adapter: `tokens` in the order of the batch.
  struct Segment {
    index_t id;
    std::span<const index_t> tokens;
  };

  void check_ids(const char* function, std::span<const index_t> ids, index_t tokens) const {
    if (static_cast<index_t>(ids.size()) != tokens)
      throw ShapeError(std::string(function) + ": " + std::to_string(ids.size()) + " ids, x has " +
                       std::to_string(tokens) + " tokens");
    for (std::size_t m = 0; m < ids.size(); ++m)
      if (ids[m] >= size())
        throw ShapeError(std::string(function) + ": ids[" + std::to_string(m) + "] = " + std::to_string(ids[m]) +
                         ", the bank has " + std::to_string(size()) + " adapters");
  }

  void run(ActivationView x, std::span<const index_t> ids, MatrixView<float> y, const ApplyOptions& how) const {
    std::vector<index_t> first(updates_.size() + 1), order(ids.size());
    for (const index_t id : ids)
      if (id >= 0) ++first[static_cast<std::size_t>(id) + 1];
    for (std::size_t a = 1; a < first.size(); ++a) first[a] += first[a - 1];
    for (std::size_t m = 0; m < ids.size(); ++m)
      if (ids[m] >= 0)
        order[static_cast<std::size_t>(first[static_cast<std::size_t>(ids[m])]++)] = static_cast<index_t>(m);

    // first[a] is now the end of adapter a. One with many tokens has work for every thread by itself.
    constexpr std::size_t kManyTokens = 64;
    ApplyOptions inner = how;
    inner.execution.batch_invariant = true;
    std::vector<Segment> small;
    double ns = 0;
    for (std::size_t a = 0; a < updates_.size(); ++a) {
      const auto begin = static_cast<std::size_t>(a == 0 ? 0 : first[a - 1]), end = static_cast<std::size_t>(first[a]);
      if (begin == end) continue;
      const Segment segment{static_cast<index_t>(a), std::span<const index_t>(order).subspan(begin, end - begin)};
      if (segment.tokens.size() >= kManyTokens) {
        add_segment(x, segment, y, inner);
      } else {
        small.push_back(segment);
        ns += static_cast<double>(bytes_[a]) * (1.0 + static_cast<double>(end - begin) / 8.0) / 30.0;
      }
    }
    if (small.size() == 1) return add_segment(x, small[0], y, inner);
    inner.execution = inner.execution.serial();
    // Below about 20 µs of work, waking threads costs more than it saves.
    Execution outer = how.execution;
    if (ns < 20'000.0 && !outer.executor) outer.threads = 1;
    parallel_for(outer, static_cast<index_t>(small.size()),
                 [&](index_t s) { add_segment(x, small[static_cast<std::size_t>(s)], y, inner); });
  }

  /// Tokens at equal distances are multiplied where they are, others are copied together.
  void add_segment(ActivationView x, const Segment& s, MatrixView<float> y, const ApplyOptions& how) const {
    const AnyLinear& update = updates_[static_cast<std::size_t>(s.id)];
    const std::span<const index_t> t = s.tokens;
    const auto count = static_cast<index_t>(t.size());
    const index_t step = count > 1 ? t[1] - t[0] : 1;
    bool even = true;
    for (std::size_t i = 1; i < t.size(); ++i) even = even && t[i] - t[i - 1] == step;
    if (even) {
      const auto every = [&](auto view) {
        using View = decltype(view);
        return View(view.row_data(t[0]), count, view.cols(), step * view.row_stride());
      };
      const ActivationView from = x.is_bf16() ? ActivationView(every(x.as_bf16())) : ActivationView(every(x.f32()));
      return detail::add_product(update, from, every(y), how);
    }
    const auto gather = [&](auto view) {
      using T = typename decltype(view)::value_type;
      auto rows = AlignedBuffer<T>::uninitialized(checked_mul(count, view.cols(), "AdapterBank"));
      for (index_t i = 0; i < count; ++i)
        std::copy_n(view.row_data(t[static_cast<std::size_t>(i)]), view.cols(), rows.data() + i * view.cols());
      return rows;
    };
    detail::CallMatrix sums(count, shape_.rows);
    const auto multiply = [&](const auto& rows) {
      update.apply(MatrixView(rows.data(), count, shape_.cols), sums.view(), how);
    };
    if (x.is_bf16()) {
      multiply(gather(x.as_bf16()));
    } else {
      multiply(gather(x.f32()));
    }
    // The same sum as a residual's: product + y.
    for (index_t i = 0; i < count; ++i) {
      const float* from = sums.view().row_data(i);
      float* to = y.row_data(t[static_cast<std::size_t>(i)]);
      for (index_t n = 0; n < shape_.rows; ++n) to[n] += from[n];
    }
  }

  MatrixShape shape_;
  std::vector<AnyLinear> updates_;
  std::vector<std::size_t> bytes_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
