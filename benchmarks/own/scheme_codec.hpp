// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A scheme string as a way to encode a matrix and to open the bytes as an operator, over the block formats.

#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/row_matrix.hpp"
#include "blockpack/quant/bfp.hpp"
#include "blockpack/quant/group_int.hpp"
#include "blockpack/quant/mx.hpp"

namespace bench {

class SchemeCodec {
 public:
  /// ValueError when no format answers to the name.
  explicit SchemeCodec(std::string_view scheme) {
    std::vector<std::string_view> fields;
    std::size_t start = 0;
    for (std::size_t dash = scheme.find('-'); dash != std::string_view::npos; dash = scheme.find('-', start)) {
      fields.push_back(scheme.substr(start, dash - start));
      start = dash + 1;
    }
    fields.push_back(scheme.substr(start));
    const std::string_view name = fields.front();
    const std::span<const std::string_view> rest = std::span(fields).subspan(1);
    if (const auto bfp = blockpack::Bfp::from_fields(name, rest))
      format_ = *bfp;
    else if (const auto mx = blockpack::Mx::from_fields(name, rest))
      format_ = *mx;
    else if (const auto integer = blockpack::GroupInt::from_fields(name, rest))
      format_ = *integer;
    else
      throw blockpack::ValueError("no block format is called " + std::string(scheme));
  }

  /// Zeroed sections for a matrix of that shape; `dst` gets a pointer to the start of each.
  std::vector<blockpack::Section> allocate(blockpack::MatrixShape shape, std::vector<std::byte*>& dst) const {
    return std::visit(
        [&](const auto& format) {
          std::vector<blockpack::Section> sections;
          for (const blockpack::SectionSpec& s : format.sections(shape.cols)) {
            auto bytes = std::make_shared<blockpack::AlignedBuffer<std::byte>>(shape.rows * s.bytes_per_row);
            dst.push_back(bytes->data());
            sections.push_back({s.name, blockpack::SharedBytes(std::as_bytes(bytes->span()), bytes)});
          }
          return sections;
        },
        format_);
  }
  void encode(blockpack::MatrixView<const float> w, std::span<std::byte* const> dst,
              const blockpack::EncodeOptions& options) const {
    std::visit([&](const auto& format) { blockpack::encode_rows(format, w, 0, dst, options); }, format_);
  }
  blockpack::AnyLinear open(blockpack::MatrixShape shape, std::span<const blockpack::Section> sections,
                            blockpack::PackPolicy policy) const {
    return std::visit(
        [&](const auto& format) -> blockpack::AnyLinear {
          return blockpack::RowMatrix<std::decay_t<decltype(format)>>::from_sections(shape, format, sections, policy);
        },
        format_);
  }
  double bits_per_weight(blockpack::index_t cols) const {
    return std::visit([&](const auto& format) { return blockpack::bits_per_weight(format, cols); }, format_);
  }

 private:
  std::variant<blockpack::Bfp, blockpack::Mx, blockpack::GroupInt> format_;
};

}  // namespace bench
