// SPDX-License-Identifier: Apache-2.0
#include "own/scalar_form.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <stdexcept>
#include <string_view>

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

}  // namespace

ScalarForm scalar_form(const std::string& scheme, const Weights& w, index_t rows) {
  const MatrixView<const float> all(w.data, w.n, w.k), part(w.data, rows, w.k);
  if (scheme == "ptq1.61") return ptq161_form(all);
  const std::string rotated = "hadamard-b";
  if (scheme.rfind(rotated, 0) == 0) {
    const std::size_t dash = scheme.find('-', rotated.size());
    const blockpack::BlockHadamard rotation(w.k, std::stol(scheme.substr(rotated.size())));
    std::vector<float> values(w.data, w.data + w.n * w.k);
    rotation.rotate_rows(MatrixView<float>(values.data(), w.n, w.k));
    ScalarForm form = scalar_form(scheme.substr(dash + 1), {values.data(), w.n, w.k}, rows);
    rotation.rotate_rows(MatrixView<float>(form.values.data(), rows, w.k));
    return form;
  }
  std::vector<std::string_view> fields;
  for (std::size_t at = 0; at < scheme.size();) {
    const std::size_t end = std::min(scheme.find('-', at), scheme.size());
    fields.push_back(std::string_view(scheme).substr(at, end - at));
    at = end + 1;
  }
  const auto form = [&](const auto& format) { return form_of(blockpack::fitted(format, all, {}), part); };
  if (scheme == "f32") return form(blockpack::DenseFormat<float>{});
  if (scheme == "bf16") return form(blockpack::DenseFormat<blockpack::bf16>{});
  if (scheme == "fp16") return form(blockpack::DenseFormat<blockpack::fp16>{});
  std::optional<ScalarForm> found;
  const auto try_format = [&]<class Format>() {
    if (found) return;
    if (const auto format = Format::from_fields(fields[0], std::span(fields).subspan(1))) found = form(*format);
  };
  using namespace blockpack;
  try_format.operator()<Bfp>();
  try_format.operator()<Mx>();
  try_format.operator()<GroupInt>();
  try_format.operator()<Nvfp4>();
  try_format.operator()<Nf4>();
  try_format.operator()<Ternary>();
  try_format.operator()<StatsQ>();
  try_format.operator()<Ggml>();
  if (!found) throw std::runtime_error("no scalar template encodes " + scheme);
  return *found;
}

}  // namespace bench
