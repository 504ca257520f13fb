/* Preloaded into a process: makes the k-th call that changes the disk below a folder fail, or kills the process there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { KILL = -1 };

static char folder[PATH_MAX], spared[PATH_MAX];
static atomic_int calls;
static int target, fault, lasting;

/* Calls are counted anew below `where`, but for names that contain `besides`. The `at`-th gets `error`, or SIGKILL for
   -1; with `persistent`, so does every later one that takes space. */
void faults_arm(const char *where, const char *besides, int at, int error, int persistent) {
    snprintf(folder, sizeof folder, "%s", where);
    snprintf(spared, sizeof spared, "%s", besides);
    calls = 0;
    target = at, fault = error, lasting = persistent;
}

int faults_calls(void) { return calls; }

static int concerns(const char *path) {
    return folder[0] && !strncmp(path, folder, strlen(folder)) && !(spared[0] && strstr(path, spared));
}

static int of_descriptor(int descriptor) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return concerns(path);
}

static int of_path(int directory, const char *path) {
    return path[0] == '/' || directory == AT_FDCWD ? concerns(path) : of_descriptor(directory);
}

/* Whether the call in progress is to fail; does not return where it is to be the last one. */
static int fails(int takes_space) {
    int number = ++calls;
    if (number == target && fault == KILL) kill(getpid(), SIGKILL), pause();
    if (fault != KILL && (number == target || (lasting && takes_space && number > target && target))) {
        errno = fault;
        return 1;
    }
    return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && concerns(path) && fails(flags & O_CREAT)) return -1;            \
        return REAL(name)(path, flags, mode);                                                                          \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int directory, const char *path, int flags, ...) {                                                        \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && of_path(directory, path) && fails(flags & O_CREAT)) return -1;  \
        return REAL(name)(directory, path, flags, mode);                                                               \
    }
OPENAT(openat)
OPENAT(openat64)

/* The write that fails, or is the last, gets half of its bytes to the disk, as on a disk that is full. */
#define WRITE(name, declared, given)                                                                                   \
    ssize_t name declared {                                                                                            \
        if (of_descriptor(descriptor)) {                                                                               \
            if (calls + 1 == target && count > 1) {                                                                    \
                count /= 2;                                                                                            \
                ssize_t written = REAL(name) given;                                                                    \
                fails(1);                                                                                              \
                return lasting ? written : -1;                                                                         \
            }                                                                                                          \
            if (fails(1)) return -1;                                                                                   \
        }                                                                                                              \
        return REAL(name) given;                                                                                       \
    }
WRITE(write, (int descriptor, const void *data, size_t count), (descriptor, data, count))
WRITE(pwrite, (int descriptor, const void *data, size_t count, off_t offset), (descriptor, data, count, offset))
WRITE(pwrite64, (int descriptor, const void *data, size_t count, off64_t offset), (descriptor, data, count, offset))

#define ON_DESCRIPTOR(name, takes_space, declared, given)                                                              \
    int name declared {                                                                                                \
        if (of_descriptor(descriptor) && fails(takes_space)) return -1;                                                \
        return REAL(name) given;                                                                                       \
    }
ON_DESCRIPTOR(fsync, 1, (int descriptor), (descriptor))
ON_DESCRIPTOR(fdatasync, 1, (int descriptor), (descriptor))
ON_DESCRIPTOR(ftruncate, 1, (int descriptor, off_t length), (descriptor, length))
ON_DESCRIPTOR(ftruncate64, 1, (int descriptor, off64_t length), (descriptor, length))

#define ON_PATH(name, takes_space, declared, given)                                                                    \
    int name declared {                                                                                                \
        if (concerns(path) && fails(takes_space)) return -1;                                                           \
        return REAL(name) given;                                                                                       \
    }
ON_PATH(mkdir, 1, (const char *path, mode_t mode), (path, mode))
ON_PATH(rmdir, 0, (const char *path), (path))
ON_PATH(unlink, 0, (const char *path), (path))
ON_PATH(rename, 0, (const char *path, const char *new), (path, new))
ON_PATH(link, 1, (const char *path, const char *new), (path, new))
ON_PATH(truncate, 0, (const char *path, off_t length), (path, length))
ON_PATH(truncate64, 0, (const char *path, off64_t length), (path, length))

int unlinkat(int directory, const char *path, int flags) {
    if (of_path(directory, path) && fails(0)) return -1;
    return REAL(unlinkat)(directory, path, flags);
}

int mkdirat(int directory, const char *path, mode_t mode) {
    if (of_path(directory, path) && fails(1)) return -1;
    return REAL(mkdirat)(directory, path, mode);
}

int renameat(int from, const char *path, int to, const char *new) {
    if (of_path(from, path) && fails(0)) return -1;
    return REAL(renameat)(from, path, to, new);
}
