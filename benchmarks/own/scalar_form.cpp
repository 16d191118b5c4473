// SPDX-License-Identifier: Apache-2.0
#include "own/scalar_form.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "blockpack/core/dense.hpp"
#include "blockpack/quant.hpp"

namespace bench {
namespace {

using blockpack::MatrixView;

template <class Format>
ScalarForm form_of(const Format& format, MatrixView<const float> w) {
  ScalarForm form;
  std::vector<std::byte*> dst;
  std::vector<const std::byte*> src;
  const auto specs = format.sections(w.cols());
  for (const blockpack::SectionSpec& s : specs) {
    form.sections.emplace_back(static_cast<std::size_t>(blockpack::section_bytes(s, w.rows(), "form_of")));
    dst.push_back(form.sections.back().data());
    src.push_back(dst.back());
  }
  blockpack::encode_rows(format, w, 0, dst, {});
  form.values.resize(static_cast<std::size_t>(w.rows() * w.cols()));
  for (index_t r = 0; r < w.rows(); ++r) {
    format.decode_row(src, w.cols(), 0, MatrixView<float>(form.values.data(), w.rows(), w.cols()).row(r));
    for (std::size_t s = 0; s < src.size(); ++s) src[s] += specs[s].bytes_per_row;
  }
  return form;
}

ScalarForm ptq161_form(MatrixView<const float> w) {
  std::vector<float> largest(static_cast<std::size_t>(w.cols()), 0.0f);
  for (index_t r = 0; r < w.rows(); ++r)
    for (std::size_t c = 0; c < largest.size(); ++c) largest[c] = std::max(largest[c], std::fabs(w.row(r)[c]));
  const auto op = blockpack::Ptq161Matrix::encode(w, largest);
  ScalarForm form;
  for (const blockpack::Section& s : op.sections())
    form.sections.emplace_back(s.data.bytes.begin(), s.data.bytes.end());
  form.values.resize(static_cast<std::size_t>(w.rows() * w.cols()));
  for (index_t r = 0; r < w.rows(); ++r)
    op.decode_rows(std::span(&r, 1), MatrixView<float>(form.values.data() + r * w.cols(), 1, w.cols()));
  return form;
}

/// Calls visit(format) for the row format of that name; false when there is none.
template <class Visit>
bool with_format(const std::string& scheme, const Visit& visit) {
  using namespace blockpack;
  std::vector<std::string_view> fields;
  for (std::size_t at = 0; at < scheme.size();) {
    const std::size_t end = std::min(scheme.find('-', at), scheme.size());
    fields.push_back(std::string_view(scheme).substr(at, end - at));
    at = end + 1;
  }
  const auto is = [&]<class Format>(const Format& format, const char* name) {
    if (scheme != name) return false;
    visit(format);
    return true;
  };
  const auto reads = [&]<class Format>(const Format&) {
    const auto format = Format::from_fields(fields[0], std::span(fields).subspan(1));
    if (format) visit(*format);
    return format.has_value();
  };
  return is(DenseFormat<float>{}, "f32") || is(DenseFormat<bf16>{}, "bf16") || is(DenseFormat<fp16>{}, "fp16") ||
         reads(Bfp{}) || reads(Mx{}) || reads(GroupInt{}) || reads(Nvfp4{}) || reads(Nf4{}) || reads(Ternary{}) ||
         reads(StatsQ{}) || reads(Ggml{});
}

/// The rotation in front of a format, if any: its block, and what stands behind it.
std::optional<std::pair<index_t, std::string>> rotation_of(const std::string& scheme) {
  const std::string name = "hadamard-b";
  if (scheme.rfind(name, 0) != 0) return std::nullopt;
  return std::pair(index_t{std::stol(scheme.substr(name.size()))}, scheme.substr(scheme.find('-', name.size()) + 1));
}

}  // namespace

bool has_scalar_form(const std::string& scheme) {
  const auto rotated = rotation_of(scheme);
  return scheme == "ptq1.61" || with_format(rotated ? rotated->second : scheme, [](const auto&) {});
}

ScalarForm scalar_form(const std::string& scheme, const Weights& w, index_t rows) {
  const MatrixView<const float> all(w.data, w.n, w.k);
  if (scheme == "ptq1.61") return ptq161_form(all);
  if (const auto rotated = rotation_of(scheme)) {
    const blockpack::BlockHadamard rotation(w.k, rotated->first);
    std::vector<float> values(w.data, w.data + w.n * w.k);
    rotation.rotate_rows(MatrixView<float>(values.data(), w.n, w.k));
    ScalarForm form = scalar_form(rotated->second, {values.data(), w.n, w.k}, rows);
    rotation.rotate_rows(MatrixView<float>(form.values.data(), rows, w.k));
    return form;
  }
  ScalarForm form;
  if (!with_format(scheme, [&](const auto& format) {
        form = form_of(blockpack::fitted(format, all, {}), all.rows_from(0, rows));
      }))
    throw std::runtime_error("no scalar template encodes " + scheme);
  return form;
}

}  // namespace bench
