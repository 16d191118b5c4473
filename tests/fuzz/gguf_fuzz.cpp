// SPDX-License-Identifier: Apache-2.0
// Any bytes as a GGUF file: refused with a FormatError, or every tensor lies aligned inside and none over another.
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "blockpack/io/gguf.hpp"

using namespace blockpack;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  ReadLimits limits;
  limits.max_tensors = limits.max_metadata_entries = 1000;
  try {
    const GgufFile file = GgufFile::parse(bytes, limits);
    std::uint64_t end = 0;
    for (const GgufTensor& tensor : file.tensors()) {
      if (tensor.data.bytes.size() != tensor_bytes(tensor.spec())) std::abort();
      if (tensor.data.bytes.size() != tensor_bytes(tensor.stored().spec())) std::abort();
      if (file.find(tensor.name) != &tensor) std::abort();
      if (tensor.data.bytes.empty()) continue;
      const auto begin = static_cast<std::uint64_t>(tensor.data.bytes.data() - bytes.data());
      if (begin < file.data_offset() || (begin - file.data_offset()) % file.alignment() != 0 || begin < end)
        std::abort();
      end = begin + tensor.data.bytes.size();
      if (end > size) std::abort();
      volatile auto last = tensor.data.bytes.back();  // is there
      static_cast<void>(last);
    }
    for (const GgufEntry& entry : file.metadata())
      if (find_value(file.metadata(), entry.key) != &entry.value) std::abort();
  } catch (const FormatError& error) {
    if (error.code().empty()) std::abort();
  }
  return 0;
}
