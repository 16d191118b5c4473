// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Runs a function in a forked child: for limits and identities that a process cannot take back.

#include <grp.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <exception>
#include <string>

namespace blockpack::test {

/// What f returned in a child process, or -1 when it threw or died.
template <class F>
int in_child(const F& f) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    int code = 255;
    try {
      code = f();
    } catch (...) {
    }
    ::_exit(code);
  }
  int status = 0;
  if (pid < 0 || ::waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) == 255) return -1;
  return WEXITSTATUS(status);
}

/// Becomes nobody, in a child, when the tests run as root, whom no permission stops.
inline bool drop_privileges() {
  if (::geteuid() != 0) return true;
  return ::setgroups(0, nullptr) == 0 && ::setgid(65534) == 0 && ::setuid(65534) == 0;
}

}  // namespace blockpack::test
