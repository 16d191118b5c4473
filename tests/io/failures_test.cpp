// SPDX-License-Identifier: Apache-2.0
// Allocations that fail, one after the other, and system calls that fail or do less than asked: every one ends in an
// exception with nothing changed, nothing leaked and nothing left behind.
#include <fcntl.h>
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>
#include <sstream>

#include "blockpack/io.hpp"
#include "io/io_support.hpp"
#include "io/syscalls.hpp"
#include "support/catch.hpp"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BLOCKPACK_TEST_NO_OPERATOR_NEW  // clang's runtime brings its own, which cannot be replaced
#endif
#endif

// The operator new of this program: counts, and fails at a chosen call.
namespace {
#ifdef BLOCKPACK_TEST_NO_OPERATOR_NEW
constexpr bool kCountsAllocations = false;
#else
constexpr bool kCountsAllocations = true;
#endif
std::atomic<long> allocations_until_failure{-1};  // < 0: never
std::atomic<long> live_allocations{0};
std::atomic<std::size_t> largest_allocation{0};

[[maybe_unused]] void* allocate(std::size_t size, std::size_t alignment) {
  if (size > largest_allocation.load()) largest_allocation = size;
  if (allocations_until_failure.load() >= 0 && allocations_until_failure.fetch_sub(1) == 0) throw std::bad_alloc();
  const std::size_t rounded = (std::max<std::size_t>(size, 1) + alignment - 1) / alignment * alignment;
  void* p = alignment <= alignof(std::max_align_t) ? std::malloc(rounded) : std::aligned_alloc(alignment, rounded);
  if (p == nullptr) throw std::bad_alloc();
  ++live_allocations;
  return p;
}
[[maybe_unused]] void deallocate(void* p) noexcept {
  if (p == nullptr) return;
  --live_allocations;
  std::free(p);
}
}  // namespace

#ifndef BLOCKPACK_TEST_NO_OPERATOR_NEW
void* operator new(std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new[](std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t a) { return allocate(size, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t size, std::align_val_t a) { return allocate(size, static_cast<std::size_t>(a)); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept try {
  return allocate(size, alignof(std::max_align_t));
} catch (const std::bad_alloc&) {
  return nullptr;
}
void* operator new[](std::size_t size, const std::nothrow_t& none) noexcept { return operator new(size, none); }
void operator delete(void* p, const std::nothrow_t&) noexcept { deallocate(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { deallocate(p); }
void operator delete(void* p) noexcept { deallocate(p); }
void operator delete[](void* p) noexcept { deallocate(p); }
void operator delete(void* p, std::size_t) noexcept { deallocate(p); }
void operator delete[](void* p, std::size_t) noexcept { deallocate(p); }
void operator delete(void* p, std::align_val_t) noexcept { deallocate(p); }
void operator delete[](void* p, std::align_val_t) noexcept { deallocate(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { deallocate(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { deallocate(p); }
#endif

using namespace blockpack;
using namespace blockpack::test;
namespace fs = std::filesystem;

namespace {

enum class Outcome { done, out_of_memory, io_error, other };

template <class F>
Outcome outcome_of(const F& f) {
  try {
    f();
    return Outcome::done;
  } catch (const std::bad_alloc&) {
    return Outcome::out_of_memory;
  } catch (const IoError&) {
    return Outcome::io_error;
  } catch (...) {
    return Outcome::other;
  }
}

/// Runs f with its first, second, third … allocation failing until it gets through; `check` looks at the world after
/// each failure. Where the program cannot have its own operator new, f runs once.
template <class F, class Check>
void fail_each_allocation(const F& f, const Check& check) {
  f();  // statics and caches
  check(true);
  if (!kCountsAllocations) return;
  for (long n = 0;; ++n) {
    REQUIRE(n < 100000);
    const long before = live_allocations.load();
    allocations_until_failure = n;
    const Outcome outcome = outcome_of(f);
    const bool reached = allocations_until_failure.load() < 0;
    allocations_until_failure = -1;
    const long after = live_allocations.load();
    CAPTURE(n);
    REQUIRE(after == before);
    if (!reached) {
      REQUIRE(outcome == Outcome::done);
      REQUIRE(n > 5);
      return;
    }
    // The standard library itself gives up on some allocations without an exception (a sort's buffer).
    REQUIRE((outcome == Outcome::out_of_memory || outcome == Outcome::done));
    check(outcome == Outcome::done);
  }
}

const std::vector<TensorSpec>& two_tensors() {
  static const std::vector<TensorSpec> specs = {
      {"a tensor with a name that needs memory of its own", Dtype::f32, {2, 3}},
      {"another tensor with a name that needs memory of its own", Dtype::bf16, {5}}};
  return specs;
}

void write_model(const fs::path& path, char fill) {
  SafetensorsWriter writer(path, two_tensors(), {{"key of some length, longer than a small string", "value"}});
  writer.write(two_tensors()[0].name, 0, bytes_of(std::string(24, fill)));
  writer.write(two_tensors()[1].name, 0, bytes_of(std::string(10, fill)));
  writer.commit();
}

void write_gguf(const fs::path& path, char fill) {
  const std::string first = "a tensor with a name that needs memory of its own", second = "another of that kind";
  GgufWriter writer(path, {{first, GgufTensorType::f32, {2, 3}}, {second, GgufTensorType::q8_0, {1, 32}}},
                    {{"key of some length, longer than a small string",
                      GgufArray(std::vector<std::string>(3, "a value that is long enough to live on the heap"))},
                     {"flags", GgufArray(std::vector<bool>(100, true))}});
  writer.write(first, 0, bytes_of(std::string(24, fill)));
  writer.write(second, 0, bytes_of(std::string(34, fill)));
  writer.commit();
}

/// The containers that share these tests.
struct Container {
  const char* name;
  void (*write)(const fs::path& path, char fill);
  std::size_t (*tensors)(const fs::path& path);
  int reads;  // to open a file
};
constexpr Container kContainers[] = {
    {"model.safetensors", write_model,
     [](const fs::path& path) { return SafetensorsFile::open(path).tensors().size(); }, 2},
    {"model.gguf", write_gguf, [](const fs::path& path) { return GgufFile::open(path).tensors().size(); }, 1}};

/// Puts the system calls back.
struct Restore {
  io_detail::Syscalls saved = io_detail::syscalls();
  ~Restore() { io_detail::syscalls() = saved; }
};

io_detail::Syscalls real = io_detail::syscalls();
int calls_until_failure = -1;
int error_to_give = EIO;
bool fails_now() {
  if (calls_until_failure < 0 || calls_until_failure-- != 0) return false;
  errno = error_to_give;
  return true;
}

}  // namespace

TEST_CASE("every failing allocation while writing leaves the old file and no temporary", "[io]") {
  for (const Container& container : kContainers) {
    CAPTURE(container.name);
    const TempFolder folder;
    const fs::path path = folder / container.name;
    container.write(path, 'n');
    const std::string written = slurp(path);
    fail_each_allocation([&] { container.write(path, 'n'); },
                         [&](bool done) {
                           REQUIRE(folder.list() == std::vector<std::string>{container.name});
                           REQUIRE(slurp(path) == (done ? written : std::string("old")));
                           spit(path, "old");
                         });
  }
}

TEST_CASE("every failing allocation while writing shards leaves no model that is not whole", "[io]") {
  const TempFolder folder;
  const fs::path model = folder / "model";
  fail_each_allocation(
      [&] {
        ShardedWriter writer(model, two_tensors(), {}, 24);
        writer.write(two_tensors()[0].name, 0, bytes_of(std::string(24, 'x')));
        writer.write(two_tensors()[1].name, 0, bytes_of(std::string(10, 'x')));
        writer.commit();
      },
      [&](bool done) {
        const Outcome opened = outcome_of([&] {
          const TensorStore store = TensorStore::open(model);
          for (const std::string& name : store.names()) static_cast<void>(store.tensor(name));
        });
        REQUIRE(opened == (done ? Outcome::done : Outcome::io_error));
        fs::remove_all(model);
      });
}

TEST_CASE("every failing allocation while reading is reported and leaks nothing", "[io]") {
  const TempFolder folder;
  const fs::path path = folder / "model.safetensors";
  write_model(path, 'x');
  const auto nothing = [](bool) {};
  write_gguf(folder / "model.gguf", 'x');
  fail_each_allocation([&] { static_cast<void>(GgufFile::open(folder / "model.gguf").tensors()[1].stored()); },
                       nothing);
  fail_each_allocation(
      [&] {
        const auto file = SafetensorsFile::open(path);
        float row[3];
        read_rows_f32(file.tensors()[0], 1, MatrixView<float>(row, 1, 3));
      },
      nothing);
  const std::string header =
      R"({"__metadata__":{"k":"a value that is long enough to live on the heap"},"a":{"dtype":"U8","shape":[1,2],)"
      R"("x":{"deep":[[{}]]},"data_offsets":[0,2]}})";
  const std::string bytes = image(header, "ab");
  fail_each_allocation([&] { SafetensorsFile::parse(bytes_of(bytes)); }, nothing);
  const std::string bad = image(header, "abc");
  fail_each_allocation(
      [&] {
        try {
          SafetensorsFile::parse(bytes_of(bad));
        } catch (const FormatError&) {
        }
      },
      nothing);
  spit(folder / "model.safetensors.index.json",
       R"({"metadata":{"total_size":34,"who":"somebody with a long name, longer than a small string"},"weight_map":{)"
       R"("a tensor with a name that needs memory of its own":"model.safetensors"}})");
  fail_each_allocation(
      [&] {
        const TensorStore store = TensorStore::open(folder / "model.safetensors.index.json");
        static_cast<void>(store.tensor(store.names()[0]));
      },
      nothing);
}

TEST_CASE("every failing allocation of npy is reported and leaks nothing", "[io]") {
  const TempFolder folder;
  const fs::path path = folder / "a.npy";
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const auto write = [&] { write_npy<float>(path, {2, 3}, values); };
  write();
  const std::string written = slurp(path);
  fail_each_allocation(write, [&](bool done) {
    REQUIRE(folder.list() == std::vector<std::string>{"a.npy"});
    REQUIRE(slurp(path) == (done ? written : std::string("old")));
    spit(path, "old");
  });
  spit(path, written);
  const auto nothing = [](bool) {};
  fail_each_allocation([&] { static_cast<void>(read_npy(path).values<float>()); }, nothing);
  std::string swapped = written;
  swapped.replace(swapped.find("'<f4'"), 5, "'>f4'");
  swapped.replace(swapped.find("False"), 5, " True");
  fail_each_allocation([&] { parse_npy(SharedBytes(bytes_of(swapped), nullptr)); }, nothing);
}

TEST_CASE("reads and writes that move few bytes or are interrupted make whole files", "[io]") {
  const TempFolder folder;
  for (const Container& container : kContainers) container.write(folder / container.name, 'x');
  const Restore restore;
  static int turn = 0;
  io_detail::syscalls().pwrite = [](int fd, const void* data, std::size_t count, off_t offset) -> ssize_t {
    if (++turn % 3 == 0) return errno = EINTR, -1;
    return real.pwrite(fd, data, std::min<std::size_t>(count, static_cast<std::size_t>(turn % 3)), offset);
  };
  io_detail::syscalls().pread = [](int fd, void* data, std::size_t count, off_t offset) -> ssize_t {
    if (++turn % 3 == 0) return errno = EINTR, -1;
    return real.pread(fd, data, std::min<std::size_t>(count, static_cast<std::size_t>(turn % 3)), offset);
  };
  io_detail::syscalls().fsync = [](int fd) { return ++turn % 2 == 0 ? (errno = EINTR, -1) : real.fsync(fd); };
  io_detail::syscalls().ftruncate = [](int fd, off_t size) {
    return ++turn % 2 == 0 ? (errno = EINTR, -1) : real.ftruncate(fd, size);
  };
  io_detail::syscalls().open = [](const char* path, int flags, mode_t mode) {
    return ++turn % 2 == 0 ? (errno = EINTR, -1) : real.open(path, flags, mode);
  };
  for (const Container& container : kContainers) {
    container.write(folder / "pieces", 'x');
    CHECK(slurp(folder / "pieces") == slurp(folder / container.name));
    CHECK(container.tensors(folder / "pieces") == 2);
    CHECK(read_file(folder / "pieces", 10000) == slurp(folder / container.name));
  }
}

TEST_CASE("every failing system call while writing leaves the old file and no temporary", "[io]") {
  const Container& container = kContainers[GENERATE(0, 1)];
  const TempFolder folder;
  const fs::path path = folder / container.name;
  container.write(path, 'n');
  const std::string written = slurp(path);
  const auto with_failures = [&](const char* which, const auto& install, bool last_is_harmless) {
    CAPTURE(which);
    for (const int error : {EIO, ENOSPC}) {
      int failures = 0;
      for (int n = 0;; ++n) {
        REQUIRE(n < 100);
        spit(path, "old");
        Outcome outcome;
        {
          const Restore restore;
          install(io_detail::syscalls());
          calls_until_failure = n;
          error_to_give = error;
          outcome = outcome_of([&] { container.write(path, 'n'); });
        }
        const bool reached = calls_until_failure < 0;
        calls_until_failure = -1;
        CAPTURE(n);
        REQUIRE(folder.list() == std::vector<std::string>{container.name});
        if (!reached) {
          REQUIRE(outcome == Outcome::done);
          REQUIRE(slurp(path) == written);
          break;
        }
        ++failures;
        if (outcome == Outcome::io_error) {
          // Only syncing the folder comes after the rename.
          const bool in_place = last_is_harmless && slurp(path) == written;
          REQUIRE((in_place || slurp(path) == "old"));
        } else {
          REQUIRE(outcome == Outcome::done);  // the folder could not be opened to be synced
          REQUIRE(last_is_harmless);
          REQUIRE(slurp(path) == written);
        }
      }
      CHECK(failures >= 1);
    }
  };
  with_failures(
      "pwrite",
      [](io_detail::Syscalls& s) {
        s.pwrite = [](int fd, const void* data, std::size_t count, off_t offset) -> ssize_t {
          return fails_now() ? -1 : real.pwrite(fd, data, count, offset);
        };
      },
      false);
  with_failures(
      "pwrite of nothing",
      [](io_detail::Syscalls& s) {
        s.pwrite = [](int fd, const void* data, std::size_t count, off_t offset) -> ssize_t {
          return fails_now() ? 0 : real.pwrite(fd, data, count, offset);
        };
      },
      false);
  with_failures(
      "ftruncate",
      [](io_detail::Syscalls& s) {
        s.ftruncate = [](int fd, off_t size) { return fails_now() ? -1 : real.ftruncate(fd, size); };
      },
      false);
  with_failures(
      "rename",
      [](io_detail::Syscalls& s) {
        s.rename = [](const char* from, const char* to) { return fails_now() ? -1 : real.rename(from, to); };
      },
      false);
  with_failures(
      "fsync", [](io_detail::Syscalls& s) { s.fsync = [](int fd) { return fails_now() ? -1 : real.fsync(fd); }; },
      true);
  with_failures(
      "open",
      [](io_detail::Syscalls& s) {
        s.open = [](const char* name, int flags, mode_t mode) {
          return fails_now() ? -1 : real.open(name, flags, mode);
        };
      },
      true);
}

TEST_CASE("every failing system call while reading is an IoError", "[io]") {
  const Container& container = kContainers[GENERATE(0, 1)];
  const TempFolder folder;
  const fs::path path = folder / container.name;
  container.write(path, 'x');
  const auto read = [&] { container.tensors(path); };
  const auto fail_each = [&](const char* which, const auto& install, int calls) {
    CAPTURE(which);
    for (int n = 0; n < calls; ++n) {
      const Restore restore;
      install(io_detail::syscalls());
      calls_until_failure = n;
      error_to_give = EIO;
      CHECK(outcome_of(read) == Outcome::io_error);
      CHECK(calls_until_failure < 0);
      calls_until_failure = -1;
    }
  };
  using io_detail::Syscalls;
  fail_each(
      "open",
      [](Syscalls& s) {
        s.open = [](const char* p, int flags, mode_t mode) { return fails_now() ? -1 : real.open(p, flags, mode); };
      },
      1);
  fail_each(
      "fstat",
      [](Syscalls& s) { s.fstat = [](int fd, struct stat* out) { return fails_now() ? -1 : real.fstat(fd, out); }; },
      2);
  fail_each(
      "mmap",
      [](Syscalls& s) {
        s.mmap = [](void* a, std::size_t n, int protection, int flags, int fd, off_t offset) {
          return fails_now() ? MAP_FAILED : real.mmap(a, n, protection, flags, fd, offset);
        };
      },
      1);
  fail_each(
      "pread",
      [](Syscalls& s) {
        s.pread = [](int fd, void* data, std::size_t count, off_t offset) -> ssize_t {
          return fails_now() ? -1 : real.pread(fd, data, count, offset);
        };
      },
      container.reads);
  fail_each(
      "a file that becomes shorter",
      [](Syscalls& s) {
        s.pread = [](int fd, void* data, std::size_t count, off_t offset) -> ssize_t {
          return fails_now() ? 0 : real.pread(fd, data, count, offset);
        };
      },
      container.reads);
  // A file whose size changes between the two looks at it.
  {
    const Restore restore;
    static int looks;
    looks = 0;
    io_detail::syscalls().fstat = [](int fd, struct stat* out) {
      const int result = real.fstat(fd, out);
      if (++looks == 2) out->st_size -= 1;
      return result;
    };
    CHECK(outcome_of(read) == Outcome::io_error);
  }
}

TEST_CASE("a count in a hostile GGUF header allocates no more than the file is long", "[io]") {
  const auto number = [](std::uint64_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; ++i) text.push_back(static_cast<char>(value >> (8 * i) & 0xff));
    return text;
  };
  const std::string rest(10'000, '\0');
  const auto entry = [&](const std::string& value) {
    return "GGUF" + number(3, 4) + number(0, 8) + number(1, 8) + number(1, 8) + "k" + value + rest;
  };
  for (const int bits : {24, 31, 40, 60, 63}) {
    const std::uint64_t huge = std::uint64_t{1} << bits;
    std::vector<std::string> images = {"GGUF" + number(3, 4) + number(huge, 8) + number(0, 8) + rest,
                                       "GGUF" + number(3, 4) + number(0, 8) + number(huge, 8) + rest,
                                       "GGUF" + number(3, 4) + number(1, 8) + number(0, 8) + number(huge, 8) + rest,
                                       entry(number(8, 4) + number(huge, 8))};
    for (const unsigned type : {0u, 7u, 8u, 12u})
      images.push_back(entry(number(9, 4) + number(type, 4) + number(huge, 8)));
    for (std::size_t i = 0; i < images.size(); ++i) {
      CAPTURE(bits, i);
      largest_allocation = 0;
      bool refused = false;
      try {
        GgufFile::parse(bytes_of(images[i]));
      } catch (const FormatError&) {
        refused = true;
      }
      const std::size_t largest = largest_allocation;
      CHECK(refused);
      CHECK(largest < rest.size());
    }
  }
}
