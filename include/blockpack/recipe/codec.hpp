// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A codec is one fully specified scheme behind one type: how large the stored form of a matrix is, how to encode it
/// (panel by panel where the format works row by row) and how to open stored bytes as an operator. The registry makes
/// codecs from scheme strings; the compressed model streams matrices through them.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/any_row_format.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/engine.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/row_matrix.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Name and size of one section of a stored matrix.
struct SectionSize {
  std::string name;
  index_t bytes = 0;
  bool per_row = true;  ///< of row-wise codecs: as many bytes for every row; false: one piece for the whole matrix
};

/// Which calibration statistics an encoder cannot do without (EncodeOptions has all of them).
struct CalibrationNeeds {
  bool gram = false;        ///< XᵀX of the inputs
  bool importance = false;  ///< of the weights or the columns
  bool inputs = false;      ///< inputs themselves

  bool any() const noexcept { return gram || importance || inputs; }
};

/// Immutable; const members may be called from any number of threads at once.
class BLOCKPACK_API Codec {
 public:
  virtual ~Codec() = default;

  /// The canonical scheme string; parsing it gives an equal codec.
  virtual std::string scheme() const = 0;

  /// The sections of a matrix of that shape, in file order. ShapeError when a size overflows.
  virtual std::vector<SectionSize> sections(MatrixShape shape) const = 0;

  /// The canonical scheme of the stored bytes: `scheme()` without what only matters to the encoder. Files hold this.
  virtual std::string format() const { return scheme(); }

  /// Whether the bytes are the same on every CPU, with every compiler. Factors of iterative fits are not.
  virtual bool reproducible() const noexcept { return true; }

  /// Whether sections hold row after row, as many bytes each.
  virtual bool row_wise() const noexcept = 0;

  /// The row format of what is stored, for forms that store their values in it; null for codecs of more than a format.
  virtual const AnyRowFormat* row_format() const noexcept { return nullptr; }

  /// Whether the format has parameters of the whole matrix: `encode` is then refused (UnsupportedError) and `fitted_to`
  /// gives the codec that encodes, after one pass over the matrix for its statistics.
  virtual bool fits_tensor() const noexcept { return false; }
  /// Null where fits_tensor() is false.
  virtual std::shared_ptr<const Codec> fitted_to(const TensorStatistics&) const { return nullptr; }

  /// Whether row panels can be encoded one after another, so that memory does not grow with the matrix.
  virtual bool encodes_panels() const noexcept { return row_wise(); }

  /// Memory `encode` needs beside its input and its output; 0 for codecs that encode panels.
  virtual index_t working_bytes(MatrixShape shape) const = 0;

  /// What `encode` must be given.
  virtual CalibrationNeeds needs() const noexcept { return {}; }

  /// Encodes the rows [first_row, first_row + w.rows()) of a matrix; for a codec that does not encode panels, w is the
  /// whole matrix and first_row is 0. dst has one pointer per section, to the first byte of the first of these rows, or
  /// of the section where it is not per row. Errors: those of blockpack::encode_rows; ValueError when something of
  /// `needs()` is missing. A scheme of several steps tells the progress of each, one after the other.
  virtual void encode(MatrixView<const float> w, index_t first_row, std::span<std::byte* const> dst,
                      const EncodeOptions& options) const = 0;

  /// The operator over stored sections, nothing copied. FormatError when names or sizes do not fit.
  virtual AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy policy = {}) const = 0;

  /// Stored bits per weight of a matrix of that shape, everything included; 0 for an empty one.
  double bits_per_weight(MatrixShape shape) const {
    double bytes = 0;
    for (const SectionSize& s : sections(shape)) bytes += static_cast<double>(s.bytes);
    const double weights = static_cast<double>(shape.rows) * static_cast<double>(shape.cols);
    return weights == 0 ? 0.0 : 8.0 * bytes / weights;
  }
};

namespace detail {
/// ValueError that names the scheme and what it lacks.
BLOCKPACK_API void require_calibration(const Codec& codec, const EncodeOptions& options);
}  // namespace detail

/// Encodes a matrix in memory. Errors: those of Codec::encode.
BLOCKPACK_API AnyLinear encode_matrix(const Codec& codec, MatrixView<const float> w, const EncodeOptions& options = {},
                                      PackPolicy policy = {});

/// The codec of a row format; with `importance`, the fits of its blocks weight errors by EncodeOptions::importance.
template <RowFormat F>
class RowCodec final : public Codec {
 public:
  explicit RowCodec(F format, bool importance = false)
      : format_(std::move(format)), any_(format_), importance_(importance) {}

  std::string scheme() const override { return importance_ ? format() + "+importance" : format(); }
  std::string format() const override { return format_.scheme(); }
  CalibrationNeeds needs() const noexcept override { return {.importance = importance_}; }
  std::vector<SectionSize> sections(MatrixShape shape) const override {
    std::vector<SectionSize> sizes;
    for (const SectionSpec& s : format_.sections(shape.cols))
      sizes.push_back({s.name, section_bytes(s, shape.rows, "sections"), s.bytes_per_tensor == 0});
    return sizes;
  }
  bool row_wise() const noexcept override { return true; }
  const AnyRowFormat* row_format() const noexcept override { return importance_ ? nullptr : &any_; }
  bool fits_tensor() const noexcept override {
    if constexpr (TensorFormat<F>) return format_.fits_tensor();
    return false;
  }
  std::shared_ptr<const Codec> fitted_to(const TensorStatistics& statistics) const override {
    if constexpr (TensorFormat<F>) return std::make_shared<const RowCodec>(format_.fitted_to(statistics), importance_);
    static_cast<void>(statistics);
    return nullptr;
  }
  index_t working_bytes(MatrixShape) const override { return 0; }
  void encode(MatrixView<const float> w, index_t first_row, std::span<std::byte* const> dst,
              const EncodeOptions& options) const override {
    detail::require_calibration(*this, options);
    encode_rows(format_, w, first_row, dst, options);
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy policy) const override {
    return RowMatrix<F>::from_sections(shape, format_, sections, policy);
  }

 private:
  F format_;
  AnyRowFormat any_;
  bool importance_;
};

/// The codec that encodes w: the one given, or the one fitted to w where it has parameters of the whole matrix.
inline std::shared_ptr<const Codec> fitted(const std::shared_ptr<const Codec>& codec, MatrixView<const float> w,
                                           const EncodeOptions& options = {}) {
  if (!codec->fits_tensor()) return codec;
  TensorStatistics statistics;
  statistics.add(w, options.non_finite, options.execution);
  return codec->fitted_to(statistics);
}

template <RowFormat F>
std::shared_ptr<const Codec> make_row_codec(F format, bool importance = false) {
  return std::make_shared<const RowCodec<F>>(std::move(format), importance);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
