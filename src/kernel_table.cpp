// SPDX-License-Identifier: Apache-2.0
/// Fills the kernel tables. To add a kernel file: declare its installer in the family's header and name it in its step.

#include <array>
#include <string>

#include "cpu.hpp"
#include "dispatch.hpp"
#include "kernels/table.hpp"

namespace blockpack::kernels {
namespace {

/// One step of filling a table: what a level, or a level together with a feature, installs.
struct Step {
  Isa level;         ///< taken by tables of this level and of stronger ones
  Features feature;  ///< and only when these bits are in use
  void (*install)(KernelTable& t, Features features);
};

// Weakest first within an architecture.
constexpr Step kSteps[] = {
    {Isa::scalar, 0,
     [](KernelTable& t, Features f) {
       install_dense_scalar(t.dense, f);
       install_block_sparse_scalar(t.block_sparse, f);
       install_bitmask_scalar(t.block_sparse, f);
       install_strips_scalar(t.block_sparse, f);
       install_codes_scalar(t.codes, f);
       install_two_four_scalar(t.two_four, f);
       install_two_four_codes_scalar(t.two_four, f);
       install_couple_scalar(t.couple, f);
       install_convert_scalar(t.convert, f);
       install_histogram_scalar(t.histogram, f);
       install_quant_scalar(t.quant, f);
       install_ggml_scalar(t.ggml, f);
       install_select_scalar(t.select, f);
     }},
#if defined(BLOCKPACK_WITH_AVX2)
    {Isa::avx2, 0,
     [](KernelTable& t, Features f) {
       install_dense_avx2(t.dense, f);
       install_block_sparse_avx2(t.block_sparse, f);
       install_bitmask_avx2(t.block_sparse, f);
       install_codes_avx2(t.codes, f);
       install_two_four_avx2(t.two_four, f);
       install_two_four_codes_avx2(t.two_four, f);
       install_couple_avx2(t.couple, f);
       install_convert_avx2(t.convert, f);
       install_histogram_avx2(t.histogram, f);
       install_quant_avx2(t.quant, f);
       install_ggml_avx2(t.ggml, f);
       install_select_avx2(t.select, f);
     }},
#endif
#if defined(BLOCKPACK_WITH_AVX512)
    {Isa::avx512, 0,
     [](KernelTable& t, Features f) {
       install_dense_avx512(t.dense, f);
       install_block_sparse_avx512(t.block_sparse, f);
       install_bitmask_avx512(t.block_sparse, f);
       install_codes_avx512(t.codes, f);
       install_two_four_avx512(t.two_four, f);
       install_two_four_codes_avx512(t.two_four, f);
       install_couple_avx512(t.couple, f);
       install_convert_avx512(t.convert, f);
       install_histogram_avx512(t.histogram, f);
       install_quant_avx512(t.quant, f);
       install_ggml_avx512(t.ggml, f);
       install_select_avx512(t.select, f);
     }},
#endif
#if defined(BLOCKPACK_WITH_AVX512VNNI)
    {Isa::avx512vnni, 0,
     [](KernelTable& t, Features f) {
       install_codes_avx512vnni(t.codes, f);
       install_two_four_codes_avx512vnni(t.two_four, f);
       install_int8_avx512vnni(t.int8, f);
       install_block_sparse_avx512vnni(t.block_sparse, f);
       install_strips_avx512vnni(t.block_sparse, f);
     }},
#endif
#if defined(BLOCKPACK_WITH_AVX512BF16)
    {Isa::avx512vnni, kAvx512Bf16,
     [](KernelTable& t, Features f) {
       install_dense_avx512bf16(t.dense, f);
       install_block_sparse_avx512bf16(t.block_sparse, f);
       install_codes_avx512bf16(t.codes, f);
       install_two_four_avx512bf16(t.two_four, f);
     }},
#endif
#if defined(BLOCKPACK_WITH_AVX512VBMI2)
    {Isa::avx512vnni, kAvx512Bf16 | kVbmi2,
     [](KernelTable& t, Features f) { install_bitmask_avx512vbmi2(t.block_sparse, f); }},
#endif
#if defined(BLOCKPACK_WITH_AMX)
    {Isa::amx, 0,
     [](KernelTable& t, Features f) {
       install_dense_amx(t.dense, f);
       install_int8_amx(t.int8, f);
     }},
#endif
#if defined(BLOCKPACK_WITH_NEON)
    {Isa::neon, 0,
     [](KernelTable& t, Features f) {
       install_dense_neon(t.dense, f);
       install_block_sparse_neon(t.block_sparse, f);
       install_bitmask_neon(t.block_sparse, f);
       install_codes_neon(t.codes, f);
       install_two_four_neon(t.two_four, f);
       install_two_four_codes_neon(t.two_four, f);
       install_couple_neon(t.couple, f);
       install_convert_neon(t.convert, f);
       install_histogram_neon(t.histogram, f);
       install_quant_neon(t.quant, f);
       install_ggml_neon(t.ggml, f);
     }},
#endif
#if defined(BLOCKPACK_WITH_NEON_DOT)
    {Isa::neon_dot, 0,
     [](KernelTable& t, Features f) {
       install_codes_neon_dot(t.codes, f);
       install_two_four_codes_neon_dot(t.two_four, f);
     }},
#endif
#if defined(BLOCKPACK_WITH_NEON_BF16)
    {Isa::neon_dot, kArmBf16, [](KernelTable& t, Features f) { install_dense_neon_bf16(t.dense, f); }},
#endif
};

}  // namespace

KernelTable make_table(Isa level, Features features) {
  if (!runs_here(level)) throw UnsupportedError("level " + std::string(to_string(level)) + " does not run here");
  KernelTable table;
  table.level = level;
  table.features = features & this_cpu().features;
  for (const Step& step : kSteps)
    if (includes(level, step.level) && (step.feature & table.features) == step.feature)
      step.install(table, table.features);
  return table;
}

const KernelTable& table_for(Isa level) {
  static const std::array<KernelTable, kAllIsas.size()> tables = [] {
    std::array<KernelTable, kAllIsas.size()> built{};
    for (const Isa isa : kAllIsas)
      if (runs_here(isa)) built[static_cast<std::size_t>(isa)] = make_table(isa, features_in_use());
    return built;
  }();
  if (!runs_here(level)) throw UnsupportedError("level " + std::string(to_string(level)) + " does not run here");
  return tables[static_cast<std::size_t>(level)];
}

const KernelTable& active() { return table_for(active_isa()); }

}  // namespace blockpack::kernels
