// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "blockpack/io/atomic_file.hpp"
#include "blockpack/io/checked.hpp"
#include "blockpack/io/gguf.hpp"
#include "io/gguf_format.hpp"
#include "io/strict_json.hpp"
#include "io/tensor_slots.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

using io_detail::printable;
using io_detail::TensorSlot;

constexpr const char* kGgufWriter = "GgufWriter";
constexpr std::uint64_t kMaxGgufHeaderBytes = 100'000'000;  // what our readers take by default

void check_name(std::string_view name, const char* kind) {
  if (io_detail::valid_utf8_prefix(name) != name.size() || name.find('\0') != std::string_view::npos)
    throw ValueError(fmt::format("{}: the {} '{}' is not UTF-8 without NUL", kGgufWriter, kind, printable(name)));
}

template <class T>
void append_number(std::string& header, T value) {
  static_assert(std::endian::native == std::endian::little);
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  header.append(bytes, sizeof(T));
}

void append(std::string& header, const std::string& text) {
  append_number<std::uint64_t>(header, text.size());
  header.append(text);
}
template <class T>
void append(std::string& header, T value) {
  append_number(header, value);
}

/// The type number of a variant's alternative.
template <class Variant>
std::uint32_t type_of(const Variant& value) {
  return size_cast<std::uint32_t>(value.index(), kGgufWriter);
}

void append(std::string& header, const GgufArray& array) {
  if (std::holds_alternative<GgufNestedArray>(array))
    throw ValueError(fmt::format("{}: an array of arrays cannot be stored", kGgufWriter));
  append_number(header, type_of(array));
  std::visit(
      [&]<class Items>(const Items& items) {
        if constexpr (!std::same_as<Items, GgufNestedArray>) {
          append_number<std::uint64_t>(header, items.size());
          for (const auto& item : items) append(header, static_cast<typename Items::value_type>(item));
        }
      },
      array);
}

void append_metadata(std::string& header, const GgufMetadata& metadata) {
  std::vector<std::string_view> keys;
  for (const auto& [key, value] : metadata) {
    if (key.empty()) throw ValueError(fmt::format("{}: a metadata key is empty", kGgufWriter));
    check_name(key, "metadata key");
    keys.push_back(key);
    append(header, key);
    append_number(header, type_of(value));
    std::visit([&](const auto& alternative) { append(header, alternative); }, value);
  }
  std::sort(keys.begin(), keys.end());
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  if (twice != keys.end())
    throw ValueError(fmt::format("{}: the metadata key '{}' is used twice", kGgufWriter, printable(*twice)));
}

std::uint64_t alignment_of(const GgufMetadata& metadata) {
  const auto alignment = io_detail::gguf_alignment(metadata);
  if (!alignment) throw ValueError(fmt::format("{}: {} is not a u32 power of two", kGgufWriter, kGgufAlignmentKey));
  return *alignment;
}

/// In the order given, offsets assigned.
std::vector<TensorSlot> place(const std::vector<GgufTensorSpec>& specs, std::uint64_t alignment) {
  std::vector<TensorSlot> slots;
  std::uint64_t end = 0;
  for (const GgufTensorSpec& spec : specs) {
    if (spec.name.empty() || spec.name.size() > io_detail::kGgufMaxNameBytes)
      throw ValueError(fmt::format("{}: a tensor cannot be called '{}'; use 1 to {} bytes", kGgufWriter,
                                   printable(spec.name), io_detail::kGgufMaxNameBytes));
    check_name(spec.name, "tensor name");
    if (spec.shape.size() > io_detail::kGgufMaxRank)
      throw ShapeError(fmt::format("{}: tensor '{}' has {} dimensions, at most {} can be stored", kGgufWriter,
                                   printable(spec.name), spec.shape.size(), io_detail::kGgufMaxRank));
    slots.push_back({spec.name, end, tensor_bytes(spec)});
    end = size_round_up(size_add(end, slots.back().size, kGgufWriter), alignment, kGgufWriter);
  }
  return slots;
}

}  // namespace

struct GgufWriter::Impl {
  std::vector<GgufTensorSpec> specs;
  GgufMetadata metadata;
  std::uint64_t alignment;
  std::vector<TensorSlot> placed;  // in file order
  io_detail::TensorSlots slots;
  std::uint64_t data_offset;
  AtomicFile file;

  Impl(const std::filesystem::path& target, std::vector<GgufTensorSpec> tensors, GgufMetadata initial)
      : specs(std::move(tensors)),
        metadata(std::move(initial)),
        alignment(alignment_of(metadata)),
        placed(place(specs, alignment)),
        slots(kGgufWriter, placed),
        data_offset(data_offset_of(header(metadata))),
        file(target) {
    const std::uint64_t data = placed.empty() ? 0 : size_add(placed.back().begin, placed.back().size, kGgufWriter);
    file.resize(size_round_up(size_add(data_offset, data, kGgufWriter), alignment, kGgufWriter));
  }

  std::string header(const GgufMetadata& entries) const {
    std::string text(io_detail::kGgufMagic);
    append_number(text, io_detail::kGgufVersion);
    append_number<std::uint64_t>(text, specs.size());
    append_number<std::uint64_t>(text, entries.size());
    append_metadata(text, entries);
    for (std::size_t i = 0; i < specs.size(); ++i) {
      append(text, specs[i].name);
      append_number(text, size_cast<std::uint32_t>(specs[i].shape.size(), kGgufWriter));
      for (auto d = specs[i].shape.rbegin(); d != specs[i].shape.rend(); ++d) append_number<std::int64_t>(text, *d);
      append_number(text, static_cast<std::uint32_t>(specs[i].type));
      append_number(text, placed[i].begin);
    }
    if (text.size() > kMaxGgufHeaderBytes)
      throw ValueError(fmt::format("{}: the header would have {} bytes, readers take at most {}", kGgufWriter,
                                   text.size(), kMaxGgufHeaderBytes));
    return text;
  }

  std::uint64_t data_offset_of(const std::string& text) const {
    return size_round_up(text.size(), alignment, kGgufWriter);
  }
};

GgufWriter::GgufWriter(const std::filesystem::path& target, std::vector<GgufTensorSpec> tensors, GgufMetadata metadata)
    : impl_(std::make_unique<Impl>(target, std::move(tensors), std::move(metadata))) {}

GgufWriter::GgufWriter(GgufWriter&&) noexcept = default;
GgufWriter::~GgufWriter() = default;

void GgufWriter::write(std::string_view tensor, std::uint64_t byte_offset, std::span<const std::byte> bytes) {
  impl_->slots.write(impl_->file, impl_->data_offset, tensor, byte_offset, bytes);
}

void GgufWriter::commit() { commit(impl_->metadata); }

void GgufWriter::commit(const GgufMetadata& metadata) {
  impl_->slots.require_all_written();
  std::string header = impl_->header(metadata);
  if (alignment_of(metadata) != impl_->alignment || impl_->data_offset_of(header) != impl_->data_offset)
    throw ValueError(
        fmt::format("{}::commit: with these metadata the data would start at another place than at {}; "
                    "declare values of the same sizes",
                    kGgufWriter, impl_->data_offset));
  impl_->file.write(0, header);
  impl_->file.commit();
}

}  // namespace blockpack::inline BLOCKPACK_ABI
