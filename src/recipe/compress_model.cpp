// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "blockpack/core/sha256.hpp"
#include "blockpack/recipe/auto_plan.hpp"
#include "blockpack/recipe/compressed_model.hpp"
#include "recipe/gguf_model.hpp"
#include "recipe/model_format.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

using namespace recipe_detail;

constexpr index_t kUsefulBudget = index_t{32} << 20;  // larger panels were not faster
constexpr index_t kMeasureBytes = index_t{1} << 16;   // of decoded rows, per thread: more is given back when freed
constexpr std::size_t kCopyBytes = std::size_t{4} << 20;
constexpr index_t kRowsPerTask = 16;

/// A file of either container or a folder of shards behind one face.
class ModelWriter {
 public:
  ModelWriter(const std::filesystem::path& out, std::vector<TensorSpec> specs, const Metadata& metadata,
              std::uint64_t max_shard_bytes) {
    if (max_shard_bytes > 0) {
      shards_.emplace(out, std::move(specs), metadata, max_shard_bytes);
    } else {
      const std::uint64_t reserve = SafetensorsWriter::header_bytes(specs, metadata);
      file_.emplace(out, std::move(specs), metadata, reserve);
    }
  }
  /// `source`: the GGUF file the model is made from, if it is one.
  ModelWriter(const std::filesystem::path& out, std::vector<GgufTensorSpec> specs, const Metadata& metadata,
              const GgufFile* source)
      : source_(source) {
    quantized_ = std::any_of(specs.begin(), specs.end(),
                             [](const GgufTensorSpec& spec) { return !gguf_tensor_type_info(spec.type).dtype; });
    gguf_.emplace(out, std::move(specs), gguf_metadata(source_, metadata, quantized_));
  }
  void write(std::string_view tensor, std::uint64_t offset, std::span<const std::byte> bytes) {
    if (gguf_)
      gguf_->write(tensor, offset, bytes);
    else if (file_)
      file_->write(tensor, offset, bytes);
    else
      shards_->write(tensor, offset, bytes);
  }
  void commit(const Metadata& metadata) {
    if (gguf_)
      gguf_->commit(gguf_metadata(source_, metadata, quantized_));
    else if (file_)
      file_->commit(metadata);
    else
      shards_->commit(metadata);
  }

 private:
  std::optional<SafetensorsWriter> file_;
  std::optional<ShardedWriter> shards_;
  std::optional<GgufWriter> gguf_;
  const GgufFile* source_ = nullptr;
  bool quantized_ = false;
};

/// Everything one run needs; a tensor at a time goes through it.
class Compressor {
 public:
  Compressor(const TensorStore& store, const Recipe& recipe, const std::filesystem::path& out,
             const CompressOptions& options, const Registry& registry)
      : store_(store), options_(options), gguf_(is_gguf(out)) {
    if (gguf_ && options.max_shard_bytes > 0)
      throw ValueError("compress_model: a GGUF file is not cut into shards; name a folder, or set no shard size");
    plan(recipe, registry);
    std::vector<TensorSpec> specs;
    std::vector<GgufTensorSpec> gguf_specs;
    metadata_ = base_metadata(recipe);
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (gguf_) gguf_specs.push_back(gguf_spec(tensors_[i].spec(), codecs_[i].get()));
      declare(i, specs);
    }
    if (gguf_)
      writer_.emplace(out, std::move(gguf_specs), metadata_, store.gguf());
    else
      writer_.emplace(out, std::move(specs), metadata_, options.max_shard_bytes);
  }

  CompressReport run() {
    options_.execution.report(0);
    reserve_buffers();
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (codecs_[i] == nullptr)
        copy(i);
      else
        compress(i);
    }
    options_.execution.throw_if_stopped();
    writer_->commit(metadata_);
    options_.execution.report(1);
    return std::move(report_);
  }

 private:
  void plan(const Recipe& recipe, const Registry& registry) {
    if (store_.metadata().find(kVersionKey) != store_.metadata().end())
      throw FormatError("compress_model: the input is a compressed model already; give the original model",
                        "AlreadyCompressed");
    if (const GgufFile* gguf = store_.gguf())
      for (const GgufTensor& tensor : gguf->tensors())
        if (const GgufTensorTypeInfo& type = gguf_tensor_type_info(tensor.type); !type.dtype)
          throw FormatError(
              fmt::format("compress_model: tensor '{}' of the input is {} already; give the original model",
                          tensor.name, type.name),
              "AlreadyCompressed", -1, tensor.name);
    std::vector<RecipeTensor> names;
    for (const std::string& name : store_.names()) {
      tensors_.push_back(store_.tensor(name));
      names.push_back({name, is_matrix(tensors_.back().spec())});
    }
    const std::vector<std::string> schemes = plan_recipe(recipe, names);
    std::map<std::string, std::shared_ptr<const Codec>, std::less<>> codecs;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      std::shared_ptr<const Codec> codec;
      if (!schemes[i].empty()) {
        std::shared_ptr<const Codec>& known = codecs[schemes[i]];
        if (known == nullptr) known = registry.codec(schemes[i]);
        codec = known;
      }
      codecs_.push_back(std::move(codec));
      total_bytes_ += tensors_[i].data.bytes.size();
    }
  }

  Metadata base_metadata(const Recipe& recipe) const {
    Metadata metadata;
    for (const auto& [key, value] : store_.metadata())
      if (!key.starts_with(kPrefix)) metadata[key] = value;
    metadata[std::string(kVersionKey)] = std::to_string(kFormatVersion);
    metadata[std::string(kRecipeKey)] = recipe.to_json();
    return metadata;
  }

  /// Adds what the file will hold for a tensor, with hashes of the right length to be filled in later.
  void declare(std::size_t i, std::vector<TensorSpec>& specs) {
    const Tensor& tensor = tensors_[i];
    TensorReport entry{tensor.name, {}, tensor.shape, tensor.dtype, tensor.data.bytes.size(), 0, {}, 0};
    const std::size_t first = specs.size();
    if (codecs_[i] == nullptr) {
      specs.push_back(tensor.spec());
      entry.stored_bytes = entry.source_bytes;
    } else {
      const Codec& codec = *codecs_[i];
      const MatrixShape shape = matrix_shape(tensor.shape);
      entry.scheme = codec.scheme();
      if (!gguf_)  // whose tensor types say it
        metadata_[std::string(kTensorKey) + tensor.name] = to_string(TensorEntry{codec.format(), shape, tensor.dtype});
      check_calibration(tensor.name, codec, shape);
      for (const SectionSize& section : codec.sections(shape)) {
        specs.push_back(section_spec(codec, shape, tensor.name, section));
        specs.back().name = stored_name(tensor, section);
        entry.stored_bytes += static_cast<std::uint64_t>(section.bytes);
        if (!gguf_ && store_.contains(specs.back().name))
          throw FormatError(fmt::format("compress_model: the model has a tensor '{}', the name a section of '{}' takes",
                                        specs.back().name, tensor.name),
                            "NameCollision", -1, tensor.name);
      }
    }
    for (std::size_t s = first; s < specs.size(); ++s)
      metadata_[std::string(kHashKey) + specs[s].name] = std::string(kHashDigits, '0');
    report_.tensors.push_back(std::move(entry));
  }

  TensorCalibration calibration_of(const std::string& tensor, const Codec& codec) const {
    const CalibrationNeeds needs = codec.needs();
    if (!needs.any() || !options_.calibration) return {};
    return options_.calibration(tensor).only(needs);
  }

  /// Said before anything is written.
  void check_calibration(const std::string& tensor, const Codec& codec, MatrixShape shape) const {
    const TensorCalibration found = calibration_of(tensor, codec);
    const auto refuse = [&](const std::string& what) {
      throw ValueError(fmt::format("tensor '{}': {} {}", tensor, codec.scheme(), what));
    };
    const CalibrationNeeds needs = codec.needs();
    constexpr const char* kHow = "give calibration statistics (compress_model calibrate, then --calibration)";
    if (needs.gram && found.gram == nullptr) refuse(fmt::format("needs XtX of the inputs; {}", kHow));
    if (needs.importance && found.importance.data() == nullptr)
      refuse(fmt::format("needs the importance of the weights; {}", kHow));
    if (needs.inputs && found.inputs.empty()) refuse(fmt::format("needs inputs of the layer; {}", kHow));
    if (!found.inputs.empty() && found.inputs.cols() != shape.cols)
      refuse(fmt::format("has inputs of {} features, {} needed", found.inputs.cols(), shape.cols));
    if (found.gram != nullptr && found.gram->in_features() != shape.cols)
      refuse(fmt::format("has XtX of {} inputs, {} needed", found.gram->in_features(), shape.cols));
    const MatrixShape importance = found.importance.shape();
    if (found.importance.data() != nullptr &&
        (importance.cols != shape.cols || (importance.rows != 1 && importance.rows != shape.rows)))
      refuse(fmt::format("has the importance of a {} matrix, {} needed", blockpack::to_string(importance),
                         blockpack::to_string(shape)));
  }

  /// Of a section in the file. A tensor of GGUF has one section and keeps its name.
  std::string stored_name(const Tensor& tensor, const SectionSize& section) const {
    return gguf_ ? tensor.name : section_tensor_name(tensor.name, section.name);
  }

  void advance(std::uint64_t bytes) {
    done_bytes_ += bytes;
    options_.execution.throw_if_stopped();
    options_.execution.report(0.999 * static_cast<double>(done_bytes_) /
                              static_cast<double>(std::max<std::uint64_t>(total_bytes_, 1)));
  }

  void set_hash(const std::string& stored_name, Sha256& hash) {
    metadata_[std::string(kHashKey) + stored_name] = hash.hex();
  }

  void copy(std::size_t i) {
    const Tensor& tensor = tensors_[i];
    Sha256 hash;
    for_each_piece(tensor.data.bytes, kCopyBytes, [&](std::size_t at, std::span<const std::byte> piece) {
      hash.update(piece);
      writer_->write(tensor.name, at, piece);
      if (tensor.mapping != nullptr) tensor.mapping->release(piece);
      advance(piece.size());
    });
    set_hash(tensor.name, hash);
  }

  struct Panel {
    index_t rows;
    index_t bytes;  ///< it takes while it is worked on
  };
  /// Rows of a panel so that input pages, floats, encoded bytes and the measuring buffer fit the budget.
  Panel panel_of(const Tensor& tensor, const Codec& codec, MatrixShape shape) const {
    index_t row_bytes =
        static_cast<index_t>(tensor.data.bytes.size()) / shape.rows + shape.cols * index_t{sizeof(float)};
    for (const SectionSize& s : codec.sections(shape)) row_bytes += s.per_row ? ceil_div(s.bytes, shape.rows) : 0;
    if (!codec.encodes_panels()) return {shape.rows, shape.rows * row_bytes + codec.working_bytes(shape)};
    const index_t extra = options_.measure ? 4 * kMeasureBytes : 0;
    const index_t budget = std::max<index_t>(1, std::min(options_.panel_budget, kUsefulBudget) - extra);
    index_t rows = std::clamp<index_t>(budget / row_bytes, 1, shape.rows);
    if (rows > kRowsPerTask && rows < shape.rows) rows -= rows % kRowsPerTask;
    return {rows, rows * row_bytes + extra};
  }

  /// Bytes of a section that a panel of `rows` rows encodes.
  static index_t panel_bytes(const Codec& codec, MatrixShape shape, const SectionSize& section, index_t rows) {
    return codec.encodes_panels() && section.per_row ? section.bytes / shape.rows * rows : section.bytes;
  }
  /// Bytes set aside for one encoded section of a panel.
  static index_t section_room(const Codec& codec, MatrixShape shape, const SectionSize& section, index_t rows) {
    return round_up(panel_bytes(codec, shape, section, rows), 64);
  }

  /// One set of buffers for all tensors: freeing and allocating again would leave holes in the heap that grow with the
  /// model.
  void reserve_buffers() {
    index_t panel = 0, encoded = 0;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (codecs_[i] == nullptr) continue;
      const MatrixShape shape = matrix_shape(tensors_[i].shape);
      const Panel p = panel_of(tensors_[i], *codecs_[i], shape);
      report_.peak_working_bytes = std::max(report_.peak_working_bytes, p.bytes);
      if (!codecs_[i]->encodes_panels()) report_.tensors[i].whole_bytes = p.bytes;
      index_t room = 0;
      for (const SectionSize& s : codecs_[i]->sections(shape))
        room = checked_add(room, section_room(*codecs_[i], shape, s, p.rows), "compress_model");
      panel = std::max(panel, checked_mul(p.rows, shape.cols, "compress_model"));
      encoded = std::max(encoded, room);
    }
    panel_ = AlignedBuffer<float>::uninitialized(panel);
    encoded_ = AlignedBuffer<std::byte>::uninitialized(encoded);
  }

  void compress(std::size_t i) {
    const Tensor& tensor = tensors_[i];
    try {
      compress_matrix(tensor, *fitted_codec(tensor, codecs_[i]), report_.tensors[i]);
    } catch (const ValueError& error) {
      throw ValueError(fmt::format("tensor '{}': {}", tensor.name, error.what()));
    } catch (const UnsupportedError& error) {
      throw UnsupportedError(fmt::format("tensor '{}': {}", tensor.name, error.what()));
    }
  }

  /// The codec for a tensor, after a first pass over it where the format has parameters of the whole matrix.
  std::shared_ptr<const Codec> fitted_codec(const Tensor& tensor, const std::shared_ptr<const Codec>& codec) {
    if (!codec->fits_tensor()) return codec;
    const MatrixShape shape = matrix_shape(tensor.shape);
    const index_t rows = panel_of(tensor, *codec, shape).rows;
    TensorStatistics statistics;
    for (index_t first = 0; first < shape.rows; first += rows) {
      options_.execution.throw_if_stopped();
      const MatrixView<float> w(panel_.data(), std::min(rows, shape.rows - first), shape.cols);
      read_panel(tensor, first, w, options_.execution);
      statistics.add(w, options_.non_finite, options_.execution);
    }
    return codec->fitted_to(statistics);
  }

  void compress_matrix(const Tensor& tensor, const Codec& codec, TensorReport& entry) {
    const MatrixShape shape = matrix_shape(tensor.shape);
    const index_t rows = panel_of(tensor, codec, shape).rows;
    const std::vector<SectionSize> sections = codec.sections(shape);
    EncodeOptions encoding;
    encoding.non_finite = options_.non_finite;
    encoding.execution = options_.execution.quiet();
    const TensorCalibration calibration = calibration_of(tensor.name, codec);
    calibration.give(encoding);

    std::vector<std::byte*> dst;
    index_t used = 0;
    for (const SectionSize& size : sections) {
      dst.push_back(encoded_.data() + used);
      used += section_room(codec, shape, size, rows);
    }
    std::vector<Sha256> hashes(sections.size());
    for (index_t first = 0; first < shape.rows; first += rows) {
      const index_t count = std::min(rows, shape.rows - first);
      const MatrixView<float> w(panel_.data(), count, shape.cols);
      read_panel(tensor, first, w, encoding.execution);
      encoding.importance =
          calibration.importance.rows() > 1 ? calibration.importance.rows_from(first, count) : calibration.importance;
      codec.encode(w, first, dst, encoding);
      const auto bytes_of = [&](std::size_t s) {
        const index_t bytes = panel_bytes(codec, shape, sections[s], count);
        return std::span<const std::byte>(dst[s], static_cast<std::size_t>(bytes));
      };
      for (std::size_t s = 0; s < sections.size(); ++s) {
        if (!sections[s].per_row && first > 0) continue;  // each panel has it whole
        const std::uint64_t offset = static_cast<std::uint64_t>(sections[s].bytes / shape.rows * first);
        hashes[s].update(bytes_of(s));
        writer_->write(stored_name(tensor, sections[s]), offset, bytes_of(s));
      }
      if (options_.measure) {
        std::vector<Section> views;
        for (std::size_t s = 0; s < sections.size(); ++s)
          views.push_back({sections[s].name, SharedBytes(bytes_of(s), nullptr)});
        measure(codec.open({count, shape.cols}, views, PackPolicy::none()), w, first, entry.error);
      }
      advance(tensor.data.bytes.size() / static_cast<std::size_t>(shape.rows) * static_cast<std::size_t>(count));
    }
    for (std::size_t s = 0; s < sections.size(); ++s) set_hash(stored_name(tensor, sections[s]), hashes[s]);
  }

  static void read_panel(const Tensor& tensor, index_t first, MatrixView<float> w, const Execution& how) {
    parallel_for(how, ceil_div(w.rows(), kRowsPerTask), [&](index_t task) {
      const index_t row = task * kRowsPerTask;
      const index_t count = std::min(kRowsPerTask, w.rows() - row);
      read_rows_f32(tensor, first + row, w.rows_from(row, count), Pages::keep);
    });
    release_rows(tensor, first, w.rows());
  }

  /// Decodes the panel again and adds its error: one parallel region, one buffer of a few rows per task, merged in
  /// order.
  void measure(const AnyLinear& op, MatrixView<const float> w, index_t first, ErrorStats& error) {
    const index_t step = std::clamp<index_t>(kMeasureBytes / (w.cols() * index_t{sizeof(float)}), 1, w.rows());
    std::vector<ErrorStats> parts(static_cast<std::size_t>(ceil_div(w.rows(), step)));
    Execution alone;
    alone.threads = 1;
    parallel_for(options_.execution, static_cast<index_t>(parts.size()), [&](index_t task) {
      const index_t row = task * step;
      std::vector<index_t> rows(static_cast<std::size_t>(std::min(step, w.rows() - row)));
      std::iota(rows.begin(), rows.end(), row);
      const auto count = static_cast<index_t>(rows.size());
      auto decoded = AlignedBuffer<float>::uninitialized(checked_mul(count, w.cols(), "compress_model"));
      const MatrixView<float> y(decoded.data(), count, w.cols());
      op.decode_rows(rows, y);
      parts[static_cast<std::size_t>(task)].add(w.rows_from(row, count), y, first + row, alone);
    });
    for (const ErrorStats& part : parts) error.merge(part);
  }

  const TensorStore& store_;
  const CompressOptions& options_;
  bool gguf_;  // what is written
  std::vector<Tensor> tensors_;
  std::vector<std::shared_ptr<const Codec>> codecs_;  // null: kept
  std::optional<ModelWriter> writer_;
  Metadata metadata_;
  AlignedBuffer<float> panel_;        // rows of the source
  AlignedBuffer<std::byte> encoded_;  // their sections, one after another
  CompressReport report_;
  std::uint64_t total_bytes_ = 0;
  std::uint64_t done_bytes_ = 0;
};

}  // namespace

CompressReport compress_model(const std::filesystem::path& in, const Recipe& recipe, const std::filesystem::path& out,
                              const CompressOptions& options, const Registry& registry) {
  if (options.panel_budget <= 0)
    throw ValueError(
        fmt::format("compress_model: panel_budget is {}, a positive number of bytes needed", options.panel_budget));
  if (has_auto(recipe)) {
    AutoPlanOptions plan;
    plan.calibration = options.calibration;
    plan.execution = options.execution.quiet();
    return compress_model(in, resolve_auto(in, recipe, plan, registry), out, options, registry);
  }
  const TensorStore store = TensorStore::open(in);
  return Compressor(store, recipe, out, options, registry).run();
}

std::uint64_t CompressReport::source_bytes() const noexcept {
  std::uint64_t sum = 0;
  for (const TensorReport& t : tensors) sum += t.source_bytes;
  return sum;
}

std::uint64_t CompressReport::stored_bytes() const noexcept {
  std::uint64_t sum = 0;
  for (const TensorReport& t : tensors) sum += t.stored_bytes;
  return sum;
}

double CompressReport::bits_per_weight() const noexcept {
  double bits = 0, weights = 0;
  for (const TensorReport& t : tensors) {
    if (t.scheme.empty()) continue;
    bits += 8.0 * static_cast<double>(t.stored_bytes);
    weights += static_cast<double>(t.shape[0]) * static_cast<double>(t.shape[1]);
  }
  return weights == 0 ? 0.0 : bits / weights;
}

ErrorStats CompressReport::error() const {
  ErrorStats all;
  for (const TensorReport& t : tensors) all.merge(t.error);
  return all;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
