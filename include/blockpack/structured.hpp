// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything of the concept `structured`: block-diagonal, low-rank, Monarch, BLAST and block low-rank layers,
/// adapters, and, where their headers are found, the fits (Eigen) and the spectral mixer (xtensor). docs/structured.md.

#include "blockpack/structured/adapter.hpp"
#include "blockpack/structured/adapter_bank.hpp"
#include "blockpack/structured/blast.hpp"
#include "blockpack/structured/block_diagonal.hpp"
#include "blockpack/structured/block_factors.hpp"
#include "blockpack/structured/block_low_rank.hpp"
#include "blockpack/structured/bone.hpp"
#include "blockpack/structured/factor_format.hpp"
#include "blockpack/structured/lora.hpp"
#include "blockpack/structured/low_rank.hpp"
#include "blockpack/structured/monarch.hpp"
#include "blockpack/structured/output_order.hpp"
#include "blockpack/structured/roofline.hpp"
#if __has_include(<Eigen/Core>)
#include "blockpack/structured/blast_fit.hpp"
#include "blockpack/structured/block_low_rank_fit.hpp"
#include "blockpack/structured/low_rank_fit.hpp"
#include "blockpack/structured/monarch_fit.hpp"
#endif
#if __has_include( \
    <unsupported/Eigen/FFT>) && (__has_include(<xtensor/xtensor.hpp>) || __has_include(<xtensor/containers/xtensor.hpp>))
#include "blockpack/structured/spectral_mixer.hpp"
#endif
