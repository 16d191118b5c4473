// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Compressing a model by a recipe, and using the result. A compressed model is a valid safetensors file: the sections
/// of each compressed matrix are U8 tensors named `<tensor>:<section>`, kept tensors stay what they were, and
/// `__metadata__` says what is what (docs/formats/compressed_model.md). It may also be a GGUF file, as ggml writes and
/// reads it: then each matrix is one tensor under its own name, and its type is the scheme. The same input, recipe and
/// library version give the same bytes on every machine and for every number of threads.

#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/error_stats.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/io/sharded.hpp"
#include "blockpack/recipe/calibration.hpp"
#include "blockpack/recipe/recipe.hpp"
#include "blockpack/recipe/registry.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

struct CompressOptions {
  /// Bound on the memory a row-wise codec works in: the mapped pages of the input panel, its floats, the encoded panel
  /// and what measuring it takes. Matrices are cut into panels of rows so that this holds (one row at the least). More
  /// than 32 MiB brings no speed, so that much is used at most.
  index_t panel_budget = index_t{256} << 20;
  /// 0: `out` is one file. Otherwise `out` is a folder of shards with at most this much data each.
  std::uint64_t max_shard_bytes = 0;
  NonFinite non_finite = NonFinite::reject;
  /// Statistics of the tensors, for schemes with algorithms that look at them (recipe/calibration.hpp).
  CalibrationLookup calibration;
  bool measure = true;  ///< decode each panel again and report its error; about a third of the time
  Execution execution;  ///< progress counts bytes of the source; stop ends with CancelledError and no new file
};

/// What became of one tensor.
struct TensorReport {
  std::string name;
  std::string scheme;  ///< empty: kept
  std::vector<index_t> shape;
  Dtype source_dtype = Dtype::f32;
  std::uint64_t source_bytes = 0;
  std::uint64_t stored_bytes = 0;
  ErrorStats error;         ///< decoded against source, for compressed tensors when measured
  index_t whole_bytes = 0;  ///< held at once where an algorithm needs the whole matrix, 0 where panels do
};

struct CompressReport {
  std::vector<TensorReport> tensors;  ///< in ascending order of names
  index_t peak_working_bytes = 0;     ///< the largest panel, or whole matrix where a codec needs it, with its copies

  BLOCKPACK_API std::uint64_t source_bytes() const noexcept;
  BLOCKPACK_API std::uint64_t stored_bytes() const noexcept;  ///< all tensors; header not counted
  /// Stored bits over weights, compressed tensors only; 0 when there are none.
  BLOCKPACK_API double bits_per_weight() const noexcept;
  /// All compressed tensors together.
  BLOCKPACK_API ErrorStats error() const;
};

/// Compresses the model at `in` (file, index or folder) into `out`, a GGUF file when its name ends in `.gguf`.
///
/// GGUF takes the schemes of ggml's blocks (`q4_0` … `tq2_0`, `ggml-mxfp4`, `ggml-nvfp4`), `f32`, `fp16` and `bf16`,
/// rows of whole blocks, and keeps tensors of F32, F16, BF16, F64 and I8 to I64 only; anything else is refused before a
/// file is made. From a GGUF input its metadata are taken over with their types. Blocks are those that ggml's own
/// quantizer writes, but for `iq4_nl` without importance, where that one searches (docs/formats/ggml.md, "Encoding").
///
/// Errors:  UnsupportedError and ShapeError that name the tensor for what GGUF cannot hold;
///          FormatError for an unreadable model, a recipe that matches nothing or an input that is compressed already;
///          ValueError that names tensor and scheme when a scheme needs calibration and there is none, or one of
///          another shape;
///          ValueError that names tensor, row and column for weights that are not finite; IoError from the system;
///          CancelledError. `out` is then what it was before.
/// Cost:    one pass over the input; memory: CompressOptions::panel_budget.
BLOCKPACK_API CompressReport compress_model(const std::filesystem::path& in, const Recipe& recipe,
                                            const std::filesystem::path& out, const CompressOptions& options = {},
                                            const Registry& registry = Registry::standard());

/// A compressed matrix in a file.
struct CompressedTensor {
  std::string name;
  std::string scheme;  ///< canonical
  MatrixShape shape;
  Dtype source_dtype = Dtype::f32;  ///< F32 in a GGUF file, which does not say
  std::shared_ptr<const Codec> codec;
  std::vector<Section> sections;  ///< views of the mapped file
  std::vector<Tensor> stored;     ///< the same as tensors of the file

  std::uint64_t stored_bytes() const noexcept { return section_bytes(sections); }
  /// The operator over the mapping, nothing copied.
  AnyLinear open(PackPolicy policy = {}) const { return codec->open(shape, sections, policy); }
};

/// What the weights of a compressed tensor decode to.
struct DecodedRange {
  float least = std::numeric_limits<float>::infinity();      ///< of the finite ones
  float greatest = -std::numeric_limits<float>::infinity();  ///< of the finite ones
  std::uint64_t not_finite = 0;                              ///< NaN and infinities
};

/// Whether one stored tensor still has the bytes that were written.
struct HashCheck {
  std::string name;  ///< as in the file: `<tensor>:<section>`, or the name of a kept tensor or one of GGUF
  bool intact = false;
};

/// An opened model, compressed or plain: matrices as operators, everything else as tensors. A plain model (an ordinary
/// safetensors file or folder) is one in which everything is kept. In a GGUF file, whoever wrote it, the tensors of
/// block types that the registry has as schemes are compressed; one of more than two dimensions is a matrix with the
/// last as its columns. Types without a scheme are kept as U8, the bytes of a row last. Immutable; copies share the
/// mapping.
class BLOCKPACK_API CompressedModel {
 public:
  /// Maps the files and checks headers and metadata; no payload is read.
  ///
  /// Errors:  IoError, FormatError as TensorStore; FormatError with code InvalidCompressedModel for metadata that do
  /// not
  ///          fit the tensors, UnknownScheme for a scheme the registry lacks; UnsupportedError for a newer version.
  static CompressedModel open(const std::filesystem::path& path, const Registry& registry = Registry::standard());

  bool is_compressed() const noexcept { return version_ > 0 || !compressed_.empty(); }
  bool has_hashes() const noexcept { return version_ > 0; }
  int version() const noexcept { return version_; }                     ///< of the format; 0 when others wrote the file
  const std::string& recipe() const noexcept { return recipe_; }        ///< JSON; empty when others wrote the file
  const std::filesystem::path& path() const noexcept { return path_; }  ///< as given to open

  /// The names of the model before compression, ascending.
  const std::vector<std::string>& names() const noexcept { return names_; }
  bool contains(std::string_view name) const noexcept;

  /// The compressed matrices, in ascending order of names.
  const std::vector<CompressedTensor>& compressed() const noexcept { return compressed_; }
  /// The compressed matrix of that name, or nullptr.
  const CompressedTensor* find_compressed(std::string_view name) const noexcept;

  /// The matrix as an operator over the mapping: compressed, or kept as F32, BF16 or F16.
  /// Errors: ValueError when the model lacks it or it is no matrix; UnsupportedError for a kept one of another type.
  AnyLinear linear(std::string_view name, PackPolicy policy = {}) const;

  /// A kept tensor. ValueError when the model lacks it or holds it compressed.
  Tensor tensor(std::string_view name) const;

  /// Any tensor of floats, decoded: rows [first_row, first_row + dst.rows()) of its matrix shape.
  void read_rows(std::string_view name, index_t first_row, MatrixView<float> dst) const;

  /// Shape as in the original model. ValueError when the model lacks it.
  std::vector<index_t> shape(std::string_view name) const;

  /// Bytes of all stored tensors.
  std::uint64_t storage_bytes() const noexcept { return storage_bytes_; }

  /// Hashes every stored tensor and compares. ValueError for a model that holds no hashes.
  std::vector<HashCheck> verify_hashes(const Execution& how = {}) const;

  /// Decodes every compressed tensor, in the order of compressed().
  std::vector<DecodedRange> decoded_ranges(const Execution& how = {}) const;

  /// Error of each compressed tensor against the original model, in the order of compressed().
  /// Errors: ValueError when the original lacks a tensor or has it in another shape.
  std::vector<ErrorStats> compare(const CompressedModel& original, const Execution& how = {}) const;

 private:
  CompressedModel() = default;
  void read_metadata(const TensorStore& store);
  void read_sections(const TensorStore& store, const Registry& registry);
  void read_blocks(const GgufFile& file, const Registry& registry);

  std::filesystem::path path_;
  int version_ = 0;
  std::string recipe_;
  std::vector<std::string> names_;
  std::vector<CompressedTensor> compressed_;
  std::vector<Tensor> kept_;  ///< ascending by name
  Metadata hashes_;           ///< stored name -> hex digest
  std::uint64_t storage_bytes_ = 0;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
