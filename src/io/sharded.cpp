// SPDX-License-Identifier: Apache-2.0
#include "blockpack/io/sharded.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <optional>
#include <system_error>
#include <utility>

#include "blockpack/io/atomic_file.hpp"
#include "blockpack/io/checked.hpp"
#include "blockpack/io/mapped_file.hpp"
#include "io/index_json.hpp"
#include "io/strict_json.hpp"
#include "io/syscalls.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace fs = std::filesystem;
using io_detail::printable;

namespace {

constexpr const char* kStore = "TensorStore";
constexpr const char* kWriter = "ShardedWriter";
constexpr std::string_view kSingleName = "model.safetensors";
constexpr std::string_view kIndexName = "model.safetensors.index.json";

/// `model-00001-of-00003.safetensors`: not a model by itself.
bool is_shard_name(std::string_view name) {
  constexpr std::string_view kTail = "-00001-of-00003.safetensors";
  if (name.size() < kTail.size()) return false;
  name.remove_prefix(size_sub(name.size(), kTail.size(), kStore));
  return std::equal(name.begin(), name.end(), kTail.begin(), kTail.end(), [](char c, char pattern) {
    const bool digit = pattern >= '0' && pattern <= '9';
    return digit ? c >= '0' && c <= '9' : c == pattern;
  });
}

fs::path model_in_folder(const fs::path& folder) {
  std::vector<fs::path> indexes, singles;
  int error = 0;
  for (const std::string& name : io_detail::list_folder(folder, error)) {
    if (name.starts_with('.')) continue;
    if (name.ends_with(".safetensors.index.json")) indexes.push_back(folder / name);
    if (name.ends_with(".safetensors") && !is_shard_name(name)) singles.push_back(folder / name);
  }
  if (error != 0) io_detail::throw_io(kStore, "list", folder, error);
  const auto named = [](const std::vector<fs::path>& paths, std::string_view name) {
    return std::find_if(paths.begin(), paths.end(), [&](const fs::path& p) { return p.filename() == name; });
  };
  if (const auto at = named(singles, kSingleName); at != singles.end()) return *at;
  if (const auto at = named(indexes, kIndexName); at != indexes.end()) return *at;
  if (indexes.size() == 1) return indexes.front();
  if (indexes.empty() && singles.size() == 1) return singles.front();
  const bool none = indexes.empty() && singles.empty();
  throw IoError(
      none ? fmt::format("{}: '{}' holds no .safetensors file and no .safetensors.index.json", kStore, folder.string())
           : fmt::format("{}: '{}' holds more than one model; name the file or index", kStore, folder.string()),
      none ? ENOENT : EINVAL);
}

}  // namespace

struct TensorStore::Impl {
  struct Shard {
    fs::path path;
    std::vector<std::size_t> tensors;  // indices into names, all in this file
    mutable std::mutex mutex;          // of `file`, until it is set
    mutable std::optional<SafetensorsFile> file;
  };

  ReadLimits limits;
  std::vector<std::string> names;     // ascending
  std::vector<std::size_t> shard_of;  // names[i] lies in shards[shard_of[i]]
  std::vector<std::unique_ptr<Shard>> shards;
  std::vector<fs::path> files;
  Metadata metadata;
  std::optional<GgufFile> gguf;  // instead of shards

  std::optional<std::size_t> find(std::string_view name) const noexcept {
    const auto at = std::lower_bound(names.begin(), names.end(), name,
                                     [](const std::string& a, std::string_view b) { return a < b; });
    if (at == names.end() || *at != name) return std::nullopt;
    return static_cast<std::size_t>(std::distance(names.begin(), at));
  }

  /// The parsed file; an exception leaves it to the next call to try again.
  const SafetensorsFile& file_of(const Shard& shard) const {
    const std::lock_guard lock(shard.mutex);
    if (shard.file) return *shard.file;
    SafetensorsFile file = SafetensorsFile::open(shard.path, limits);
    for (const std::size_t i : shard.tensors)
      if (file.find(names[i]) == nullptr)
        throw FormatError(fmt::format("{}: '{}' lacks tensor '{}', which the index says it holds", kStore,
                                      shard.path.string(), printable(names[i])),
                          "MissingTensor", -1, names[i]);
    return shard.file.emplace(std::move(file));
  }

  void add_single(const fs::path& path) {
    shards.push_back(std::make_unique<Shard>());
    Shard& shard = *shards.back();
    shard.path = path;
    files.push_back(path);
    const SafetensorsFile& file = file_of(shard);
    metadata = file.metadata();
    names.reserve(file.tensors().size());
    for (const Tensor& tensor : file.tensors()) names.push_back(tensor.name);
    std::sort(names.begin(), names.end());
    shard_of.assign(names.size(), 0);
  }

  void add_gguf(const fs::path& path) {
    gguf = GgufFile::open(path, limits);
    files.push_back(path);
    for (const GgufEntry& entry : gguf->metadata())
      if (const auto* text = std::get_if<std::string>(&entry.value))
        if (io_detail::valid_utf8_prefix(*text) == text->size()) metadata.emplace(entry.key, *text);
    for (const GgufTensor& tensor : gguf->tensors()) names.push_back(tensor.name);
    std::sort(names.begin(), names.end());
  }

  void add_index(const fs::path& path) {
    const std::string text = read_file(path, limits.max_header_bytes);
    io_detail::ShardIndex index =
        io_detail::parse_shard_index(text, limits, fmt::format("{} '{}'", kStore, path.string()));
    metadata = std::move(index.metadata);
    std::sort(index.entries.begin(), index.entries.end());
    std::vector<std::string> shard_names;
    shard_names.reserve(index.entries.size());
    for (const auto& entry : index.entries) shard_names.push_back(entry.second);
    std::sort(shard_names.begin(), shard_names.end());
    shard_names.erase(std::unique(shard_names.begin(), shard_names.end()), shard_names.end());
    for (const std::string& name : shard_names) {
      shards.push_back(std::make_unique<Shard>());
      shards.back()->path = path.parent_path() / name;
      files.push_back(shards.back()->path);
    }
    for (auto& [name, shard] : index.entries) {
      const auto at = std::lower_bound(shard_names.begin(), shard_names.end(), shard);
      shard_of.push_back(static_cast<std::size_t>(std::distance(shard_names.begin(), at)));
      shards[shard_of.back()]->tensors.push_back(names.size());
      names.push_back(std::move(name));
    }
  }
};

TensorStore TensorStore::open(const fs::path& path, const ReadLimits& limits) {
  std::error_code error;
  const fs::path model = fs::is_directory(path, error) ? model_in_folder(path) : path;
  auto impl = std::make_shared<Impl>();
  impl->limits = limits;
  if (model.extension() == ".json") {
    impl->add_index(model);
  } else if (model.extension() == ".gguf") {
    impl->add_gguf(model);
  } else {
    impl->add_single(model);
  }
  TensorStore store;
  store.impl_ = std::move(impl);
  return store;
}

const std::vector<std::string>& TensorStore::names() const noexcept { return impl_->names; }
bool TensorStore::contains(std::string_view name) const noexcept { return impl_->find(name).has_value(); }
const Metadata& TensorStore::metadata() const noexcept { return impl_->metadata; }
const std::vector<fs::path>& TensorStore::files() const noexcept { return impl_->files; }
const GgufFile* TensorStore::gguf() const noexcept { return impl_->gguf ? &*impl_->gguf : nullptr; }

Tensor TensorStore::tensor(std::string_view name) const {
  const auto i = impl_->find(name);
  if (!i)
    throw ValueError(
        fmt::format("{}::tensor: there is no tensor '{}' among {}", kStore, printable(name), impl_->names.size()));
  if (impl_->gguf) return impl_->gguf->tensor(name).stored();
  return impl_->file_of(*impl_->shards[impl_->shard_of[*i]]).tensor(name);
}

struct ShardedWriter::Impl {
  fs::path folder;
  std::vector<std::pair<std::string, std::size_t>> shard_of;  // tensor -> shard, ascending by name
  std::vector<std::string> shard_names;
  std::vector<SafetensorsWriter> shards;
  Metadata metadata;
  std::uint64_t total_bytes = 0;
};

ShardedWriter::ShardedWriter(const fs::path& folder, std::vector<TensorSpec> tensors, Metadata metadata,
                             std::uint64_t max_shard_bytes)
    : impl_(std::make_unique<Impl>()) {
  Impl& impl = *impl_;
  impl.folder = folder;
  impl.metadata = std::move(metadata);
  std::vector<std::vector<TensorSpec>> parts(1);
  std::uint64_t part_bytes = 0;
  for (TensorSpec& spec : tensors) {
    const std::uint64_t bytes = tensor_bytes(spec);
    impl.total_bytes = size_add(impl.total_bytes, bytes, kWriter);
    const bool fits = size_add(part_bytes, bytes, kWriter) <= max_shard_bytes;
    if (!fits && !parts.back().empty()) {
      parts.emplace_back();
      part_bytes = 0;
    }
    part_bytes = size_add(part_bytes, bytes, kWriter);
    impl.shard_of.emplace_back(spec.name, size_sub(parts.size(), 1, kWriter));
    parts.back().push_back(std::move(spec));
  }
  std::sort(impl.shard_of.begin(), impl.shard_of.end());
  const auto twice = std::adjacent_find(impl.shard_of.begin(), impl.shard_of.end(),
                                        [](const auto& a, const auto& b) { return a.first == b.first; });
  if (twice != impl.shard_of.end())
    throw ValueError(fmt::format("{}: two tensors are called '{}'", kWriter, printable(twice->first)));

  std::error_code error;
  fs::create_directories(folder, error);
  if (error) io_detail::throw_io(kWriter, "create the folder", folder, error.value());
  for (const std::string_view name : {kIndexName, kSingleName}) {
    const bool replaceable = name == kSingleName && parts.size() == 1;
    if (!replaceable && fs::exists(folder / name, error))
      throw IoError(fmt::format("{}: '{}' already holds a model; remove {} or name another folder", kWriter,
                                folder.string(), name),
                    EEXIST);
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    impl.shard_names.push_back(
        parts.size() == 1 ? std::string(kSingleName)
                          : fmt::format("model-{:05}-of-{:05}.safetensors", size_add(i, 1, kWriter), parts.size()));
    impl.shards.emplace_back(folder / impl.shard_names.back(), std::move(parts[i]), impl.metadata);
  }
}

ShardedWriter::ShardedWriter(ShardedWriter&&) noexcept = default;
ShardedWriter::~ShardedWriter() = default;

void ShardedWriter::write(std::string_view tensor, std::uint64_t byte_offset, std::span<const std::byte> bytes) {
  const auto& index = impl_->shard_of;
  const auto at = std::lower_bound(index.begin(), index.end(), tensor,
                                   [](const auto& entry, std::string_view name) { return entry.first < name; });
  if (at == index.end() || at->first != tensor)
    throw ValueError(
        fmt::format("{}::write: there is no tensor '{}' among those declared", kWriter, printable(tensor)));
  impl_->shards[at->second].write(tensor, byte_offset, bytes);
}

void ShardedWriter::commit() { commit(impl_->metadata); }

void ShardedWriter::commit(const Metadata& metadata) {
  for (SafetensorsWriter& shard : impl_->shards) shard.commit(metadata);
  if (impl_->shards.size() == 1) return;
  std::string text = "{\"metadata\":{";
  for (const auto& [key, value] : metadata) {
    if (key == "total_size") continue;
    text.append(io_detail::json_quoted(key)).append(":").append(io_detail::json_quoted(value)).append(",");
  }
  fmt::format_to(std::back_inserter(text), "\"total_size\":{}}},\n\"weight_map\":{{", impl_->total_bytes);
  const char* separator = "\n";
  for (const auto& [name, shard] : impl_->shard_of) {
    text.append(separator).append(io_detail::json_quoted(name)).append(":");
    text.append(io_detail::json_quoted(impl_->shard_names[shard]));
    separator = ",\n";
  }
  text.append("}}\n");
  write_file_atomically(impl_->folder / kIndexName, text);
}

std::size_t ShardedWriter::shard_count() const noexcept { return impl_->shards.size(); }

}  // namespace blockpack::inline BLOCKPACK_ABI
