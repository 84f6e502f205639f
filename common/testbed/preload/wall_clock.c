// A wall clock of its own for one program: loaded before libc (LD_PRELOAD), it adds to each answer of the real-time clock the
// offset that stands in a small shared file, which TAPEDECK_WALL_CLOCK names. Monotonic clocks are left alone.
//
// Who waits for a moment of the wall clock waits by this one: a jump reaches those who already wait, as the kernel's would.
// Every answer that was not the machine's time is counted in the file, so that a test knows that it tested something.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
// How long a wait goes on before it looks at the clock again.
#define SLICE (SECOND / 20)
// No wall clock shows this moment (2001) or an earlier one, and no machine runs so long: below it a time is a monotonic one.
#define WALL_SINCE 1000000000LL

static volatile struct {
  int64_t offset_ns;
  uint64_t answers;
} *file;

__attribute__((constructor)) static void open_file(void) {
  const char *path = getenv("TAPEDECK_WALL_CLOCK");
  int opened = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  void *mapped = opened < 0 ? MAP_FAILED : mmap(NULL, sizeof *file, PROT_READ | PROT_WRITE, MAP_SHARED, opened, 0);
  if (mapped == MAP_FAILED) {
    // A program with the machine's clock would test nothing, and nobody would know.
    fprintf(stderr, "wall_clock: TAPEDECK_WALL_CLOCK names no file that can be mapped\n");
    _exit(127);
  }
  close(opened);
  file = mapped;
}

static int64_t nanos(const struct timespec *time) { return time->tv_sec * SECOND + time->tv_nsec; }

static struct timespec timespec_of(int64_t ns) { return (struct timespec){.tv_sec = ns / SECOND, .tv_nsec = ns % SECOND}; }

static int64_t machine(clockid_t clock) {
  struct timespec now;
  syscall(SYS_clock_gettime, clock, &now);
  return nanos(&now);
}

// The clock may be asked before this library is ready.
static int64_t offset(void) { return file ? file->offset_ns : 0; }

static int64_t wall(clockid_t clock) {
  int64_t added = offset();
  if (added) __atomic_add_fetch(&file->answers, 1, __ATOMIC_RELAXED);
  return machine(clock) + added;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) return (int)syscall(SYS_clock_gettime, clock, time);
  *time = timespec_of(wall(clock));
  return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  (void)zone;
  int64_t now = wall(CLOCK_REALTIME);
  *time = (struct timeval){.tv_sec = now / SECOND, .tv_usec = now % SECOND / 1000};
  return 0;
}

time_t time(time_t *into) {
  time_t now = wall(CLOCK_REALTIME) / SECOND;
  if (into) *into = now;
  return now;
}

int timespec_get(struct timespec *time, int base) {
  if (base != TIME_UTC) return 0;
  *time = timespec_of(wall(CLOCK_REALTIME));
  return base;
}

// Waits at most a slice. Waking up for nothing is allowed: who waits looks at its condition again, under its lock.
static int wait_a_slice(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
  if (until->tv_sec < WALL_SINCE) return pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, until);
  int64_t left = nanos(until) - machine(CLOCK_REALTIME) - offset();
  int64_t slice = left < 0 ? 0 : left < SLICE ? left : SLICE;
  struct timespec end = timespec_of(machine(CLOCK_MONOTONIC) + slice);
  int woken = pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &end);
  return woken == ETIMEDOUT && slice < left ? 0 : woken;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
  return wait_a_slice(condition, mutex, until);
}

// Those of C11 are the same objects in glibc, and never pass through the function above.
int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
  int woken = wait_a_slice((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, until);
  return woken == 0 ? thrd_success : woken == ETIMEDOUT ? thrd_timedout : thrd_error;
}
