// SPDX-License-Identifier: Apache-2.0
#pragma once

/// How the quantization formats write and read the fields of their scheme strings ("-b32", "-asym", "-trunc").

#include <algorithm>
#include <charconv>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/error.hpp"
#include "blockpack/core/strict.hpp"

namespace blockpack::inline BLOCKPACK_ABI::detail {

/// The number in `prefix<number>`: decimal digits only, no sign, no leading zero, at most 6 digits; nothing otherwise.
inline std::optional<int> number_after(std::string_view prefix, std::string_view text) {
  if (!text.starts_with(prefix)) return std::nullopt;
  text.remove_prefix(prefix.size());
  if (text.empty() || text.size() > 6 || text.front() == '0') return std::nullopt;
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

/// "-away", "-trunc", "-down", "-stochastic"; empty for the default, half to even.
inline std::string rounding_field(Rounding rounding) {
  constexpr const char* kFields[] = {"", "-away", "-trunc", "-down", "-stochastic"};
  return kFields[static_cast<std::size_t>(rounding)];
}
inline std::optional<Rounding> parse_rounding(std::string_view field) {
  for (const Rounding r : {Rounding::half_away, Rounding::toward_zero, Rounding::down, Rounding::stochastic})
    if (field == std::string_view(rounding_field(r)).substr(1)) return r;
  return std::nullopt;
}

/// Assigns fields of a scheme; each kind of field may come once.
class FieldReader {
 public:
  FieldReader(std::string_view name, std::span<const std::string_view> fields) : scheme_(name) {
    for (const std::string_view field : fields) scheme_.append("-").append(field);
  }

  template <class T>
  void set(std::string_view kind, T& target, T value) {
    if (std::find(seen_.begin(), seen_.end(), kind) != seen_.end())
      throw ValueError("scheme " + scheme_ + ": the " + std::string(kind) + " is given twice");
    seen_.push_back(kind);
    target = value;
  }
  [[noreturn]] void unknown(std::string_view field) const {
    throw ValueError("scheme " + scheme_ + ": unknown field '" + std::string(field) + "'");
  }

 private:
  std::string scheme_;
  std::vector<std::string_view> seen_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI::detail
