// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The loops behind the `limit/…` rows. Each file is compiled with its own instruction flags and must only be called
/// where `blockpack::runs_here` says so.

#include <cstddef>
#include <cstdint>

namespace bench {

/// Reads every byte once, from 1, 2 or 4 places in turn, and returns a sum so that nothing is dropped. `bytes` is a
/// multiple of 4096.
std::uint64_t read_generic(const void* data, std::size_t bytes, int streams) noexcept;
std::uint64_t read_avx2(const void* data, std::size_t bytes, int streams) noexcept;
std::uint64_t read_avx512(const void* data, std::size_t bytes, int streams) noexcept;

/// `steps` rounds of multiply-adds on registers; returns the number of operations (a multiply and an add are two).
double fma_avx2_f32(std::int64_t steps) noexcept;
double fma_avx512_f32(std::int64_t steps) noexcept;
double dots_avx512_bf16(std::int64_t steps) noexcept;
double tiles_amx_bf16(std::int64_t steps) noexcept;
double tiles_amx_int8(std::int64_t steps) noexcept;

}  // namespace bench
