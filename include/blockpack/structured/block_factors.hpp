// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The product of a matrix that is cut into blocks given through ranks (core/block_product.hpp), over factors of any
/// format. Block-diagonal, Monarch, BLAST and block low-rank operators are this with other parts.
///
/// Factors that are all float32 or all bf16 are packed together and multiplied in one call of the engine, where the
/// mode is f32 or bf16. Other formats, other modes and `blockpack::headers` go through the operators of the factors one
/// after the other, at most 256 tokens at a time.

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/block_product.hpp"
#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/packed_cache.hpp"
#include "blockpack/core/reference.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// y = epilogue(x · Wᵀ), W in blocks. Copies share the factors and the packed form.
class BlockFactors {
 public:
  /// A block that is kept as it is, [rows of the output block, in_block].
  struct Tile {
    index_t out_block, in_block;
    AnyLinear w;
  };
  struct Parts {
    MatrixShape shape;
    index_t in_block = 1;  ///< features of an input block; the last may be short, its weights are as wide as the others
    index_t out_block = 1;         ///< features of an output block; the last may be short
    std::vector<AnyLinear> right;  ///< of each input block: [ranks, in_block], or empty for none
    std::vector<AnyLinear> left;   ///< of each output block: [its first rows, ranks], or empty for none
    std::vector<RankRun> runs;     ///< ordered by output block, and within an input block by row of `right`
    std::vector<Tile> tiles;       ///< ordered by output block
    std::shared_ptr<const AlignedBuffer<float>> coupling;  ///< [out blocks · in blocks, ranks], or null
  };

  explicit BlockFactors(Parts parts, PackPolicy policy = {}) : parts_(std::make_shared<const Parts>(std::move(parts))) {
#if !defined(BLOCKPACK_HEADERS_ONLY)
    cache_ = std::make_shared<Cache>(policy);
    type_ = common_type();
    if (type_ && (policy.kind == PackPolicy::Kind::ahead || policy.kind == PackPolicy::Kind::into))
      std::call_once(cache_->once,
                     [&] { cache_->store(PackedBlocks::pack(source(), *type_, Execution{}, policy.memory)); });
#else
    static_cast<void>(policy);
#endif
  }

  const Parts& parts() const noexcept { return *parts_; }
  MatrixShape shape() const noexcept { return parts_->shape; }

  /// Bytes the packed forms hold now, those of the factors included.
  std::size_t packed_bytes() const {
    std::size_t sum = 0;
    for_each_factor([&](const AnyLinear& factor) { sum += factor.packed_bytes(); });
#if !defined(BLOCKPACK_HEADERS_ONLY)
    if (cache_->ready.load(std::memory_order_acquire)) sum += cache_->packed.bytes();
#endif
    return sum;
  }

  /// The mode an apply with that many tokens computes in: that of the factors.
  Activations activation_mode(index_t tokens, const ApplyOptions& how) const {
    Activations mode = how.activations;
    bool found = false;
    for_each_factor([&](const AnyLinear& factor) {
      if (!found) mode = factor.activation_mode(tokens, how);
      found = true;
    });
    return mode;
  }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how) const {
    detail::check_apply_shapes("apply", shape().rows, shape().cols, x.shape(), y.shape(), how.epilogue);
#if !defined(BLOCKPACK_HEADERS_ONLY)
    if (const PackedBlocks* packed = packed_for(how)) return matmul(x, *packed, y, how.activations, how);
#endif
    for (index_t first = 0; first < x.rows(); first += kTokens) {
      const index_t tokens = std::min(kTokens, x.rows() - first);
      apply_chunk(x.block(first, 0, tokens, x.cols()), y.block(first, 0, tokens, y.cols()), first, how);
    }
  }

  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how) const {
    if (!how.epilogue.empty()) throw ValueError("apply_transpose: an epilogue is not supported");
    detail::check_apply_shapes("apply_transpose", shape().cols, shape().rows, y.shape(), x.shape(), {});
    for (index_t first = 0; first < y.rows(); first += kTokens) {
      const index_t tokens = std::min(kTokens, y.rows() - first);
      transpose_chunk(y.rows_from(first, tokens), x.rows_from(first, tokens), how);
    }
  }

  /// Rows of W: rows of the left factors through the transposed right ones.
  void decode_rows(std::span<const index_t> rows, MatrixView<float> w) const {
    detail::check_decode_rows("decode_rows", shape(), rows, w.shape());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      AlignedBuffer<float> unit(shape().rows);
      unit[rows[i]] = 1.0f;
      transpose_chunk(MatrixView<const float>(unit.data(), 1, unit.size()), w.rows_from(static_cast<index_t>(i), 1), {},
                      rows[i]);
    }
  }

 private:
  static constexpr index_t kTokens = 256;
  using Values = AlignedBuffer<float>;

  template <class F>
  void for_each_factor(const F& f) const {
    for (const AnyLinear& factor : parts_->right)
      if (!factor.empty()) f(factor);
    for (const AnyLinear& factor : parts_->left)
      if (!factor.empty()) f(factor);
    for (const Tile& tile : parts_->tiles) f(tile.w);
  }

  index_t in_width(index_t l) const {
    return std::clamp<index_t>(shape().cols - l * parts_->in_block, 0, parts_->in_block);
  }
  index_t out_width(index_t k) const {
    return std::clamp<index_t>(shape().rows - k * parts_->out_block, 0, parts_->out_block);
  }
  /// First column of a block; that of blocks beyond the edge is the edge.
  index_t in_begin(index_t l) const { return std::min(shape().cols, l * parts_->in_block); }
  index_t out_begin(index_t k) const { return std::min(shape().rows, k * parts_->out_block); }

  static MatrixView<float> view(Values& v, index_t rows, index_t cols) { return {v.data(), rows, cols}; }
  static MatrixView<const float> view(const Values& v, index_t rows, index_t cols) { return {v.data(), rows, cols}; }

  /// y_l = x_l · rightᵀ, or any other weights of an input block; x_l is padded where the block is short.
  void through(const AnyLinear& w, ActivationView x, index_t l, MatrixView<float> y, const ApplyOptions& how) const {
    const index_t width = in_width(l);
    const ActivationView part = x.block(0, in_begin(l), x.rows(), width);
    if (width == w.in_features()) return w.apply(part, y, how);
    Values padded(checked_mul(x.rows(), w.in_features(), "apply"));
    for (index_t m = 0; m < x.rows(); ++m)
      reference::load_row(part, m, {padded.data() + m * w.in_features(), static_cast<std::size_t>(width)});
    w.apply(view(std::as_const(padded), x.rows(), w.in_features()), y, how);
  }

  void apply_chunk(ActivationView x, ResultView y, index_t first, const ApplyOptions& how) const {
    const Parts& p = *parts_;
    const index_t tokens = x.rows();
    const auto inputs = static_cast<index_t>(p.right.size()), outputs = static_cast<index_t>(p.left.size());
    ApplyOptions inner;
    inner.execution = how.execution;
    inner.activations = how.activations;
    std::vector<Values> values;
    for (index_t l = 0; l < inputs; ++l) {
      const AnyLinear& right = p.right[static_cast<std::size_t>(l)];
      values.push_back(Values::uninitialized(right.empty() ? 0 : checked_mul(tokens, right.out_features(), "apply")));
      if (!right.empty()) through(right, x, l, view(values.back(), tokens, right.out_features()), inner);
    }
    auto run = p.runs.begin();
    auto tile = p.tiles.begin();
    for (index_t k = 0; k < outputs; ++k) {
      const AnyLinear& left = p.left[static_cast<std::size_t>(k)];
      const index_t width = out_width(k), ranks = left.empty() ? 0 : left.in_features();
      Values z = Values::uninitialized(checked_mul(tokens, ranks, "apply"));
      for (index_t to = 0; run != p.runs.end() && run->out_block == k; to += run->count, ++run) {
        const Values& v = values[static_cast<std::size_t>(run->in_block)];
        const index_t stride = p.right[static_cast<std::size_t>(run->in_block)].out_features();
        for (index_t m = 0; m < tokens; ++m)
          std::copy_n(v.data() + m * stride + run->first, run->count, z.data() + m * ranks + to);
      }
      if (p.coupling != nullptr) couple(values, k, tokens, z);
      Values sums(checked_mul(tokens, width, "apply"));
      const MatrixView<float> block = view(sums, tokens, width);
      if (!left.empty())
        left.apply(view(std::as_const(z), tokens, ranks), block.block(0, 0, tokens, left.out_features()), inner);
      for (; tile != p.tiles.end() && tile->out_block == k; ++tile) {
        ApplyOptions more = inner;
        more.epilogue.residual = block;
        through(tile->w, x, tile->in_block, block, more);
      }
      parallel_for(how.execution, tokens, [&](index_t m) {
        for (index_t c = 0; c < width; ++c) {
          const index_t n = out_begin(k) + c;
          reference::store(y, m, n, reference::apply_epilogue(how.epilogue, first + m, n, block(m, c)));
        }
      });
    }
  }

  /// z_k = Σ_l s_kl ∘ v_l.
  void couple(const std::vector<Values>& values, index_t k, index_t tokens, Values& z) const {
    const auto inputs = static_cast<index_t>(values.size());
    const index_t ranks = tokens == 0 ? 0 : z.size() / tokens;
    std::fill(z.begin(), z.end(), 0.0f);
    for (index_t l = 0; l < inputs; ++l) {
      const float* s = parts_->coupling->data() + (k * inputs + l) * ranks;
      const float* v = values[static_cast<std::size_t>(l)].data();
      for (index_t row = 0; row < z.size(); row += ranks)
        for (index_t r = 0; r < ranks; ++r) z[row + r] += s[r] * v[row + r];
    }
  }

  /// x = y · W. A y that is zero but in column `only` (>= 0) needs the output block of that column alone.
  void transpose_chunk(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how,
                       index_t only = -1) const {
    const Parts& p = *parts_;
    const index_t tokens = y.rows();
    const auto inputs = static_cast<index_t>(p.right.size()), outputs = static_cast<index_t>(p.left.size());
    for (index_t m = 0; m < tokens; ++m) std::fill_n(x.row_data(m), x.cols(), 0.0f);
    std::vector<Values> values;  // what comes back through each right factor
    for (const AnyLinear& right : p.right)
      values.push_back(Values(right.empty() ? 0 : checked_mul(tokens, right.out_features(), "apply_transpose")));
    auto run = p.runs.begin();
    auto tile = p.tiles.begin();
    for (index_t k = 0; k < outputs; ++k) {
      const bool skip = only >= 0 && (only < out_begin(k) || only >= out_begin(k) + out_width(k));
      const MatrixView<const float> block = y.block(0, out_begin(k), tokens, out_width(k));
      const AnyLinear& left = p.left[static_cast<std::size_t>(k)];
      const index_t ranks = left.empty() ? 0 : left.in_features();
      Values z(checked_mul(tokens, ranks, "apply_transpose"));
      if (!left.empty() && !skip)
        left.apply_transpose(block.block(0, 0, tokens, left.out_features()), view(z, tokens, ranks), how);
      for (index_t from = 0; run != p.runs.end() && run->out_block == k; from += run->count, ++run) {
        Values& v = values[static_cast<std::size_t>(run->in_block)];
        const index_t stride = p.right[static_cast<std::size_t>(run->in_block)].out_features();
        for (index_t m = 0; m < tokens; ++m)
          std::copy_n(z.data() + m * ranks + from, run->count, v.data() + m * stride + run->first);
      }
      for (index_t l = 0; p.coupling != nullptr && !skip && l < inputs; ++l) {
        const float* s = p.coupling->data() + (k * inputs + l) * ranks;
        Values& v = values[static_cast<std::size_t>(l)];
        for (index_t row = 0; row < z.size(); row += ranks)
          for (index_t r = 0; r < ranks; ++r) v[row + r] += s[r] * z[row + r];
      }
      for (; tile != p.tiles.end() && tile->out_block == k; ++tile)
        if (!skip) add_transposed(tile->w, block, tile->in_block, x, how);
    }
    for (index_t l = 0; l < inputs; ++l) {
      const AnyLinear& right = p.right[static_cast<std::size_t>(l)];
      if (!right.empty())
        add_transposed(right, view(std::as_const(values[static_cast<std::size_t>(l)]), tokens, right.out_features()), l,
                       x, how);
    }
  }

  /// x_l += v · w.
  void add_transposed(const AnyLinear& w, MatrixView<const float> v, index_t l, MatrixView<float> x,
                      const ApplyOptions& how) const {
    auto part = Values::uninitialized(checked_mul(v.rows(), w.in_features(), "apply_transpose"));
    w.apply_transpose(v, view(part, v.rows(), w.in_features()), how);
    for (index_t m = 0; m < v.rows(); ++m)
      for (index_t i = 0; i < in_width(l); ++i) x(m, in_begin(l) + i) += part[m * w.in_features() + i];
  }

#if !defined(BLOCKPACK_HEADERS_ONLY)
  /// The packed form of all factors.
  struct Cache : PackedOnce<PackedBlocks> {
    explicit Cache(PackPolicy p) : policy(p) {}
    PackPolicy policy;
  };

  /// The type all factors share, float32 or bf16.
  std::optional<WeightType> common_type() const {
    bool f32 = true, bf16_ = true, any = false;
    for_each_factor([&](const AnyLinear& factor) {
      any = true;
      f32 = f32 && factor.get_if<Dense<float>>() != nullptr;
      bf16_ = bf16_ && factor.get_if<Dense<bf16>>() != nullptr;
    });
    if (!any || (!f32 && !bf16_)) return std::nullopt;
    return bf16_ ? WeightType::bf16 : WeightType::f32;
  }

  static RowSource rows_of(const AnyLinear& w) {
    if (w.empty()) return {};
    if (const auto* dense = w.get_if<Dense<float>>()) return dense->row_source();
    return w.get_if<Dense<bf16>>()->row_source();
  }

  BlockSource source() const {
    BlockSource s;
    s.shape = shape();
    s.in_block = parts_->in_block;
    s.out_block = parts_->out_block;
    for (const AnyLinear& w : parts_->right) s.right.push_back(rows_of(w));
    for (const AnyLinear& w : parts_->left) s.left.push_back(rows_of(w));
    s.runs = parts_->runs;
    for (const Tile& tile : parts_->tiles) s.tiles.push_back({tile.out_block, tile.in_block, rows_of(tile.w)});
    if (parts_->coupling != nullptr) {
      const index_t blocks = s.in_blocks() * s.out_blocks();
      s.coupling = view(*parts_->coupling, blocks, blocks == 0 ? 0 : parts_->coupling->size() / blocks);
    }
    return s;
  }

  /// The packed form where it serves this call, packed by the first one.
  const PackedBlocks* packed_for(const ApplyOptions& how) const {
    if (!type_ || cache_->policy.kind == PackPolicy::Kind::none) return nullptr;
    const bool rounds = how.activations == Activations::int8 || how.activations == Activations::int8_token;
    if (rounds) return nullptr;
    if (cache_->policy.kind == PackPolicy::Kind::on_first_use)
      std::call_once(cache_->once, [&] { cache_->store(PackedBlocks::pack(source(), *type_, how.execution)); });
    return cache_->ready.load(std::memory_order_acquire) && cache_->packed.level() == how.execution.level()
               ? &cache_->packed
               : nullptr;
  }

  std::shared_ptr<Cache> cache_;
  std::optional<WeightType> type_;
#endif

  std::shared_ptr<const Parts> parts_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
