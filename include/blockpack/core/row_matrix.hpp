// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The linear operator over any row format: W [out, in] stored row by row (dense, block floating point, MX, group
/// integers).
///
/// Copies share the stored bytes and the packed form. `from_sections` over a mapped file copies nothing.

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/code_spec.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/engine.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/packed_cache.hpp"
#include "blockpack/core/row_format.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {
/// A format whose stored bytes are an array of T, which kernels may read in place and which has a packed form.
template <class F>
concept DenseRowFormat = RowFormat<F> && requires {
  typename F::value_type;
};
/// A format that decodes straight to bf16 (its values are exact there).
template <class F>
concept Bf16Decodable = requires(const F& f, std::span<const std::byte* const> src, index_t i, std::span<bf16> dst) {
  f.decode_row_bf16(src, i, i, dst);
};
/// A format that may keep at most two of any four neighbours in a row, and then says so.
template <class F>
concept TwoFourFormat = RowFormat<F> && requires(const F& f) {
  { f.two_four() } -> std::same_as<bool>;
};
/// A format that may be too wide for codes and then has packed values; it says so.
template <class F>
concept WideFormat = RowFormat<F> && requires(const F& f) {
  { f.packs_values() } -> std::same_as<bool>;
};
}  // namespace detail

/// W [out, in] in row format F: y [tokens, out] = epilogue(x [tokens, in] · Wᵀ).
///
/// A dense format has a packed form, built as the pack policy says, and so has one that keeps two of four, in bf16 or
/// float32 unless its values are codes, and one too wide for codes. A format of integer codes (CodeFormat) has one at
/// levels that multiply codes: up to code_tokens() tokens meet the codes themselves, more meet panels decoded from them
/// or, at levels that cannot, from the stored rows. So do all tokens of other formats, for which every policy acts as
/// `none` (packed_bytes() is 0).
template <RowFormat F>
class RowMatrix {
 public:
  using format_type = F;
  static constexpr std::size_t kMaxSections = 4;

  /// An empty 0 x 0 operator.
  RowMatrix() : RowMatrix(MatrixShape{}, F{}, {}, {}) {}

  /// Encodes w [out, in]. Errors of `encode_rows`; ShapeError when the stored size overflows. Cost: one pass over w.
  static RowMatrix encode(MatrixView<const float> w, const F& format = {}, const EncodeOptions& options = {},
                          PackPolicy policy = {}) {
    std::vector<SharedBytes> stored;
    std::vector<std::byte*> dst;
    for (const SectionSpec& spec : format.sections(w.cols())) {
      AlignedBuffer<std::byte> bytes(section_bytes(spec, w.rows(), "RowMatrix::encode"));
      dst.push_back(bytes.data());
      stored.emplace_back(std::move(bytes));
    }
    const F whole = fitted(format, w, options);
    encode_rows(whole, w, 0, dst, options);
    return RowMatrix(w.shape(), whole, std::move(stored), policy);
  }

  /// The operator whose `sections()` are these: same order, names and sizes. The bytes are not copied: each section
  /// keeps its owner, or, without one, the caller keeps the memory alive. FormatError names the section that does not
  /// fit.
  static RowMatrix from_sections(MatrixShape shape, const F& format, std::span<const Section> sections,
                                 PackPolicy policy = {}) {
    const std::vector<SectionSpec> specs = format.sections(shape.cols);
    if (sections.size() != specs.size())
      throw FormatError("from_sections: " + std::to_string(sections.size()) + " sections, " +
                        std::to_string(specs.size()) + " needed for " + std::string(format.scheme()));
    std::vector<SharedBytes> stored;
    for (std::size_t s = 0; s < specs.size(); ++s) {
      const index_t needed = section_bytes(specs[s], shape.rows, "from_sections");
      if (sections[s].name != specs[s].name || static_cast<index_t>(sections[s].data.bytes.size()) != needed)
        throw FormatError("from_sections: section " + sections[s].name + " has " +
                          std::to_string(sections[s].data.bytes.size()) + " bytes, " + specs[s].name + " with " +
                          std::to_string(needed) + " needed");
      stored.push_back(sections[s].data);
    }
    return RowMatrix(shape, format, std::move(stored), policy);
  }

  index_t out_features() const noexcept { return shape_.rows; }
  index_t in_features() const noexcept { return shape_.cols; }
  MatrixShape shape() const noexcept { return shape_; }
  const F& parameters() const noexcept { return format_; }
  std::string scheme() const { return format_.scheme(); }

  /// Named views of the stored bytes, in file order. UnsupportedError after release_stored().
  std::vector<Section> sections() const {
    require_stored("sections");
    std::vector<Section> result;
    const std::vector<SectionSpec> specs = format_.sections(shape_.cols);
    for (std::size_t s = 0; s < specs.size(); ++s) result.push_back({specs[s].name, stored_[s]});
    return result;
  }

  /// Bytes of the stored form, 0 after release_stored().
  std::size_t storage_bytes() const noexcept {
    std::size_t sum = 0;
    for (const SharedBytes& s : stored_) sum += s.bytes.size();
    return sum;
  }

  /// Bytes the packed cache holds now.
  std::size_t packed_bytes() const noexcept {
#if defined(BLOCKPACK_HEADERS_ONLY)
    return 0;
#else
    return cache_->bytes();
#endif
  }

  /// Bytes packing takes at the active level, in the mode `automatic` means: what PackPolicy::into asks for. 0 where
  /// nothing is packed. A matrix made with PackPolicy::none() says it before any is: row_range(0, rows, into(memory)).
  std::size_t packed_bytes_needed() const {
#if !defined(BLOCKPACK_HEADERS_ONLY)
    const Isa level = Execution().level();
    if (code_spec_) return multiplies_codes(level) ? PackedCodes::bytes_needed(shape_, *code_spec_) : 0;
    if (const std::optional<WeightLayout> layout = weight_layout())
      return PackedWeights::bytes_needed(shape_, weight_type(resolve(Activations::automatic, mode_bits(), level)),
                                         level, *layout);
#endif
    return 0;
  }

  /// The mode an apply with that many tokens computes in.
  Activations activation_mode(index_t tokens, const ApplyOptions& how = {}) const {
    const bool codes = by_codes(tokens, how);
    return resolve(how.activations, codes ? code_bits() : mode_bits(), how.execution.level(), codes);
  }

  /// Drops this operator's hold on the stored form once a packed form exists (UnsupportedError otherwise); apply goes
  /// on from the packed form at the level it was packed for. Memory is freed when the last copy and view let go.
  void release_stored() {
    if (shape_empty()) return;  // nothing is stored, nothing will be packed
    if (packed_bytes() == 0)
      throw UnsupportedError("release_stored: " + scheme() + " has no packed form to compute from");
    for (SharedBytes& s : stored_) s = {};
    released_ = true;
  }

  /// Rows [first, first + count) as an operator of their own: it shares the stored bytes and has its own packed form.
  /// ShapeError if they do not lie inside. UnsupportedError after release_stored().
  RowMatrix row_range(index_t first, index_t count, PackPolicy policy = {}) const {
    require_stored("row_range");
    if (first < 0 || count < 0 || first > shape_.rows - count)
      throw ShapeError("row_range: rows [" + std::to_string(first) + ", " + std::to_string(first) + " + " +
                       std::to_string(count) + ") of " + std::to_string(shape_.rows));
    std::vector<SharedBytes> part = stored_;
    for (std::size_t s = 0; s < part.size(); ++s)
      if (bytes_per_row_[s] > 0)
        part[s] = part[s].subspan(static_cast<std::size_t>(first * bytes_per_row_[s]),
                                  static_cast<std::size_t>(count * bytes_per_row_[s]));
    return RowMatrix({count, shape_.cols}, format_, std::move(part), policy);
  }

  /// How the rows feed the engine; valid while this operator or a copy lives. UnsupportedError after release_stored().
  RowSource row_source() const {
    require_stored("row_source");
    return source();
  }

  /// y = epilogue(x · Wᵀ). ShapeError names the argument that does not fit. Bits of y do not depend on the threads.
  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", shape_.rows, shape_.cols, x.shape(), y.shape(), how.epilogue);
    const Activations mode = activation_mode(x.rows(), how);
#if !defined(BLOCKPACK_HEADERS_ONLY)
    if (const PackedCodes* codes = packed_codes(x.rows(), mode, how)) return matmul(x, *codes, y, mode, how);
    if (const PackedWeights* packed = packed_weights(mode, how)) return matmul(x, *packed, y, mode, how);
#endif
    require_stored("apply");
    matmul(x, source(), y, mode, how);
  }

  /// y = epilogue(x · Wᵀ) whose gate is x · gateᵀ, for a feed-forward layer `g.apply_gated(u, x, y, how)` with silu in
  /// how.epilogue. Packed forms share one preparation of x and never write the gate to memory; others are two products.
  /// ShapeError as apply(), also for a gate of another shape; ValueError for an epilogue with a gate of its own.
  void apply_gated(const RowMatrix& gate, ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_gated_shapes("apply_gated", shape_, gate.shape_, x.shape(), y.shape(), how.epilogue);
#if !defined(BLOCKPACK_HEADERS_ONLY)
    const Activations mode = activation_mode(x.rows(), how);
    if (mode != Activations::int8_token && mode == gate.activation_mode(x.rows(), how)) {
      const PackedCodes* codes = packed_codes(x.rows(), mode, how);
      const PackedCodes* gate_codes = gate.packed_codes(x.rows(), mode, how);
      if (codes != nullptr && gate_codes != nullptr) return matmul(x, *codes, y, mode, how, gate_codes);
      const PackedWeights* packed = packed_weights(mode, how);
      const PackedWeights* packed_gate = gate.packed_weights(mode, how);
      if (packed != nullptr && packed_gate != nullptr && packed->type() == packed_gate->type())
        return matmul(x, *packed, y, mode, how, packed_gate);
    }
#endif
    detail::apply_gated_apart(*this, gate, x, y, how);
  }

  /// x [tokens, in] = y [tokens, out] · W, float32. The epilogue must be empty (ValueError).
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    if (!how.epilogue.empty()) throw ValueError("apply_transpose: an epilogue is not supported");
    detail::check_apply_shapes("apply_transpose", shape_.cols, shape_.rows, y.shape(), x.shape(), {});
    require_stored("apply_transpose");
    matmul_transpose(y, source(), x, how);
  }

  /// y[i, :] = W[rows[i], :], decoded. ShapeError for a row out of range or another shape of y.
  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const {
    detail::check_decode_rows("decode_rows", shape_, rows, y.shape());
    require_stored("decode_rows");
    for (std::size_t i = 0; i < rows.size(); ++i)
      format_.decode_row(row_pointers(rows[i]).span(), shape_.cols, 0, y.row(static_cast<index_t>(i)));
  }

 private:
  struct RowPointers {
    std::array<const std::byte*, kMaxSections> data{};
    std::size_t count = 0;
    std::span<const std::byte* const> span() const noexcept { return {data.data(), count}; }
  };

  RowMatrix(MatrixShape shape, const F& format, std::vector<SharedBytes> stored, PackPolicy policy)
      : shape_(shape), format_(format), stored_(std::move(stored)) {
    const std::vector<SectionSpec> specs = format_.sections(shape_.cols);
    if (specs.size() > kMaxSections) throw UnsupportedError("RowMatrix: " + scheme() + " has too many sections");
    stored_.resize(specs.size());
    for (std::size_t s = 0; s < specs.size(); ++s) bytes_per_row_[s] = specs[s].bytes_per_row;
#if !defined(BLOCKPACK_HEADERS_ONLY)
    const std::optional<WeightLayout> layout = weight_layout();
    cache_ = std::make_shared<PackedCache>(layout || CodeFormat<F> ? policy : PackPolicy::none(),
                                           layout.value_or(WeightLayout::dense));
    const Execution how;
    if constexpr (CodeFormat<F>) {
      if (!shape_empty()) code_spec_ = format_.code_spec(shape_.cols, row_pointers(0).span());
      if (code_spec_ && multiplies_codes(how.level())) cache_->pack_ahead(code_source(), how);
    }
    if (layout && !code_spec_) {
      const bool ahead = policy.kind == PackPolicy::Kind::ahead || policy.kind == PackPolicy::Kind::into;
      if (ahead)
        cache_->pack_ahead(source(), weight_type(resolve(Activations::automatic, mode_bits(), how.level())), how);
    }
#else
    static_cast<void>(policy);
#endif
  }

  bool shape_empty() const noexcept { return shape_.rows == 0 || shape_.cols == 0; }

  /// Bits per weight as `resolve` wants them: what is neither exact in bf16 nor coarse beside its rounding (8 bits and
  /// their scales are 10 dB above it) counts as 32.
  double mode_bits() const {
    const double bits = [this] {
      if constexpr (requires { format_.bits_per_value(shape_.cols); }) return format_.bits_per_value(shape_.cols);
      return bits_per_weight(format_, shape_.cols);
    }();
    return format_.exact_in_bf16() || bits <= 10.0 ? bits : 32.0;
  }

  /// The same where packed codes are multiplied: only integers meet int8 activations in integers.
  double code_bits() const {
#if !defined(BLOCKPACK_HEADERS_ONLY)
    if (code_spec_ && code_spec_->element != CodeElement::integer) return 32.0;
#endif
    return mode_bits();
  }

  void require_stored(const char* function) const {
    if (released_) throw UnsupportedError(std::string(function) + ": the stored form of this operator was released");
  }

  /// Whether such an apply multiplies packed codes as they are.
  bool by_codes([[maybe_unused]] index_t tokens, [[maybe_unused]] const ApplyOptions& how) const {
#if !defined(BLOCKPACK_HEADERS_ONLY)
    const Isa level = how.execution.level();
    if (!packs_codes(how.execution)) return false;
    if (how.activations == Activations::int8_token && multiplies_int8(*code_spec_, shape_.cols, level)) return true;
    const index_t at_most = code_tokens(*code_spec_, level, resolve(how.activations, code_bits(), level, true));
    return (tokens <= at_most && !how.execution.batch_invariant) || (released_ && !decodes_codes(level));
#else
    return false;
#endif
  }

#if !defined(BLOCKPACK_HEADERS_ONLY)
  /// How values are packed, of a format that has packed values.
  std::optional<WeightLayout> weight_layout() const noexcept {
    if constexpr (detail::DenseRowFormat<F>) return WeightLayout::dense;
    if constexpr (detail::TwoFourFormat<F>) {
      if (format_.two_four()) return WeightLayout::two_four;
    }
    if constexpr (detail::WideFormat<F>) {
      if (format_.packs_values()) return WeightLayout::dense;
    }
    return std::nullopt;
  }
  /// Values that are exact in bf16 are packed as bf16 for every mode; wider ones as the mode computes.
  WeightType weight_type(Activations mode) const noexcept {
    return format_.exact_in_bf16() || mode == Activations::bf16 ? WeightType::bf16 : WeightType::f32;
  }

  /// Whether there are packed codes, or will be, and the level has kernels for them.
  bool packs_codes(const Execution& how) const {
    return code_spec_ && cache_->serves_codes() && multiplies_codes(how.level());
  }

  /// The packed form such an apply computes from, or null where it takes the other one or what is stored.
  const PackedCodes* packed_codes([[maybe_unused]] index_t tokens, [[maybe_unused]] Activations mode,
                                  [[maybe_unused]] const ApplyOptions& how) const {
    if constexpr (CodeFormat<F>) {
      const bool decoded = mode == Activations::bf16 && decodes_codes(how.execution.level());
      const bool codes =
          by_codes(tokens, how) || (packs_codes(how.execution) && (decoded || released_ || code_spec_->two_four));
      return codes ? cache_->get(code_source(), how.execution) : nullptr;
    }
    return nullptr;
  }
  const PackedWeights* packed_weights(Activations mode, const ApplyOptions& how) const {
    if (!weight_layout() || code_spec_) return nullptr;
    return cache_->get(source(), weight_type(mode), how.execution, released_);
  }
#endif

  RowPointers row_pointers(index_t row) const noexcept {
    RowPointers p;
    p.count = stored_.size();
    for (std::size_t s = 0; s < p.count; ++s) p.data[s] = stored_[s].bytes.data() + row * bytes_per_row_[s];
    return p;
  }

  RowSource source() const {
    RowSource w;
    w.rows = shape_.rows;
    w.cols = shape_.cols;
    w.self = this;
    w.decode_f32 = [](const void* self, index_t row, index_t col, index_t count, float* dst) {
      const auto& op = *static_cast<const RowMatrix*>(self);
      op.format_.decode_row(op.row_pointers(row).span(), op.shape_.cols, col, {dst, static_cast<std::size_t>(count)});
    };
    if constexpr (detail::Bf16Decodable<F>) {
      if (format_.exact_in_bf16()) {
        w.decode_bf16 = [](const void* self, index_t row, index_t col, index_t count, bf16* dst) {
          const auto& op = *static_cast<const RowMatrix*>(self);
          op.format_.decode_row_bf16(op.row_pointers(row).span(), op.shape_.cols, col,
                                     {dst, static_cast<std::size_t>(count)});
        };
      }
    }
    if constexpr (detail::DenseRowFormat<F>) {
      using T = typename F::value_type;
      if constexpr (std::is_same_v<T, float> || std::is_same_v<T, bf16>) {
        const std::byte* data = stored_[0].bytes.data();
        if (reinterpret_cast<std::uintptr_t>(data) % alignof(T) == 0) {  // a foreign file may hold it unaligned
          w.dense = data;
          w.dense_type = std::is_same_v<T, bf16> ? WeightType::bf16 : WeightType::f32;
          w.dense_row_stride = shape_.cols;
        }
      }
    }
    return w;
  }

#if !defined(BLOCKPACK_HEADERS_ONLY)
  CodeSource code_source() const {
    return {shape_.rows, shape_.cols, *code_spec_, this, [](const void* self, index_t row, const CodeRow& dst) {
              const auto& op = *static_cast<const RowMatrix*>(self);
              op.format_.read_codes(op.row_pointers(row).span(), op.shape_.cols, dst);
            }};
  }
#endif

  MatrixShape shape_;
  F format_;
  std::vector<SharedBytes> stored_;
  std::array<index_t, kMaxSections> bytes_per_row_{};
  bool released_ = false;
#if !defined(BLOCKPACK_HEADERS_ONLY)
  std::shared_ptr<PackedCache> cache_;
  std::optional<CodeSpec> code_spec_;  // of a format that has codes
#endif
};

}  // namespace blockpack::inline BLOCKPACK_ABI
