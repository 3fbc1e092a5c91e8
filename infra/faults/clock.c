/* A wrong time of day for the process that it is preloaded into (LD_PRELOAD): HEADWATER_CLOCK_S seconds are added to it. The monotonic clock
   stays right, and waits until a time of day end when they would have ended by the right clock. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define LATE 1000000000L /* seconds since 1970 are beyond it, those of a monotonic clock below */

static long offset(void) {
    static long known;
    static int read;
    if (!read) {
        const char *text = getenv("HEADWATER_CLOCK_S");
        known = text ? atol(text) : 0;
        read = 1;
    }
    return known;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*next)(clockid_t, struct timespec *);
    if (!next && !(next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime")))
        return (int)syscall(SYS_clock_gettime, clock, now);
    int failed = next(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    if (!failed && now) {
        now->tv_sec = exact.tv_sec;
        now->tv_usec = exact.tv_nsec / 1000;
    }
    return failed;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to)
        *to = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *now, int base) {
    return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, now) ? base : 0;
}

static struct timespec right(const struct timespec *until) {
    struct timespec true_time = *until;
    if (true_time.tv_sec > LATE)
        true_time.tv_sec -= offset();
    return true_time;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    static int (*next)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!next) { /* of its versions the newest: the oldest one knows another kind of condition */
        void *found = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
        next = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))(found ? found : dlsym(RTLD_NEXT, "pthread_cond_timedwait"));
    }
    struct timespec true_time = right(until);
    return next(cond, mutex, &true_time);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    static int (*next)(pthread_mutex_t *, const struct timespec *);
    if (!next)
        next = (int (*)(pthread_mutex_t *, const struct timespec *))dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
    struct timespec true_time = right(until);
    return next(mutex, &true_time);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    static int (*next)(sem_t *, const struct timespec *);
    if (!next)
        next = (int (*)(sem_t *, const struct timespec *))dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec true_time = right(until);
    return next(semaphore, &true_time);
}

int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict until) {
    static int (*next)(cnd_t *, mtx_t *, const struct timespec *);
    if (!next)
        next = (int (*)(cnd_t *, mtx_t *, const struct timespec *))dlsym(RTLD_NEXT, "cnd_timedwait");
    struct timespec true_time = right(until);
    return next(cond, mutex, &true_time);
}
