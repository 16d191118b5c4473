// SPDX-License-Identifier: Apache-2.0
#include "recipe/model_format.hpp"

#include <fmt/format.h>

#include <charconv>

namespace blockpack::recipe_detail {
namespace {

/// A positive decimal number without sign or leading zero.
std::optional<index_t> parse_size(std::string_view text) {
  index_t value = 0;
  if (text.empty() || text.front() < '1' || text.front() > '9') return std::nullopt;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

std::string to_string(const TensorEntry& entry) {
  return fmt::format("{} {}x{} {}", entry.scheme, entry.shape.rows, entry.shape.cols,
                     blockpack::to_string(entry.source_dtype));
}

std::optional<TensorEntry> parse_tensor_entry(std::string_view text) {
  const std::size_t first = text.find(' ');
  if (first == std::string_view::npos) return std::nullopt;
  const std::size_t second = text.find(' ', first + 1);
  if (second == std::string_view::npos) return std::nullopt;
  const std::string_view shape = text.substr(first + 1, second - first - 1);
  const std::size_t cross = shape.find('x');
  if (first == 0 || cross == std::string_view::npos) return std::nullopt;
  const auto rows = parse_size(shape.substr(0, cross));
  const auto cols = parse_size(shape.substr(cross + 1));
  const auto dtype = dtype_from_name(text.substr(second + 1));
  if (!rows || !cols || !dtype) return std::nullopt;
  return TensorEntry{std::string(text.substr(0, first)), {*rows, *cols}, *dtype};
}

TensorSpec section_spec(const Codec& codec, MatrixShape shape, std::string_view tensor, const SectionSize& section) {
  TensorSpec spec{section_tensor_name(tensor, section.name), Dtype::u8, {section.bytes}};
  if (codec.row_wise() && section.per_row) spec.shape = {shape.rows, shape.rows == 0 ? 0 : section.bytes / shape.rows};
  return spec;
}

bool is_matrix(const TensorSpec& tensor) {
  return tensor.shape.size() == 2 && tensor.shape[0] > 0 && tensor.shape[1] > 0 && computable(tensor.dtype);
}

}  // namespace blockpack::recipe_detail
