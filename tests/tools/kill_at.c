/* kill_at K REPORT PROGRAM ARGUMENT...: runs the program and kills it with SIGKILL when it is about to make the K-th system call that
 * changes a file or sends to a socket, counted over all its threads in the order in which they are made; the call is not made.
 * K = 0: it is left alone. SIGTERM is passed on. REPORT gets the name of the call and what it was about ("pwrite64 /tmp/x/app.db-wal"),
 * or the number of calls when it ended by itself.
 *
 * strace's `inject=...:when=K` counts each call and each thread by itself, and so cannot go through a program call by call. Event
 * descriptors, pipes and the log are not counted. Only the calls that are counted stop the program (seccomp), so it is nearly as fast as
 * ever. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct {
    const char *name;
    int number;
    int takes_path;
} calls[] = {
    {"write", SYS_write, 0},         {"writev", SYS_writev, 0},       {"pwrite64", SYS_pwrite64, 0}, {"pwritev", SYS_pwritev, 0},
    {"fsync", SYS_fsync, 0},         {"fdatasync", SYS_fdatasync, 0}, {"ftruncate", SYS_ftruncate, 0}, {"sendto", SYS_sendto, 0},
    {"sendmsg", SYS_sendmsg, 0},     {"sendmmsg", SYS_sendmmsg, 0},   {"unlinkat", SYS_unlinkat, 1},
#ifdef SYS_unlink
    {"unlink", SYS_unlink, 1},
#endif
};
enum { CALLS = sizeof calls / sizeof *calls };

static pid_t program;

static void fail(const char *what) {
    perror(what);
    exit(70);
}

static void pass_on(int signal) { kill(program, signal); }

static void become(char **words) {
    struct sock_filter filter[CALLS + 3];
    filter[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < CALLS; i++)
        filter[i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].number, CALLS - i, 0);
    filter[CALLS + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[CALLS + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    struct sock_fprog code = {CALLS + 3, filter};
    if (ptrace(PTRACE_TRACEME, 0, 0, 0)) fail("PTRACE_TRACEME");
    raise(SIGSTOP);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &code)) fail("seccomp");
    execvp(words[0], words);
    fail(words[0]);
}

/* What the call is about; NULL when it does not count. */
static const char *subject(pid_t thread, int call, unsigned long long first) {
    static char path[4096];
    if (calls[call].takes_path) return "";
    char link[64];
    snprintf(link, sizeof link, "/proc/%d/fd/%llu", thread, first);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    const char *end = strrchr(path, '.');
    int is_log = end && !strcmp(end, ".log");
    int counts = !strncmp(path, "socket:", 7) || (path[0] == '/' && strncmp(path, "/dev/", 5) && !is_log);
    return counts ? path : NULL;
}

static void report(const char *to, const char *text, const char *more) {
    FILE *file = fopen(to, "w");
    if (!file || fprintf(file, "%s %s\n", text, more) < 0 || fclose(file)) fail(to);
}

int main(int count, char **words) {
    if (count < 4) return 64;
    long at = atol(words[1]), seen = 0;
    program = fork();
    if (program < 0) fail("fork");
    if (!program) become(words + 3);
    struct sigaction action = {.sa_handler = pass_on};
    sigaction(SIGTERM, &action, NULL);
    int status;
    if (waitpid(program, &status, 0) < 0) fail("waitpid");
    long options = PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SETOPTIONS, program, 0, options)) fail("PTRACE_SETOPTIONS");
    ptrace(PTRACE_CONT, program, 0, 0);
    for (;;) {
        pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0 && errno == EINTR) continue;
        if (thread < 0) fail("waitpid");
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (thread != program) continue;
            if (WIFSIGNALED(status)) return 128 + WTERMSIG(status);
            char text[32];
            snprintf(text, sizeof text, "%ld", seen);
            report(words[2], text, "calls");
            return WEXITSTATUS(status);
        }
        int signal = WSTOPSIG(status), event = status >> 16;
        if (event == PTRACE_EVENT_SECCOMP) {
            struct __ptrace_syscall_info info;
            if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) > 0) {
                int call = 0;
                while (call < CALLS && calls[call].number != (int)info.seccomp.nr) call++;
                const char *what = call < CALLS ? subject(thread, call, info.seccomp.args[0]) : NULL;
                if (what && ++seen == at) {
                    report(words[2], calls[call].name, what);
                    kill(program, SIGKILL);
                    continue;
                }
            }
        }
        /* A stop of the tracer's own making is not passed on, nor the one that a new thread begins with. */
        ptrace(PTRACE_CONT, thread, 0, event || signal == SIGSTOP || signal == SIGTRAP ? 0 : signal);
    }
}
