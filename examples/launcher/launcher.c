/*
 * A setgid launcher: a user that may run it starts exactly one program, in a group that no process is in otherwise. The group is
 * what the peer's policy asks for: { gid: <the group's number> }.
 *
 *   groupadd --system orders-launched                  # with no members
 *   cc -O2 -Wall -static -o orders-agent launcher.c    # static: there is nothing to preload
 *   install -o root -g orders-launched -m 2755 orders-agent /usr/local/bin/
 *
 * The program, its interpreter and every directory above them must belong to root and be writable by no other user.
 *
 * The real group stays the caller's. That is on purpose: as long as it differs from the effective one, the kernel
 * keeps what is executed from here closed to its user too (not dumpable, no ptrace), and tells it so (AT_SECURE), whence
 * the loader ignores LD_PRELOAD and Node ignores NODE_OPTIONS. Do not call setregid(2) here.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef PROGRAM
#define PROGRAM "/usr/bin/node", "/opt/orders/agent.mjs"
#endif

int main(void) {
  char *const arguments[] = {PROGRAM, NULL};
  char *const environment[] = {"PATH=/usr/bin:/bin", "LANG=C.UTF-8", NULL};
  const struct rlimit none = {0, 0};

  /* What the caller left open, limited or masked is not the program's. */
  if (close_range(3, ~0U, 0) != 0 || setrlimit(RLIMIT_CORE, &none) != 0 || chdir("/") != 0) {
    perror("launcher");
    return 1;
  }
  umask(077);
  execve(arguments[0], arguments, environment);
  perror(arguments[0]);
  return 1;
}
