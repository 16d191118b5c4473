// SPDX-License-Identifier: Apache-2.0
// Sizes from files are added, subtracted and multiplied by the checked functions of io/checked.hpp alone. This test
// reads the sources of io and fails on every other +, -, *, << and their assigning forms. A line may say why its
// operator concerns no size: `// arithmetic: a hash`.
#include <cctype>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "io/io_support.hpp"
#include "support/catch.hpp"

using namespace blockpack::test;
namespace fs = std::filesystem;

namespace {

/// The text with comments, string and character literals and preprocessor lines blanked; line breaks stay. Lines whose
/// comment starts with "arithmetic:" are blanked whole.
std::string code_only(std::string_view text) {
  std::string code(text.size(), ' ');
  std::size_t line_start = 0;
  const auto blank_line = [&](std::size_t end) {
    for (std::size_t i = line_start; i < end; ++i) code[i] = ' ';
  };
  for (std::size_t i = 0; i < text.size();) {
    const std::string_view rest = text.substr(i);
    if (text[i] == '\n') {
      code[i++] = '\n';
      line_start = i;
    } else if (rest.starts_with("//")) {
      const std::size_t end = std::min(text.find('\n', i), text.size());
      std::string_view comment = text.substr(i + 2, end - i - 2);
      comment.remove_prefix(std::min(comment.find_first_not_of(' '), comment.size()));
      if (comment.starts_with("arithmetic: ") && comment.size() > 12) blank_line(i);
      i = end;
    } else if (rest.starts_with("/*")) {
      const std::size_t end = text.find("*/", i + 2);
      for (const std::size_t stop = end == text.npos ? text.size() : end + 2; i < stop; ++i)
        if (text[i] == '\n') code[i] = '\n';
    } else if (text[i] == '#' && text.substr(line_start, i - line_start).find_first_not_of(' ') == text.npos) {
      i = std::min(text.find('\n', i), text.size());
    } else if (text[i] == '"' ||
               (text[i] == '\'' && (i == 0 || std::isalnum(static_cast<unsigned char>(text[i - 1])) == 0))) {
      const char quote = text[i++];
      code[i - 1] = 'q';  // an operand
      while (i < text.size() && text[i] != quote && text[i] != '\n') i += text[i] == '\\' ? 2u : 1u;
      ++i;
    } else {
      code[i] = text[i];
      ++i;
    }
  }
  return code;
}

/// Line numbers, from 1, of arithmetic that can overflow.
std::vector<int> unchecked_arithmetic(std::string_view text) {
  const std::string code = code_only(text);
  const auto at = [&](std::size_t i) { return i < code.size() ? code[i] : '\0'; };
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
  std::vector<int> lines;
  int line = 1;
  for (std::size_t i = 0; i < code.size(); ++i) {
    const char c = code[i];
    if (c == '\n') ++line;
    if (c != '+' && c != '-' && c != '*' && c != '<') continue;
    // What stands before the operator decides whether it has a left operand.
    std::size_t left = i;
    while (left > 0 && std::isspace(static_cast<unsigned char>(code[left - 1])) != 0) --left;
    const char before = left > 0 ? code[left - 1] : '\0';
    bool operand = is_word(before) || before == ')' || before == ']';
    if (is_word(before)) {
      std::size_t start = left;
      while (start > 0 && is_word(code[start - 1])) --start;
      const std::string_view word = std::string_view(code).substr(start, left - start);
      if (word == "return" || word == "operator" || word == "case") operand = false;
    }
    // After a brace only when there is space on both sides: `} *p = 1;` starts a statement, `T{1} << n` goes on.
    if (before == '}' && left != i)
      operand = std::isspace(static_cast<unsigned char>(at(i + (at(i + 1) == c ? 2 : 1)))) != 0;
    if (c == '<') {
      if (at(i + 1) == '<' && operand) lines.push_back(line);
      if (at(i + 1) == '<') ++i;
      continue;
    }
    if (at(i + 1) == c || (c == '-' && at(i + 1) == '>')) {  // ++ -- ** ->
      ++i;
      continue;
    }
    if (!operand) continue;
    // A pointer declarator has its star at the type, `T* p`, `T*>`, `T*)`; a product has space on both sides or none.
    const bool space_left = left != i, space_right = std::isspace(static_cast<unsigned char>(at(i + 1))) != 0;
    const bool declarator = c == '*' && !space_left &&
                            (space_right || std::string_view(">),(*&];").find(at(i + 1)) != std::string_view::npos);
    if (!declarator) lines.push_back(line);
  }
  return lines;
}

}  // namespace

TEST_CASE("the source check finds unchecked arithmetic and nothing else", "[io]") {
  const std::vector<std::string> bad = {"auto n = rows * cols;",
                                        "auto n = rows*cols;",
                                        "auto n = begin + size;",
                                        "return f(a) + g(b);",
                                        "offset += count;",
                                        "total *= dimension;",
                                        "end -= begin;",
                                        "end - begin",
                                        "p = data + i;",
                                        "x = v[3] * w;",
                                        "std::uint64_t{1} << bits;",
                                        "n <<= 3;",
                                        "auto n = rows *\n    cols;",
                                        "a /* why */ + b",
                                        "int n = 'a' + 2;",
                                        "f(rows\n  + cols)",
                                        "n + 1; // arithmetic:",
                                        "n + 1; // some arithmetic: here"};
  for (const std::string& text : bad) {
    CAPTURE(text);
    CHECK(unchecked_arithmetic(text).size() == 1);
  }
  const std::vector<std::string> good = {"const char* text = 0;",
                                         "void* f(void*);",
                                         "for (int i = 0; i < n; ++i)",
                                         "x->y = *p;",
                                         "return *p;",
                                         "return -1;",
                                         "f(-1, *q, +2);",
                                         "// a + b * c",
                                         "/* a * b\n c + d */",
                                         "auto s = \"a + b\";",
                                         "char c = '*';",
                                         "std::vector<const char*> v;",
                                         "auto f = [](int* p) {};",
                                         "n + 1;  // arithmetic: a constant",
                                         "#define X a + b",
                                         "T& operator*() const;",
                                         "a < b; c <= d;",
                                         "--n; n--; i-- > 0;",
                                         "int n = 100'000'000;",
                                         "std::shared_ptr<T> p{new T*(q)};",
                                         "case -1: break;",
                                         "if (x) { f(); }\n*p = 1;"};
  for (const std::string& text : good) {
    CAPTURE(text);
    CHECK(unchecked_arithmetic(text).empty());
  }
  CHECK(unchecked_arithmetic("a;\nb;\nc = d * e;\n") == std::vector<int>{3});
}

TEST_CASE("io has no unchecked arithmetic", "[io]") {
  int files = 0;
  for (const char* folder : {"src/io", "include/blockpack/io"}) {
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(BLOCKPACK_SOURCE_DIR) / folder)) {
      const fs::path& path = entry.path();
      if (path.extension() != ".cpp" && path.extension() != ".hpp") continue;
      ++files;
      if (path.filename() == "checked.hpp") continue;
      for (const int line : unchecked_arithmetic(slurp(path)))
        FAIL_CHECK(path.filename().string() << ":" << line << ": use io/checked.hpp, or say `// arithmetic: why not`");
    }
  }
  REQUIRE(files >= 15);
}
