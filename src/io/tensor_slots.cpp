// SPDX-License-Identifier: Apache-2.0
#include "io/tensor_slots.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "blockpack/io/checked.hpp"
#include "io/strict_json.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace io_detail {

TensorSlots::TensorSlots(const char* writer, std::vector<TensorSlot> slots)
    : writer_(writer), slots_(std::move(slots)), written_(slots_.size()) {
  std::sort(slots_.begin(), slots_.end(), [](const TensorSlot& a, const TensorSlot& b) { return a.name < b.name; });
  const auto twice = std::adjacent_find(slots_.begin(), slots_.end(),
                                        [](const TensorSlot& a, const TensorSlot& b) { return a.name == b.name; });
  if (twice != slots_.end())
    throw ValueError(fmt::format("{}: two tensors are called '{}'", writer_, printable(twice->name)));
}

void TensorSlots::write(AtomicFile& file, std::uint64_t data_offset, std::string_view tensor, std::uint64_t byte_offset,
                        std::span<const std::byte> bytes) {
  const auto at = std::lower_bound(slots_.begin(), slots_.end(), tensor,
                                   [](const TensorSlot& slot, std::string_view name) { return slot.name < name; });
  if (at == slots_.end() || at->name != tensor)
    throw ValueError(
        fmt::format("{}::write: there is no tensor '{}' among those declared", writer_, printable(tensor)));
  const auto end = try_add(byte_offset, bytes.size());
  if (!end || *end > at->size)
    throw ShapeError(fmt::format("{}::write: tensor '{}' has {} bytes, [{}, +{}) does not lie inside", writer_,
                                 printable(tensor), at->size, byte_offset, bytes.size()));
  if (bytes.empty()) return;
  const std::uint64_t in_data = size_add(at->begin, byte_offset, writer_);
  file.write(size_add(data_offset, in_data, writer_), bytes);
  const std::lock_guard lock(mutex_);
  written_[static_cast<std::size_t>(std::distance(slots_.begin(), at))].add(byte_offset, *end);
}

void TensorSlots::require_all_written() const {
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const auto missing = written_[i].first_gap(slots_[i].size);
    if (missing)
      throw ValueError(fmt::format("{}::commit: bytes of tensor '{}' from {} on were never written", writer_,
                                   printable(slots_[i].name), *missing));
  }
}

}  // namespace io_detail
}  // namespace blockpack::inline BLOCKPACK_ABI
