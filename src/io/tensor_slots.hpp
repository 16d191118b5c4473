// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The tensors of a file that is being written: where each lies, and which of its bytes have come.

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/io/atomic_file.hpp"
#include "io/byte_ranges.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace io_detail {

struct TensorSlot {
  std::string name;
  std::uint64_t begin = 0;  ///< in the data
  std::uint64_t size = 0;
};

class TensorSlots {
 public:
  /// `writer` names the class in messages. ValueError when two slots have one name.
  TensorSlots(const char* writer, std::vector<TensorSlot> slots);

  /// Writes bytes [byte_offset, byte_offset + bytes.size()) of a tensor of a file whose data start at `data_offset`.
  /// Any order, from any thread. ValueError for an unknown tensor, ShapeError for bytes outside it.
  void write(AtomicFile& file, std::uint64_t data_offset, std::string_view tensor, std::uint64_t byte_offset,
             std::span<const std::byte> bytes);

  /// ValueError that names a tensor with bytes that never came.
  void require_all_written() const;

 private:
  const char* writer_;
  std::vector<TensorSlot> slots_;  // ascending by name
  std::vector<ByteRanges> written_;
  std::mutex mutex_;  // of written_
};

}  // namespace io_detail
}  // namespace blockpack::inline BLOCKPACK_ABI
