// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Exceptions. A message names the function, the argument, what was needed and what came:
/// `quantize: dst has 96 groups, rows * ceil(cols / 32) = 128 needed`.

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "blockpack/core/config.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Everything the library throws on purpose derives from this. Exported: a type that crosses the border of the shared
/// library needs one type_info.
class BLOCKPACK_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Sizes disagree, or a size does not fit the address space.
class BLOCKPACK_API ShapeError : public Error {
 public:
  using Error::Error;
};

/// A value is NaN, infinite or out of the range the operation takes.
class BLOCKPACK_API ValueError : public Error {
 public:
  using Error::Error;
};

/// What this build, this CPU or this version cannot do.
class BLOCKPACK_API UnsupportedError : public Error {
 public:
  using Error::Error;
};

/// The operating system refused: a file is missing, the disk is full. Carries `errno`.
class BLOCKPACK_API IoError : public Error {
 public:
  IoError(const std::string& message, int error_number) : Error(message), error_number_(error_number) {}
  int error_number() const noexcept { return error_number_; }

 private:
  int error_number_;
};

/// The caller's stop token was set; nothing was lost but the work not yet done.
class BLOCKPACK_API CancelledError : public Error {
 public:
  using Error::Error;
};

/// Bytes or text that are not what the format demands.
class BLOCKPACK_API FormatError : public Error {
 public:
  /// `code` is a short stable identifier (`InvalidOffset`), `byte_offset` where in the input the problem lies (-1: not
  /// known), `tensor` the tensor concerned (may be empty).
  explicit FormatError(const std::string& message, std::string code = {}, std::int64_t byte_offset = -1,
                       std::string tensor = {})
      : Error(message), code_(std::move(code)), byte_offset_(byte_offset), tensor_(std::move(tensor)) {}

  const std::string& code() const noexcept { return code_; }
  std::int64_t byte_offset() const noexcept { return byte_offset_; }
  const std::string& tensor() const noexcept { return tensor_; }

 private:
  std::string code_;
  std::int64_t byte_offset_;
  std::string tensor_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
