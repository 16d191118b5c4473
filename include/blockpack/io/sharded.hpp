// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Models in one file or in many: `TensorStore` reads both through one vocabulary, `ShardedWriter` writes them.
///
/// A sharded model is a folder with `model-00001-of-0000N.safetensors` … and `model.safetensors.index.json`, whose
/// `weight_map` says which file holds which tensor. A GGUF file is read as well.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/io/gguf.hpp"
#include "blockpack/io/safetensors.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The tensors of a model. Files are mapped when one of their tensors is first asked for. Copies share them; any number
/// of threads may use one store.
class BLOCKPACK_API TensorStore {
 public:
  /// `path` is a .safetensors file, a GGUF file (a name that ends in `.gguf`), an index (`.json`), or a folder. In a
  /// folder `model.safetensors` comes first, then `model.safetensors.index.json`, then the only
  /// `*.safetensors.index.json`, then the only `*.safetensors`.
  ///
  /// Errors:  IoError when there is none, or no single one, or it cannot be read; FormatError as SafetensorsFile::open
  ///          or GgufFile::open, and for an index: InvalidIndex, DuplicateKey, LimitExceeded, UnsafeShardName (a
  ///          separator, a control character, `..`, empty).
  static TensorStore open(const std::filesystem::path& path, const ReadLimits& limits = {});

  /// All names in ascending order.
  const std::vector<std::string>& names() const noexcept;

  bool contains(std::string_view name) const noexcept;

  /// Opens the file of the tensor if it is not open yet.
  /// Errors:  ValueError for a name that is not in the store; what SafetensorsFile::open throws; FormatError
  ///          (MissingTensor) when a file lacks a tensor that the index puts into it.
  Tensor tensor(std::string_view name) const;

  /// `__metadata__` of a single file; of a sharded model the string entries of the index' "metadata"; of a GGUF file
  /// its entries that are UTF-8 strings.
  const Metadata& metadata() const noexcept;

  /// The file of a GGUF model, with its metadata of all types and its quantized tensors, which `tensor` gives as U8;
  /// nullptr for any other.
  const GgufFile* gguf() const noexcept;

  /// The files of the model, in ascending order; one for a single file.
  const std::vector<std::filesystem::path>& files() const noexcept;

 private:
  TensorStore() = default;

  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

/// Writes a model into a folder as shards of at most `max_shard_bytes` of data each (a larger tensor has a shard of its
/// own), filled in the order the tensors are given; the index comes last. A single shard becomes `model.safetensors`
/// without index.
///
/// Shards stay temporary until `commit`. A folder that already holds an index (or a `model.safetensors` where an index
/// is to be written) is refused before anything is written: two files cannot be replaced in one step.
class BLOCKPACK_API ShardedWriter {
 public:
  /// Creates the folder if it is missing. Errors: as SafetensorsWriter; IoError for a folder that holds a model.
  ShardedWriter(const std::filesystem::path& folder, std::vector<TensorSpec> tensors, Metadata metadata = {},
                std::uint64_t max_shard_bytes = 5'000'000'000);

  ShardedWriter(ShardedWriter&&) noexcept;
  ShardedWriter& operator=(ShardedWriter&&) = delete;
  ~ShardedWriter();

  /// As SafetensorsWriter::write.
  void write(std::string_view tensor, std::uint64_t byte_offset, std::span<const std::byte> bytes);

  /// Puts the shards in place, then the index. A failure in between leaves shards without an index, which readers of a
  /// folder do not take for a model and the next run replaces.
  void commit();
  /// The same with new metadata, whose header may be no longer than that of the metadata of the constructor.
  void commit(const Metadata& metadata);

  std::size_t shard_count() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
