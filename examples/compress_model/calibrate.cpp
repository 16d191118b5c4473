// SPDX-License-Identifier: Apache-2.0
// `compress_model calibrate`: statistics of every matrix of a byte decoder over calibration text, as a folder of npy
// files that `compress --calibration` reads.

#include "decoder/calibration.hpp"

#include <fmt/format.h>

#include <filesystem>

#include "compress_model/commands.hpp"

namespace example {

int calibrate_model(const CalibrateArguments& arguments, const blockpack::Execution& how) {
  const std::filesystem::path data = arguments.data;
  const DecoderConfig config = DecoderConfig::load(data / "config.json");
  const std::filesystem::path text =
      arguments.text.empty() ? data / "calib.bin" : std::filesystem::path(arguments.text);
  const CalibrationText windows = CalibrationText::load(text, config, arguments.set);
  const GradientDecoder decoder(ByteDecoder(CompressedModel::open(arguments.model), config));
  std::filesystem::create_directories(arguments.out);
  const blockpack::CalibrationFolder folder(arguments.out);
  const std::vector<MatrixCalibration> statistics = calibrate(decoder, windows, how);
  const std::vector<DecoderMatrix> matrices = config.matrices();
  fmt::print("{:<32} {:>9} {:>14} {:>14}\n", "tensor", "shape", "mean x^2", "mean g^2");
  for (std::size_t m = 0; m < matrices.size(); ++m) {
    const MatrixCalibration& c = statistics[m];
    const blockpack::TensorCalibration tensor = c.tensor();
    folder.write(matrices[m].name, *c.gram, tensor.importance, tensor.inputs);
    double fisher = 0;
    for (index_t i = 0; i < tensor.importance.rows(); ++i)
      for (const float v : tensor.importance.row(i)) fisher += v;
    const auto weights = static_cast<double>(tensor.importance.rows() * tensor.importance.cols());
    fmt::print("{:<32} {:>9} {:>14.6g} {:>14.6g}\n", matrices[m].name, to_string(matrices[m].shape),
               c.gram->mean_diagonal() / static_cast<double>(c.gram->rows()), fisher / weights);
  }
  fmt::print("{} windows of {} bytes (set {}): {}\n", windows.windows(), config.max_positions, arguments.set,
             std::filesystem::absolute(arguments.out).string());
  return 0;
}

}  // namespace example
