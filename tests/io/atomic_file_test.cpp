// SPDX-License-Identifier: Apache-2.0
// Files appear whole or not at all; what stands in the way is named.
#include "blockpack/io/atomic_file.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cerrno>
#include <thread>

#include "blockpack/io.hpp"
#include "io/child_process.hpp"
#include "io/io_support.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using namespace blockpack::test;
namespace fs = std::filesystem;
using Names = std::vector<std::string>;

namespace {

mode_t mode_of(const fs::path& path) {
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_mode & 0777;
}

/// The errno of the IoError that f throws, 0 for none. Its message is one line.
template <class F>
int io_error(const F& f) {
  try {
    f();
    return 0;
  } catch (const IoError& error) {
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) return -1;
    return error.error_number();
  }
}

}  // namespace

TEST_CASE("a file that is not committed leaves the old one and nothing else", "[io]") {
  const TempFolder folder;
  const fs::path path = folder / "f";
  {
    AtomicFile file(path);
    file.write(0, "new");
    CHECK(folder.list().size() == 1);
    CHECK_FALSE(fs::exists(path));
  }
  CHECK(folder.list().empty());
  spit(path, "old");
  {
    AtomicFile file(path);
    file.write(3, "new");
    CHECK(slurp(path) == "old");
    AtomicFile moved(std::move(file));
    moved.write(0, "abc");
  }
  CHECK(slurp(path) == "old");
  CHECK(folder.list() == Names{"f"});
  write_file_atomically(path, "new");
  CHECK(slurp(path) == "new");
  CHECK(folder.list() == Names{"f"});
}

TEST_CASE("a committed file takes no more bytes", "[io]") {
  const TempFolder folder;
  AtomicFile file(folder / "f");
  file.write(0, "x");
  file.commit();
  CHECK(io_error([&] { file.write(0, "y"); }) == EBADF);
  CHECK(io_error([&] { file.commit(); }) == EBADF);
  CHECK(slurp(folder / "f") == "x");
}

TEST_CASE("the new file has the permissions of the old one, or those of the umask", "[io]") {
  const TempFolder folder;
  const mode_t before = ::umask(027);
  write_file_atomically(folder / "fresh", "x");
  CHECK(mode_of(folder / "fresh") == 0640);
  spit(folder / "private", "x");
  ::chmod((folder / "private").c_str(), 0600);
  write_file_atomically(folder / "private", "y");
  CHECK(mode_of(folder / "private") == 0600);
  ::chmod((folder / "private").c_str(), 0666);  // more than the umask leaves
  write_file_atomically(folder / "private", "z");
  CHECK(mode_of(folder / "private") == 0666);
  ::umask(before);
}

TEST_CASE("a link is followed, a broken one refused", "[io]") {
  const TempFolder folder;
  fs::create_directory(folder / "real");
  spit(folder / "real/f", "old");
  fs::create_symlink("real/f", folder / "link");
  write_file_atomically(folder / "link", "new");
  CHECK(fs::is_symlink(folder / "link"));
  CHECK(slurp(folder / "real/f") == "new");
  fs::create_symlink("nowhere", folder / "broken");
  CHECK(io_error([&] { write_file_atomically(folder / "broken", "x"); }) == ENOENT);
}

TEST_CASE("only regular files are replaced", "[io]") {
  const TempFolder folder;
  fs::create_directory(folder / "folder");
  CHECK(io_error([&] { write_file_atomically(folder / "folder", "x"); }) == EISDIR);
  CHECK(io_error([&] { write_file_atomically(fs::path((folder / "folder").string() + "/"), "x"); }) == EISDIR);
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0666) == 0);
  CHECK(io_error([&] { write_file_atomically(folder / "pipe", "x"); }) == EINVAL);
  CHECK(io_error([&] { write_file_atomically("/dev/full", "x"); }) == EINVAL);
  CHECK(io_error([&] { write_file_atomically(folder / "no/such/folder/f", "x"); }) == ENOENT);
  CHECK(io_error([&] { write_file_atomically(folder / "pipe/f", "x"); }) == ENOTDIR);
  CHECK(folder.list() == Names{"folder", "pipe"});
}

TEST_CASE("a name as long as the file system takes can be written", "[io]") {
  const TempFolder folder;
  const std::string longest(255, 'n');
  write_file_atomically(folder / longest, "x");
  CHECK(slurp(folder / longest) == "x");
  const std::string other = std::string(254, 'n') + "m";
  AtomicFile open_one(folder / longest);
  write_file_atomically(folder / other, "y");  // must not take the temporary of its near namesake for its own
  CHECK(folder.list().size() == 3);
}

TEST_CASE("what a killed writer left is removed by the next one, what a living one holds is not", "[io]") {
  const TempFolder folder;
  const fs::path path = folder / "f";
  spit(path, "old");
  const auto killed_while_writing = [&] {
    const pid_t pid = ::fork();
    if (pid == 0) {
      AtomicFile file(path);
      file.write(0, "half");
      ::kill(::getpid(), SIGKILL);
    }
    int status = 0;
    REQUIRE(::waitpid(pid, &status, 0) == pid);
    REQUIRE(WIFSIGNALED(status));
  };
  killed_while_writing();
  killed_while_writing();
  CHECK(slurp(path) == "old");
  CHECK(folder.list().size() == 2);  // the second removed what the first left
  AtomicFile living(path);
  living.write(0, "living");
  write_file_atomically(path, "new");
  CHECK(slurp(path) == "new");
  living.commit();
  CHECK(slurp(path) == "living");
  CHECK(folder.list() == Names{"f"});
}

TEST_CASE("writers of one file in many threads leave one whole file", "[io]") {
  const TempFolder folder;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) write_file_atomically(folder / "f", std::string(1000, static_cast<char>('a' + t)));
    });
  for (std::thread& thread : threads) thread.join();
  const std::string content = slurp(folder / "f");
  CHECK(content == std::string(1000, content[0]));
  CHECK(folder.list() == Names{"f"});
}

TEST_CASE("a missing file, a directory, a pipe and no permission are named when reading", "[io]") {
  const TempFolder folder;
  fs::create_directory(folder / "folder");
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0666) == 0);
  spit(folder / "locked", "x");
  const auto each_reader = [](const fs::path& path) {
    const int errors[] = {io_error([&] { MappedFile::open(path); }), io_error([&] { SafetensorsFile::open(path); }),
                          io_error([&] { read_npy(path); }), io_error([&] { read_file(path, 100); })};
    for (const int error : errors)
      if (error != errors[0]) return -2;
    return errors[0];
  };
  CHECK(each_reader(folder / "missing") == ENOENT);
  CHECK(each_reader(folder / "folder") == EISDIR);
  CHECK(each_reader(folder / "pipe") == EINVAL);
  CHECK(each_reader("/dev/null") == EINVAL);
  CHECK(io_error([&] { TensorStore::open(folder / "missing"); }) == ENOENT);
  CHECK(io_error([&] { TensorStore::open(folder / "folder"); }) == ENOENT);  // holds no model
  CHECK_THROWS_WITH(SafetensorsFile::open(folder / "missing"),
                    Catch::Contains("missing") && Catch::Contains("No such file"));
  ::chmod(folder.path().c_str(), 0755);
  ::chmod((folder / "locked").c_str(), 0);
  CHECK(in_child([&] { return drop_privileges() ? each_reader(folder / "locked") : 99; }) == EACCES);
  ::chmod(folder.path().c_str(), 0555);
  CHECK(in_child([&] {
          return drop_privileges() ? io_error([&] { write_file_atomically(folder / "f", "x"); }) : 99;
        }) == EACCES);
  ::chmod(folder.path().c_str(), 0700);
  CHECK(folder.list() == Names{"folder", "locked", "pipe"});
}

TEST_CASE("a full disk ends in an error with nothing changed", "[io]") {
  const TempFolder folder;
  spit(folder / "model.safetensors", "old");
  spit(folder / "array.npy", "old");
  const auto limited = [&](const auto& f) {
    return in_child([&] {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit{4096, 4096};
      if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 99;
      return io_error(f);
    });
  };
  CHECK(limited([&] { SafetensorsWriter(folder / "model.safetensors", {{"w", Dtype::f32, {2000}}}); }) == EFBIG);
  CHECK(limited([&] {
          const std::vector<float> values(2000);
          write_npy<float>(folder / "array.npy", {2000}, values);
        }) == EFBIG);
  CHECK(limited([&] {
          AtomicFile file(folder / "model.safetensors");  // grows beyond the limit instead of being sized first
          for (std::uint64_t i = 0; i < 10; ++i) file.write(i * 1000, std::string(1000, 'x'));
          file.commit();
        }) == EFBIG);
  CHECK(slurp(folder / "model.safetensors") == "old");
  CHECK(slurp(folder / "array.npy") == "old");
  CHECK(folder.list() == Names{"array.npy", "model.safetensors"});
  std::ofstream full("/dev/full", std::ios::binary);
  if (full) {
    const std::vector<float> values(100000);
    CHECK(io_error([&] { write_npy(full, NpyType{'f', 4}, {100000}, std::as_bytes(std::span(values))); }) == EIO);
  }
}
