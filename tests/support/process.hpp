// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Runs a program as a child: its output and exit code, limits on file sizes, another user, a kill at any moment.

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace blockpack::test {

struct ProcessOptions {
  std::optional<rlim_t> file_size_limit;                  ///< RLIMIT_FSIZE, with SIGXFSZ ignored in the child
  std::optional<uid_t> user;                              ///< drops to that user and group after the program was opened
  std::string stdout_path;                                ///< instead of capturing: "/dev/full"
  std::optional<std::chrono::microseconds> signal_after;  ///< sends `signal` after that time
  int signal = SIGKILL;
};

struct ProcessResult {
  int exit_code = -1;  ///< -1 when a signal ended it
  int signal = 0;
  std::string out, err;
  double cpu_seconds = 0;
};

/// The program is found by its path, not by PATH. arguments[0] is the first argument behind the name.
inline ProcessResult run_process(const std::string& program, const std::vector<std::string>& arguments,
                                 const ProcessOptions& options = {}) {
  int out[2], err[2];
  if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
  std::vector<std::string> words = {program};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int image = ::open(program.c_str(), O_PATH | O_CLOEXEC);
  if (image < 0) throw std::runtime_error("cannot open " + program);
  // The child must not run the handlers of this process: one that allocates would wait for a lock that fork() held.
  sigset_t every, before;
  ::sigfillset(&every);
  ::pthread_sigmask(SIG_SETMASK, &every, &before);
  const pid_t child = ::fork();
  if (child != 0) ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) ::signal(number, SIG_DFL);
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    ::dup2(out[1], 1);
    ::dup2(err[1], 2);
    if (!options.stdout_path.empty()) ::dup2(::open(options.stdout_path.c_str(), O_WRONLY | O_CLOEXEC), 1);
    if (options.file_size_limit) {
      const rlimit limit = {*options.file_size_limit, *options.file_size_limit};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      ::signal(SIGXFSZ, SIG_IGN);
    }
    if (options.user && (::setgroups(0, nullptr) != 0 || ::setgid(*options.user) != 0 || ::setuid(*options.user) != 0))
      ::_exit(126);
    ::fexecve(image, argv.data(), environ);
    ::execv(program.c_str(), argv.data());
    ::_exit(127);
  }
  ::close(image);
  ::close(out[1]);
  ::close(err[1]);
  std::thread killer;
  if (options.signal_after)
    killer = std::thread([&] {
      std::this_thread::sleep_for(*options.signal_after);
      ::kill(child, options.signal);  // not reaped yet, so the number is still this child's
    });
  ProcessResult result;
  pollfd polls[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  for (int open = 2; open > 0;) {
    if (::poll(polls, 2, -1) < 0) {
      if (errno == EINTR) continue;
      break;
    }
    for (int i = 0; i < 2; ++i) {
      if (polls[i].fd < 0 || polls[i].revents == 0) continue;
      char buffer[4096];
      const ssize_t n = ::read(polls[i].fd, buffer, sizeof buffer);
      if (n > 0) {
        (i == 0 ? result.out : result.err).append(buffer, static_cast<std::size_t>(n));
      } else {
        polls[i].fd = -1;
        --open;
      }
    }
  }
  if (killer.joinable()) killer.join();
  ::close(out[0]);
  ::close(err[0]);
  int status = 0;
  rusage usage = {};
  while (::wait4(child, &status, 0, &usage) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  result.cpu_seconds = seconds(usage.ru_utime) + seconds(usage.ru_stime);
  return result;
}

}  // namespace blockpack::test
