/* A load generator: plays ready-made requests and measures how they are answered.
 *
 *   load PORT FILE CONNECTIONS WARMUP_S SECONDS RATE
 *
 * FILE holds requests, each a 32-bit length in native order and then its bytes; connection i plays
 * request i (modulo their number) again and again. RATE 0: each connection asks again as soon as it
 * is answered, and they begin one after another during the first half of the warm-up. Otherwise so
 * many requests are due in a second, evenly, on the connection that is idle for longest; latency
 * counts from when a request was due. Prints "begin" after the warm-up, "end" SECONDS later, and what
 * was answered between them as one line of JSON; times in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HEAD = 8192, MAX_EVENTS = 512 };

struct request {
    const char *text;
    size_t size;
};

/* Where in an answer a connection is. */
enum state { IDLE, HEAD, BODY, CHUNK_SIZE, CHUNK, TRAILER };

struct connection {
    int fd;
    const struct request *request;
    size_t sent;
    enum state state;
    char head[MAX_HEAD];
    size_t head_size;
    size_t left; /* of the body or the chunk */
    size_t line; /* bytes of the line being read */
    bool ok;
    int64_t due, last; /* when it was due, and when its last bytes came */
};

struct samples {
    uint32_t *values;
    size_t size, room;
};

static struct connection *all;
static int num_all, *idle, num_idle, first_idle, poller, port;
static int64_t now, started_at, ramp_us, begin_at, end_at;
static struct samples latencies, gaps;
static size_t num_ok, num_failed, num_events;

static int64_t now_us(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000LL + at.tv_nsec / 1000;
}

static _Noreturn void fail(const char *what) {
    perror(what);
    exit(1);
}

static bool measuring(void) { return now >= begin_at && now < end_at; }

static void note(struct samples *samples, int64_t us) {
    if (samples->size == samples->room) {
        samples->room = samples->room ? 2 * samples->room : 1 << 16;
        samples->values = realloc(samples->values, samples->room * sizeof *samples->values);
    }
    samples->values[samples->size++] = us < UINT32_MAX ? (uint32_t)us : UINT32_MAX;
}

static int ascending(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static void sort(struct samples *samples) {
    if (samples->size) qsort(samples->values, samples->size, sizeof *samples->values, ascending);
}

static uint32_t quantile(const struct samples *samples, double q) {
    return samples->size ? samples->values[(size_t)(q * (double)(samples->size - 1))] : 0;
}

/* ---- sending */

static void watch(struct connection *it, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = it};
    epoll_ctl(poller, operation, it->fd, &event);
}

static void dial(struct connection *it) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    it->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (it->fd < 0 || connect(it->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(it->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    it->state = IDLE;
    watch(it, EPOLL_CTL_ADD, EPOLLIN);
}

static void rest(struct connection *it) {
    idle[(first_idle + num_idle++) % num_all] = (int)(it - all);
}

/* It broke: a failure if it owed an answer. Servers may close what is idle. */
static void break_off(struct connection *it) {
    bool owed = it->state != IDLE;
    close(it->fd);
    dial(it);
    if (!owed) return;
    num_failed += measuring();
    rest(it);
}

static void go_on(struct connection *it) {
    while (it->sent < it->request->size) {
        const char *from = it->request->text + it->sent;
        ssize_t size = send(it->fd, from, it->request->size - it->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (size < 0 && errno == EAGAIN) {
            watch(it, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return;
        }
        if (size < 0) {
            break_off(it);
            return;
        }
        it->sent += (size_t)size;
    }
}

static void ask(int64_t due) {
    struct connection *it = &all[idle[first_idle]];
    first_idle = (first_idle + 1) % num_all;
    num_idle--;
    it->state = HEAD;
    it->sent = it->head_size = 0;
    it->due = due;
    it->last = 0;
    go_on(it);
}

/* ---- receiving */

static void finish(struct connection *it) {
    it->state = IDLE;
    rest(it);
    if (!measuring()) return;
    if (it->ok)
        num_ok++, note(&latencies, now - it->due);
    else
        num_failed++;
}

static size_t take_head(struct connection *it, const char *data, size_t size) {
    size_t before = it->head_size, room = MAX_HEAD - 1 - before, part = size < room ? size : room;
    memcpy(it->head + before, data, part);
    it->head[before + part] = '\0';
    it->head_size += part;
    char *end = memmem(it->head, it->head_size, "\r\n\r\n", 4);
    if (end == NULL) {
        if (part == room) fail("the head of an answer is too long");
        return part;
    }
    end[2] = '\0';
    char *length = strcasestr(it->head, "\r\ncontent-length:");
    it->ok = strncmp(it->head + 8, " 200", 4) == 0;
    it->left = length ? strtoull(length + 17, NULL, 10) : 0;
    it->line = 0;
    it->state = length ? BODY : CHUNK_SIZE;
    if (length && it->left == 0) finish(it);
    return (size_t)(end + 4 - it->head) - before;
}

static size_t take_data(struct connection *it, const char *data, size_t size) {
    size_t part = size < it->left ? size : it->left;
    it->left -= part;
    for (const char *at = data; (at = memmem(at, (size_t)(data + part - at), "data:", 5)); at += 5)
        num_events += measuring();
    if (it->left > 0) return part;
    if (it->state == BODY)
        finish(it);
    else
        it->state = CHUNK_SIZE;
    return part;
}

/* One byte of the line with a chunk's size, of the line end before it, or of the trailer. */
static void take_line(struct connection *it, char byte) {
    if (byte == '\r') return;
    if (byte != '\n') {
        if (it->state == CHUNK_SIZE)
            it->left = it->left * 16 + (size_t)((byte & 15) + (byte > '9' ? 9 : 0));
        it->line++;
        return;
    }
    if (it->state == TRAILER && it->line == 0)
        finish(it);
    else if (it->state == CHUNK_SIZE && it->line > 0)
        it->state = it->left ? CHUNK : TRAILER;
    it->line = 0;
}

static void take(struct connection *it, const char *data, size_t size) {
    if (it->state >= BODY && it->last && measuring()) note(&gaps, now - it->last);
    it->last = now;
    while (size > 0 && it->state != IDLE) {
        size_t part = 1;
        if (it->state == HEAD)
            part = take_head(it, data, size);
        else if (it->state == BODY || it->state == CHUNK)
            part = take_data(it, data, size);
        else
            take_line(it, *data);
        data += part;
        size -= part;
    }
}

static void receive(struct connection *it) {
    static char data[1 << 18];
    ssize_t size = recv(it->fd, data, sizeof data, MSG_DONTWAIT);
    if (size > 0)
        take(it, data, (size_t)size);
    else if (size == 0 || errno != EAGAIN)
        break_off(it);
}

/* ---- the run */

static struct request *read_requests(const char *path, size_t *number) {
    FILE *file = fopen(path, "rb");
    struct request *requests = NULL;
    uint32_t size;
    if (!file) fail(path);
    for (*number = 0; fread(&size, sizeof size, 1, file) == 1; ++*number) {
        char *text = malloc(size);
        if (fread(text, 1, size, file) != size) fail(path);
        requests = realloc(requests, (*number + 1) * sizeof *requests);
        requests[*number] = (struct request){text, size};
    }
    fclose(file);
    return requests;
}

static void wait_until(int64_t at) {
    struct epoll_event events[MAX_EVENTS];
    int64_t left = at > now ? at - now : 0;
    struct timespec timeout = {left / 1000000, left % 1000000 * 1000};
    int number = epoll_pwait2(poller, events, MAX_EVENTS, &timeout, NULL);
    if (number < 0) fail("epoll_pwait2");
    now = now_us();
    for (int i = 0; i < number; i++) {
        struct connection *it = events[i].data.ptr;
        if (events[i].events & EPOLLOUT) {
            watch(it, EPOLL_CTL_MOD, EPOLLIN);
            go_on(it);
        }
        if (events[i].events & ~(uint32_t)EPOLLOUT) receive(it);
    }
}

/* Rate 0. The connections that begin for the first time are the first ones in the queue. */
static void play_closed(int64_t until) {
    static int num_begun;
    while (now < until) {
        int64_t next = until;
        while (num_idle) {
            next = num_begun < num_all ? started_at + ramp_us * num_begun / num_all : now;
            if (next > now) break;
            num_begun += num_begun < num_all;
            ask(now);
        }
        wait_until(num_begun < num_all && next < until ? next : until);
    }
}

static void play_open(int64_t until, double rate) {
    static double num_due;
    while (now < until) {
        int64_t due = started_at;
        while (num_idle && (due = started_at + (int64_t)(num_due * 1e6 / rate)) <= now) {
            num_due++;
            ask(due);
        }
        wait_until(num_idle && due < until ? due : until);
    }
}

static void play(int64_t until, double rate, const char *reached) {
    if (rate > 0)
        play_open(until, rate);
    else
        play_closed(until);
    puts(reached);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    size_t num_requests;
    struct request *requests = read_requests(argv[2], &num_requests);
    double warmup_us = atof(argv[4]) * 1e6, measured_us = atof(argv[5]) * 1e6;
    port = atoi(argv[1]);
    num_all = atoi(argv[3]);
    all = calloc((size_t)num_all, sizeof *all);
    idle = calloc((size_t)num_all, sizeof *idle);
    poller = epoll_create1(0);
    for (int i = 0; i < num_all; i++) {
        all[i].request = &requests[(size_t)i % num_requests];
        dial(&all[i]);
        rest(&all[i]);
    }
    now = started_at = now_us();
    ramp_us = (int64_t)(warmup_us / 2);
    begin_at = now + (int64_t)warmup_us;
    end_at = begin_at + (int64_t)measured_us;
    play(begin_at, atof(argv[6]), "begin");
    play(end_at, atof(argv[6]), "end");
    sort(&latencies);
    sort(&gaps);
    printf("{\"ok\":%zu,\"failed\":%zu,\"events\":%zu,\"p50_us\":%u,\"p99_us\":%u,"
           "\"gap_p50_us\":%u,\"gap_p99_us\":%u}\n",
           num_ok, num_failed, num_events, quantile(&latencies, 0.5), quantile(&latencies, 0.99),
           quantile(&gaps, 0.5), quantile(&gaps, 0.99));
}
