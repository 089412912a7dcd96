// Confines the process that loads it, since JavaScript has no system calls: behind the seccomp program in the file that RINGFENCE_TEST_FILTER
// names, or, without that variable, by Landlock (Linux 5.13) without access to any file.

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static long filter(const char *name) {
  static struct sock_filter program[4096];
  int file = open(name, O_RDONLY | O_CLOEXEC);
  ssize_t length = read(file, program, sizeof program);
  close(file);
  if (length <= 0) return -1;
  struct sock_fprog all = {.len = length / sizeof *program, .filter = program};
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &all);
}

static long landlock(void) {
  const long create_ruleset = 444, restrict_self = 446;
  uint64_t all_rights = (1 << 13) - 1;
  long ruleset = syscall(create_ruleset, &all_rights, sizeof all_rights, 0);
  return syscall(restrict_self, ruleset, 0);
}

__attribute__((constructor)) static void confine(void) {
  const char *name = getenv("RINGFENCE_TEST_FILTER");
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || (name == NULL ? landlock() : filter(name)) != 0) _exit(99);
}
