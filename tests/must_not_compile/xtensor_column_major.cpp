// SPDX-License-Identifier: Apache-2.0
// A column-major tensor is not copied behind the caller's back; the message says what to write instead.
// message: transposed_view\(\)
#include "blockpack/core/xtensor.hpp"

#if __has_include(<xtensor/containers/xtensor.hpp>)
#include <xtensor/containers/xtensor.hpp>
#else
#include <xtensor/xtensor.hpp>
#endif

#if defined(WRONG)
inline constexpr auto kLayout = xt::layout_type::column_major;
#else
inline constexpr auto kLayout = xt::layout_type::row_major;
#endif
auto rows(const xt::xtensor<float, 2, kLayout>& a) { return blockpack::view(a); }
