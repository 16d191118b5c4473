// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A row format behind one type: what forms are made of whose values may be stored in any format, chosen at run time.

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/code_spec.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/row_format.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Immutable; copies share the format. Models RowFormat, and TensorFormat, CheckedFormat, PatternFormat and CodeFormat
/// as far as the format inside does: one without parameters of the matrix says so, as one without codes does. Cost: a
/// virtual call a row.
class AnyRowFormat {
 public:
  template <class F>
  requires(!std::is_same_v<F, AnyRowFormat> && RowFormat<F>) explicit AnyRowFormat(F format)
      : self_(std::make_shared<const Model<F>>(std::move(format))) {}

  std::string scheme() const { return self_->scheme(); }
  std::vector<SectionSpec> sections(index_t cols) const { return self_->sections(cols); }
  bool can_store_nan() const noexcept { return self_->can_store_nan(); }
  bool exact_in_bf16() const noexcept { return self_->exact_in_bf16(); }
  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const { self_->encode_row(row, dst); }
  void decode_row(std::span<const std::byte* const> src, index_t cols, index_t col, std::span<float> dst) const {
    self_->decode_row(src, cols, col, dst);
  }
  void check_row(const EncodeRow& row) const { self_->check_row(row); }
  void check_pattern(const EncodeRow& row) const { self_->check_pattern(row); }
  bool fits_tensor() const noexcept { return self_->fits_tensor(); }
  AnyRowFormat fitted_to(const TensorStatistics& statistics) const { return self_->fitted_to(statistics); }
  void encode_tensor(std::span<std::byte* const> dst) const { self_->encode_tensor(dst); }
  std::optional<CodeSpec> code_spec(index_t cols, std::span<const std::byte* const> src) const {
    return self_->code_spec(cols, src);
  }
  void read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const {
    self_->read_codes(src, cols, dst);
  }

  friend bool operator==(const AnyRowFormat& a, const AnyRowFormat& b) { return a.scheme() == b.scheme(); }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual std::string scheme() const = 0;
    virtual std::vector<SectionSpec> sections(index_t cols) const = 0;
    virtual bool can_store_nan() const noexcept = 0;
    virtual bool exact_in_bf16() const noexcept = 0;
    virtual void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const = 0;
    virtual void decode_row(std::span<const std::byte* const> src, index_t cols, index_t col,
                            std::span<float> dst) const = 0;
    virtual void check_row(const EncodeRow& row) const = 0;
    virtual void check_pattern(const EncodeRow& row) const = 0;
    virtual bool fits_tensor() const noexcept = 0;
    virtual AnyRowFormat fitted_to(const TensorStatistics& statistics) const = 0;
    virtual void encode_tensor(std::span<std::byte* const> dst) const = 0;
    virtual std::optional<CodeSpec> code_spec(index_t cols, std::span<const std::byte* const> src) const = 0;
    virtual void read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const = 0;
  };

  template <RowFormat F>
  struct Model final : Interface {
    explicit Model(F f) : format(std::move(f)) {}
    std::string scheme() const override { return format.scheme(); }
    std::vector<SectionSpec> sections(index_t cols) const override { return format.sections(cols); }
    bool can_store_nan() const noexcept override { return format.can_store_nan(); }
    bool exact_in_bf16() const noexcept override { return format.exact_in_bf16(); }
    void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const override {
      format.encode_row(row, dst);
    }
    void decode_row(std::span<const std::byte* const> src, index_t cols, index_t col,
                    std::span<float> dst) const override {
      format.decode_row(src, cols, col, dst);
    }
    void check_row([[maybe_unused]] const EncodeRow& row) const override {
      if constexpr (CheckedFormat<F>) format.check_row(row);
    }
    void check_pattern([[maybe_unused]] const EncodeRow& row) const override {
      if constexpr (PatternFormat<F>) format.check_pattern(row);
    }
    bool fits_tensor() const noexcept override {
      if constexpr (TensorFormat<F>) return format.fits_tensor();
      return false;
    }
    AnyRowFormat fitted_to([[maybe_unused]] const TensorStatistics& statistics) const override {
      if constexpr (TensorFormat<F>) return AnyRowFormat(format.fitted_to(statistics));
      return AnyRowFormat(format);
    }
    void encode_tensor([[maybe_unused]] std::span<std::byte* const> dst) const override {
      if constexpr (TensorFormat<F>) format.encode_tensor(dst);
    }
    std::optional<CodeSpec> code_spec([[maybe_unused]] index_t cols,
                                      [[maybe_unused]] std::span<const std::byte* const> src) const override {
      if constexpr (CodeFormat<F>) return format.code_spec(cols, src);
      return std::nullopt;
    }
    void read_codes([[maybe_unused]] std::span<const std::byte* const> src, [[maybe_unused]] index_t cols,
                    [[maybe_unused]] const CodeRow& dst) const override {
      if constexpr (CodeFormat<F>) format.read_codes(src, cols, dst);
    }
    F format;
  };

  std::shared_ptr<const Interface> self_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
