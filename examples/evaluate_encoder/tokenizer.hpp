// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A unigram tokenizer: cuts a text into the pieces of a vocabulary with the largest sum of scores (Viterbi). The rules
/// are those of the Universal Sentence Encoder Lite as TensorFlow.js users run it, its odd ones included.

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "blockpack/core/error.hpp"
#include "blockpack/core/types.hpp"

namespace example {

using blockpack::index_t;

class UnigramTokenizer {
 public:
  static constexpr index_t kUnknown = 0;   ///< what no piece matches
  static constexpr index_t kReserved = 6;  ///< the first ids are never matched

  struct Piece {
    std::string text;  ///< UTF-8; U+2581 stands for a space
    double score = 0;
  };

  /// The place of a piece is its id.
  explicit UnigramTokenizer(const std::vector<Piece>& pieces) {
    for (const Piece& piece : pieces) {
      const auto length = static_cast<std::size_t>(std::count_if(piece.text.begin(), piece.text.end(), starts_point));
      longest_ = std::max(longest_, length);
      if (static_cast<index_t>(scores_.size()) >= kReserved)
        ids_.insert_or_assign(piece.text, static_cast<index_t>(scores_.size()));
      scores_.push_back(piece.score);
      lengths_.push_back(length);
    }
  }

  /// Reads lines of `piece <tab> score`; the line is the id. blockpack::Error for a missing file, FormatError that
  /// names the line for anything else.
  static UnigramTokenizer load(const std::filesystem::path& path) {
    std::ifstream file(path);
    if (!file) throw blockpack::Error("no vocabulary at '" + path.string() + "'");
    std::vector<Piece> pieces;
    for (std::string line; std::getline(file, line);) {
      const std::size_t tab = line.find('\t');
      Piece piece{line.substr(0, tab)};
      const char* end = line.data() + line.size();
      const std::size_t score_at = tab == std::string::npos ? line.size() : tab + 1;
      const auto parsed = std::from_chars(line.data() + score_at, end, piece.score);
      if (piece.text.empty() || tab == std::string::npos || parsed.ec != std::errc() || parsed.ptr != end)
        throw blockpack::FormatError("'" + path.string() + "', line " + std::to_string(pieces.size() + 1) +
                                     ": no piece and score with a tab between");
      pieces.push_back(std::move(piece));
    }
    if (static_cast<index_t>(pieces.size()) <= kReserved)
      throw blockpack::FormatError("'" + path.string() + "' has " + std::to_string(pieces.size()) +
                                   " pieces, more than the " + std::to_string(kReserved) + " reserved ones needed");
    return UnigramTokenizer(pieces);
  }

  /// The ids of a text; none for an empty one. The text is UTF-8 in normalization form NFKC, as ASCII is. Where no
  /// piece starts, one code point becomes kUnknown; runs of kUnknown become one.
  std::vector<index_t> encode(std::string_view text) const {
    if (text.empty()) return {};
    std::string marked = kSpace;
    for (const char c : text) c == ' ' ? marked += kSpace : marked += c;
    std::vector<std::size_t> offsets;  // of the code points, then the size
    for (std::size_t i = 0; i < marked.size(); ++i)
      if (starts_point(marked[i])) offsets.push_back(i);
    offsets.push_back(marked.size());
    const std::size_t n = offsets.size() - 1;
    std::vector<double> best(n + 1, 0.0);        // sum of the scores of the best cut that ends here
    std::vector<index_t> last(n + 1, kUnknown);  // its last piece
    for (std::size_t start = 0; start < n; ++start) {
      // A sum of 0 counts as none yet, so that a later cut replaces it whatever its score: the source does that.
      const auto offer = [&](std::size_t end, index_t id, double score) {
        if (best[end] != 0 && best[start] + score < best[end]) return;
        best[end] = best[start] + score;
        last[end] = id;
      };
      bool matched = false;
      for (std::size_t end = start + 1; end <= std::min(n, start + longest_); ++end) {
        const auto found = ids_.find(std::string_view(marked).substr(offsets[start], offsets[end] - offsets[start]));
        if (found == ids_.end()) continue;
        matched = true;
        offer(end, found->second, scores_[static_cast<std::size_t>(found->second)]);
      }
      if (!matched) offer(start + 1, kUnknown, 0.0);
    }
    std::vector<index_t> ids;
    for (std::size_t end = n; end > 0;) {
      const index_t id = last[end];
      if (id != kUnknown || ids.empty() || ids.back() != kUnknown) ids.push_back(id);
      end -= id == kUnknown ? 1 : lengths_[static_cast<std::size_t>(id)];
    }
    std::reverse(ids.begin(), ids.end());
    return ids;
  }

 private:
  static constexpr const char* kSpace = "\xE2\x96\x81";
  /// Whether a byte of UTF-8 is the first of its code point.
  static bool starts_point(char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }

  std::map<std::string, index_t, std::less<>> ids_;
  std::vector<double> scores_;
  std::vector<std::size_t> lengths_;  // in code points
  std::size_t longest_ = 0;
};

}  // namespace example
