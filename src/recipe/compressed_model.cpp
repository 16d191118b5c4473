// SPDX-License-Identifier: Apache-2.0
#include "blockpack/recipe/compressed_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "blockpack/core/dense.hpp"
#include "blockpack/core/sha256.hpp"
#include "recipe/gguf_model.hpp"
#include "recipe/model_format.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

using namespace recipe_detail;

constexpr std::size_t kHashPiece = std::size_t{1} << 20;
constexpr index_t kDecodedPanelBytes = index_t{4} << 20;

[[noreturn]] void fail(const std::string& problem, std::string_view tensor = {}) {
  throw FormatError("compressed model: " + problem, "InvalidCompressedModel", -1, std::string(tensor));
}

bool is_hex_digest(std::string_view text) {
  return text.size() == kHashDigits &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

int parse_version(std::string_view text) {
  int version = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), version);
  if (error != std::errc{} || end != text.data() + text.size() || version < 1 || text.front() == '0')
    fail(fmt::format("{} is \"{}\", a version number needed", kVersionKey, text.substr(0, 20)));
  if (version > kFormatVersion)
    throw UnsupportedError(
        fmt::format("compressed model: the file has version {}, this library reads up to {}; update the library",
                    version, kFormatVersion));
  return version;
}

/// The entries of the metadata whose keys start with `prefix`, without it.
template <class F>
void for_each_with_prefix(const Metadata& metadata, std::string_view prefix, const F& f) {
  for (auto it = metadata.lower_bound(prefix); it != metadata.end() && it->first.starts_with(prefix); ++it)
    f(it->first.substr(prefix.size()), it->second);
}

/// Rows of a panel that is decoded at once.
index_t panel_rows(MatrixShape shape) {
  return std::clamp<index_t>(kDecodedPanelBytes / (shape.cols * index_t{sizeof(float)}), 1, shape.rows);
}

/// Memory for a panel of any of the tensors.
AlignedBuffer<float> panel_memory(std::span<const CompressedTensor> tensors) {
  index_t largest = 0;
  for (const CompressedTensor& t : tensors)
    largest = std::max(largest, checked_mul(panel_rows(t.shape), t.shape.cols, "compressed model"));
  return AlignedBuffer<float>::uninitialized(largest);
}

/// Calls body(first, w) for the panels of a tensor, decoded. Pages of the file that were read are given back.
template <class Body>
void for_decoded_panels(const CompressedTensor& t, AlignedBuffer<float>& memory, const Execution& how,
                        const Body& body) {
  const AnyLinear op = t.open(PackPolicy::none());
  const index_t rows = panel_rows(t.shape);
  for (index_t first = 0; first < t.shape.rows; first += rows) {
    how.throw_if_stopped();
    const MatrixView<float> w(memory.data(), std::min(rows, t.shape.rows - first), t.shape.cols);
    std::vector<index_t> which(static_cast<std::size_t>(w.rows()));
    std::iota(which.begin(), which.end(), first);
    op.decode_rows(which, w);
    body(first, w);
    if (t.codec->row_wise())
      for (const Tensor& stored : t.stored)
        if (stored.shape.size() == 2) release_rows(stored, first, w.rows());
  }
  for (const Tensor& stored : t.stored)
    if (stored.mapping != nullptr) stored.mapping->release(stored.data.bytes);
}

}  // namespace

CompressedModel CompressedModel::open(const std::filesystem::path& path, const Registry& registry) {
  const TensorStore store = TensorStore::open(path);
  CompressedModel model;
  model.path_ = path;
  if (const auto version = store.metadata().find(kVersionKey); version != store.metadata().end()) {
    model.version_ = parse_version(version->second);
    model.read_metadata(store);
    if (store.gguf() == nullptr) model.read_sections(store, registry);
  }
  if (store.gguf() != nullptr) model.read_blocks(*store.gguf(), registry);
  std::set<std::string_view> sections;
  for (const CompressedTensor& t : model.compressed_)
    for (const Tensor& stored : t.stored) sections.insert(stored.name);
  for (const std::string& name : store.names()) {
    const Tensor tensor = store.tensor(name);
    model.storage_bytes_ += tensor.data.bytes.size();
    if (model.has_hashes() && model.hashes_.find(name) == model.hashes_.end())
      fail(fmt::format("tensor '{}' has no {} entry", name, kHashKey), name);
    if (sections.count(name) != 0) continue;
    if (model.find_compressed(name) != nullptr)
      fail(fmt::format("tensor '{}' is stored and also listed as compressed", name), name);
    model.kept_.push_back(tensor);
    model.names_.push_back(name);
  }
  for (const CompressedTensor& t : model.compressed_) model.names_.push_back(t.name);
  std::sort(model.names_.begin(), model.names_.end());
  return model;
}

void CompressedModel::read_metadata(const TensorStore& store) {
  const Metadata& metadata = store.metadata();
  const auto recipe = metadata.find(kRecipeKey);
  if (recipe == metadata.end()) fail(fmt::format("{} is missing", kRecipeKey));
  recipe_ = recipe->second;
  for_each_with_prefix(metadata, kHashKey, [&](const std::string& name, const std::string& digest) {
    if (!is_hex_digest(digest)) fail(fmt::format("the hash of '{}' is not 64 hexadecimal digits", name), name);
    if (!store.contains(name)) fail(fmt::format("there is a hash of '{}' but no such tensor", name), name);
    hashes_.emplace(name, digest);
  });
}

void CompressedModel::read_sections(const TensorStore& store, const Registry& registry) {
  std::map<std::string, std::shared_ptr<const Codec>, std::less<>> codecs;
  for_each_with_prefix(store.metadata(), kTensorKey, [&](const std::string& name, const std::string& text) {
    const auto entry = parse_tensor_entry(text);
    if (!entry)
      fail(fmt::format("the entry of '{}' is \"{}\", <scheme> <rows>x<columns> <dtype> needed", name,
                       text.substr(0, 80)),
           name);
    std::shared_ptr<const Codec>& codec = codecs[entry->scheme];
    if (codec == nullptr) codec = registry.codec(entry->scheme);
    CompressedTensor tensor{name, entry->scheme, entry->shape, entry->source_dtype, codec, {}, {}};
    std::vector<SectionSize> sizes;
    try {
      sizes = codec->sections(entry->shape);
    } catch (const ShapeError& error) {
      fail(fmt::format("the shape of '{}': {}", name, error.what()), name);
    }
    for (const SectionSize& size : sizes) {
      const TensorSpec needed = section_spec(*codec, entry->shape, name, size);
      if (!store.contains(needed.name)) fail(fmt::format("tensor '{}' is missing", needed.name), name);
      Tensor stored = store.tensor(needed.name);
      if (stored.dtype != needed.dtype || stored.shape != needed.shape)
        fail(fmt::format("tensor '{}' has another type or shape than {} of {} needs", needed.name, entry->scheme,
                         blockpack::to_string(entry->shape)),
             name);
      tensor.sections.push_back({size.name, stored.data});
      tensor.stored.push_back(std::move(stored));
    }
    compressed_.push_back(std::move(tensor));
  });
}

void CompressedModel::read_blocks(const GgufFile& file, const Registry& registry) {
  std::map<GgufTensorType, std::shared_ptr<const Codec>> codecs;
  const auto codec_of = [&](GgufTensorType type) {
    const auto [at, is_new] = codecs.try_emplace(type);
    if (is_new) {
      const std::string scheme = scheme_of(type);
      const auto families = registry.families();
      const bool known = std::any_of(families.begin(), families.end(), [&](const SchemeFamily& family) {
        const std::string& name = parse_scheme(scheme).format.text;
        return std::find(family.names.begin(), family.names.end(), name) != family.names.end();
      });
      if (known) at->second = registry.codec(scheme);
    }
    return at->second;
  };
  for (const GgufTensor& tensor : file.tensors()) {
    if (gguf_tensor_type_info(tensor.type).dtype || tensor.data.bytes.empty()) continue;
    const std::shared_ptr<const Codec> codec = codec_of(tensor.type);
    if (codec == nullptr) continue;  // a type without an operator stays bytes
    const index_t cols = tensor.shape.back();
    const MatrixShape shape{element_count(tensor.shape) / cols, cols};
    Tensor stored = tensor.stored();
    stored.shape = {shape.rows, stored.shape.back()};
    const std::vector<SectionSize> sizes = codec->sections(shape);
    if (sizes.size() != 1 || std::cmp_not_equal(sizes[0].bytes, stored.data.bytes.size()))
      fail(fmt::format("tensor '{}' of type {} has other bytes than scheme {}", tensor.name,
                       gguf_tensor_type_info(tensor.type).name, codec->scheme()),
           tensor.name);
    compressed_.push_back(
        {tensor.name, codec->scheme(), shape, Dtype::f32, codec, {{sizes[0].name, stored.data}}, {stored}});
  }
  std::sort(compressed_.begin(), compressed_.end(),
            [](const CompressedTensor& a, const CompressedTensor& b) { return a.name < b.name; });
}

bool CompressedModel::contains(std::string_view name) const noexcept {
  return std::binary_search(names_.begin(), names_.end(), name, std::less<>());
}

const CompressedTensor* CompressedModel::find_compressed(std::string_view name) const noexcept {
  const auto it = std::lower_bound(compressed_.begin(), compressed_.end(), name,
                                   [](const CompressedTensor& t, std::string_view n) { return t.name < n; });
  return it != compressed_.end() && it->name == name ? &*it : nullptr;
}

Tensor CompressedModel::tensor(std::string_view name) const {
  const auto it = std::lower_bound(kept_.begin(), kept_.end(), name,
                                   [](const Tensor& t, std::string_view n) { return t.name < n; });
  if (it != kept_.end() && it->name == name) return *it;
  throw ValueError(fmt::format("CompressedModel: {} '{}'{}", contains(name) ? "tensor" : "no tensor", name,
                               contains(name) ? " is compressed; use linear() or read_rows()" : " in this model"));
}

AnyLinear CompressedModel::linear(std::string_view name, PackPolicy policy) const {
  if (const CompressedTensor* compressed = find_compressed(name)) return compressed->open(policy);
  const Tensor kept = tensor(name);
  if (kept.shape.size() != 2)
    throw ValueError(fmt::format("CompressedModel::linear: '{}' has {} dimensions, 2 needed", name, kept.shape.size()));
  const MatrixShape shape = matrix_shape(kept.shape);
  const Section values{"values", kept.data};
  const std::span<const Section> sections(&values, 1);
  switch (kept.dtype) {
    case Dtype::f32:
      return Dense<float>::from_sections(shape, {}, sections, policy);
    case Dtype::bf16:
      return Dense<bf16>::from_sections(shape, {}, sections, policy);
    case Dtype::f16:
      return Dense<fp16>::from_sections(shape, {}, sections, policy);
    default:
      throw UnsupportedError(fmt::format("CompressedModel::linear: '{}' is kept as {}, F32, BF16 or F16 needed", name,
                                         blockpack::to_string(kept.dtype)));
  }
}

std::vector<index_t> CompressedModel::shape(std::string_view name) const {
  if (const CompressedTensor* compressed = find_compressed(name))
    return {compressed->shape.rows, compressed->shape.cols};
  return tensor(name).shape;
}

void CompressedModel::read_rows(std::string_view name, index_t first_row, MatrixView<float> dst) const {
  const CompressedTensor* compressed = find_compressed(name);
  if (compressed == nullptr) return read_rows_f32(tensor(name), first_row, dst);
  std::vector<index_t> rows(static_cast<std::size_t>(dst.rows()));
  std::iota(rows.begin(), rows.end(), first_row);
  compressed->open(PackPolicy::none()).decode_rows(rows, dst);
}

std::vector<HashCheck> CompressedModel::verify_hashes(const Execution& how) const {
  if (!has_hashes()) throw ValueError("verify_hashes: the model holds no hashes; give one that compress_model wrote");
  std::vector<Tensor> stored = kept_;
  for (const CompressedTensor& t : compressed_) stored.insert(stored.end(), t.stored.begin(), t.stored.end());
  std::sort(stored.begin(), stored.end(), [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
  std::vector<HashCheck> checks(stored.size());
  parallel_for(how, static_cast<index_t>(stored.size()), [&](index_t i) {
    const Tensor& tensor = stored[static_cast<std::size_t>(i)];
    Sha256 hash;
    for_each_piece(tensor.data.bytes, kHashPiece, [&](std::size_t, std::span<const std::byte> piece) {
      hash.update(piece);
      if (tensor.mapping != nullptr) tensor.mapping->release(piece);
      how.throw_if_stopped();
    });
    checks[static_cast<std::size_t>(i)] = {tensor.name, hash.hex() == hashes_.find(tensor.name)->second};
  });
  return checks;
}

std::vector<DecodedRange> CompressedModel::decoded_ranges(const Execution& how) const {
  std::vector<DecodedRange> all;
  AlignedBuffer<float> memory = panel_memory(compressed_);
  for (const CompressedTensor& t : compressed_) {
    DecodedRange range;
    for_decoded_panels(t, memory, how, [&](index_t, MatrixView<const float> w) {
      for (index_t r = 0; r < w.rows(); ++r)
        for (const float v : w.row(r)) {
          if (!std::isfinite(v)) {
            ++range.not_finite;
            continue;
          }
          range.least = std::min(range.least, v);
          range.greatest = std::max(range.greatest, v);
        }
    });
    all.push_back(range);
  }
  return all;
}

std::vector<ErrorStats> CompressedModel::compare(const CompressedModel& original, const Execution& how) const {
  std::vector<ErrorStats> all;
  AlignedBuffer<float> reference = panel_memory(compressed_), memory = panel_memory(compressed_);
  for (const CompressedTensor& t : compressed_) {
    if (!original.contains(t.name))
      throw ValueError(
          fmt::format("compare: the original has no tensor '{}'; give the model this one was made from", t.name));
    if (original.shape(t.name) != std::vector<index_t>{t.shape.rows, t.shape.cols})
      throw ValueError(
          fmt::format("compare: '{}' has another shape in the original; give the model this one was made "
                      "from",
                      t.name));
    ErrorStats error;
    for_decoded_panels(t, memory, how, [&](index_t first, MatrixView<const float> w) {
      const MatrixView<float> r(reference.data(), w.rows(), w.cols());
      original.read_rows(t.name, first, r);
      if (original.find_compressed(t.name) == nullptr) release_rows(original.tensor(t.name), first, w.rows());
      error.add(r, w, first, how);
    });
    all.push_back(error);
  }
  return all;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
