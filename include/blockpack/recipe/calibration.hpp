// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What is known about the matrices of a model from calibration text: XᵀX of their inputs, some of these inputs, and
/// the importance of their weights. Algorithms such as GPTQ take it from a `CalibrationLookup`; a folder of npy files
/// is one.

#include <filesystem>
#include <functional>
#include <memory>
#include <string_view>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/recipe/codec.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Of one matrix W [out, in]. Copies share the parts; each may be missing.
struct TensorCalibration {
  std::shared_ptr<const GramMatrix> gram;  ///< XᵀX [in, in], times any positive number
  MatrixView<const float> importance;      ///< of each weight [out, in], or of each column [1, in]; empty: none
  std::shared_ptr<const void> importance_owner;
  MatrixView<const float> inputs;  ///< of some tokens [tokens, in]
  std::shared_ptr<const void> inputs_owner;

  /// Without what `needs` does not ask for.
  BLOCKPACK_API TensorCalibration only(const CalibrationNeeds& needs) const;
  /// Whether something `needs` asks for is missing.
  BLOCKPACK_API bool lacks(const CalibrationNeeds& needs) const noexcept;
  /// Where an encoder finds it; this must outlive the options.
  void give(EncodeOptions& options) const noexcept {
    options.gram = gram.get();
    options.importance = importance;
    options.inputs = inputs;
  }
};

/// Calibration by tensor name; what it does not know is empty.
using CalibrationLookup = std::function<TensorCalibration(std::string_view tensor)>;

/// A folder with three files per matrix, all optional, as numpy.save writes them:
///
///     <tensor>.gram.npy     float64 [in, in]: XᵀX of its inputs, times any positive number
///     <tensor>.fisher.npy   float32 [out, in] or [1, in]: importance of each weight, for example the mean of g²
///     <tensor>.inputs.npy   float32 [tokens, in]: some of its inputs
///
/// Files are read when asked for, each time. Const members may be called from any number of threads.
class BLOCKPACK_API CalibrationFolder {
 public:
  /// IoError when there is no such folder.
  explicit CalibrationFolder(std::filesystem::path folder);

  /// What the folder holds of that matrix. IoError and FormatError as read_npy; FormatError with code
  /// `InvalidCalibration` that names the file for another type or shape, a number that is not finite, a negative
  /// importance or a negative number on the diagonal of XᵀX. A name with a slash is never there.
  TensorCalibration find(std::string_view tensor) const;

  /// Adds or replaces the files of a matrix, XᵀX as its mean over the tokens. A part that is empty is not written.
  /// ValueError for a name with a slash; IoError.
  void write(std::string_view tensor, const GramMatrix& gram, MatrixView<const float> importance,
             MatrixView<const float> inputs = {}) const;

  const std::filesystem::path& path() const noexcept { return folder_; }

 private:
  std::filesystem::path folder_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
