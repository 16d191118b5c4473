// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <utility>

#include "blockpack/io/atomic_file.hpp"
#include "blockpack/io/checked.hpp"
#include "blockpack/io/safetensors.hpp"
#include "io/safetensors_format.hpp"
#include "io/strict_json.hpp"
#include "io/tensor_slots.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

using io_detail::json_quoted;
using io_detail::printable;

constexpr const char* kSafetensorsWriter = "SafetensorsWriter";
constexpr std::uint64_t kHeaderUnit = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // what every reader takes
constexpr std::size_t kMaxNameBytes = 65'536;

struct Placed {
  TensorSpec spec;
  std::uint64_t begin = 0;
  std::uint64_t size = 0;
};

void check_text(std::string_view text, const char* kind) {
  if (io_detail::valid_utf8_prefix(text) != text.size())
    throw ValueError(fmt::format("{}: the {} '{}' is not UTF-8", kSafetensorsWriter, kind, printable(text)));
}

/// In file order, offsets assigned; checks everything that can be checked before a file exists.
std::vector<Placed> place(std::vector<TensorSpec> specs) {
  for (const TensorSpec& spec : specs) {
    if (spec.name.empty() || spec.name == "__metadata__" || spec.name.size() > kMaxNameBytes)
      throw ValueError(fmt::format("{}: a tensor cannot be called '{}'; use 1 to {} bytes, not __metadata__",
                                   kSafetensorsWriter, printable(spec.name), kMaxNameBytes));
    check_text(spec.name, "tensor name");
  }
  std::sort(specs.begin(), specs.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
  });
  std::vector<Placed> placed;
  placed.reserve(specs.size());
  std::uint64_t end = 0;
  for (TensorSpec& spec : specs) {
    Placed tensor;
    tensor.size = tensor_bytes(spec);
    tensor.begin = end;
    end = size_add(end, tensor.size, kSafetensorsWriter);
    tensor.spec = std::move(spec);
    placed.push_back(std::move(tensor));
  }
  return placed;
}

std::string header_text(const std::vector<Placed>& tensors, const Metadata& metadata) {
  std::string text = "{";
  const char* separator = "";
  if (!metadata.empty()) {
    text.append("\"__metadata__\":{");
    for (const auto& [key, value] : metadata) {
      check_text(key, "metadata key");
      check_text(value, "metadata value");
      text.append(separator).append(json_quoted(key)).append(":").append(json_quoted(value));
      separator = ",";
    }
    text.append("}");
    separator = ",";
  }
  for (const Placed& tensor : tensors) {
    fmt::format_to(std::back_inserter(text), "{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                   separator, json_quoted(tensor.spec.name), to_string(tensor.spec.dtype),
                   fmt::join(tensor.spec.shape, ","), tensor.begin,
                   size_add(tensor.begin, tensor.size, kSafetensorsWriter));
    separator = ",";
  }
  text.append("}");
  return text;
}

/// The same for the bytes to come.
std::vector<io_detail::TensorSlot> slots_of(const std::vector<Placed>& tensors) {
  std::vector<io_detail::TensorSlot> slots;
  for (const Placed& tensor : tensors) slots.push_back({tensor.spec.name, tensor.begin, tensor.size});
  return slots;
}

std::uint64_t padded(std::uint64_t bytes) { return size_round_up(bytes, kHeaderUnit, kSafetensorsWriter); }

}  // namespace

struct SafetensorsWriter::Impl {
  std::vector<Placed> tensors;
  io_detail::TensorSlots slots;
  Metadata metadata;
  std::uint64_t header_capacity = 0;
  AtomicFile file;

  Impl(const std::filesystem::path& target, std::vector<TensorSpec> specs, Metadata initial, std::uint64_t reserve)
      : tensors(place(std::move(specs))),
        slots(kSafetensorsWriter, slots_of(tensors)),
        metadata(std::move(initial)),
        file(target) {
    header_capacity = padded(std::max<std::uint64_t>(reserve, header_text(tensors, metadata).size()));
    if (header_capacity > kMaxHeaderBytes)
      throw ValueError(fmt::format("{}: the header would have {} bytes, readers take at most {}", kSafetensorsWriter,
                                   header_capacity, kMaxHeaderBytes));
    file.resize(size_add(data_offset(), data_bytes(), kSafetensorsWriter));
  }

  std::uint64_t data_offset() const {
    return size_add(io_detail::kSafetensorsPrefixBytes, header_capacity, kSafetensorsWriter);
  }
  std::uint64_t data_bytes() const {
    return tensors.empty() ? 0 : size_add(tensors.back().begin, tensors.back().size, kSafetensorsWriter);
  }
};

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& target, std::vector<TensorSpec> tensors,
                                     Metadata metadata, std::uint64_t header_reserve)
    : impl_(std::make_unique<Impl>(target, std::move(tensors), std::move(metadata), header_reserve)) {}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(std::string_view tensor, std::uint64_t byte_offset, std::span<const std::byte> bytes) {
  impl_->slots.write(impl_->file, impl_->data_offset(), tensor, byte_offset, bytes);
}

void SafetensorsWriter::commit() { commit(impl_->metadata); }

void SafetensorsWriter::commit(const Metadata& metadata) {
  impl_->slots.require_all_written();
  std::string header = header_text(impl_->tensors, metadata);
  if (header.size() > impl_->header_capacity)
    throw ValueError(fmt::format("{}::commit: the header has {} bytes, {} were set aside; pass header_reserve",
                                 kSafetensorsWriter, header.size(), impl_->header_capacity));
  header.resize(impl_->header_capacity, ' ');
  std::array<char, io_detail::kSafetensorsPrefixBytes> prefix{};
  std::uint64_t rest = impl_->header_capacity;
  for (char& byte : prefix) {
    byte = static_cast<char>(rest & 0xff);
    rest >>= 8;
  }
  impl_->file.write(0, std::string_view(prefix.data(), prefix.size()));
  impl_->file.write(io_detail::kSafetensorsPrefixBytes, header);
  impl_->file.commit();
}

std::uint64_t SafetensorsWriter::header_bytes(const std::vector<TensorSpec>& tensors, const Metadata& metadata) {
  return padded(header_text(place(tensors), metadata).size());
}

}  // namespace blockpack::inline BLOCKPACK_ABI
