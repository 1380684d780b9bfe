/* An engine that does no work, so that what is measured is what stands before it.
 *
 *   engine PORT NUM_CHUNKS INTERVAL_US
 *
 * NUM_CHUNKS 0: every POST is answered at once, or after INTERVAL_US. Otherwise it is answered by a
 * stream of so many server-sent events, one each INTERVAL_US. GET knows /v1/models, /health and a
 * metrics page with vLLM's names. HTTP/1.1 with keep-alive on loopback; a request has a
 * content-length, and requests are not pipelined. One thread; ends with its parent.
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

enum { MAX_FDS = 16384, MAX_HEAD = 16384, MAX_EVENTS = 512, TICK_MS = 1 };

struct connection {
    char head[MAX_HEAD];
    size_t head_size;
    size_t body_size;
    size_t body_left;
    bool in_body;
    int64_t due; /* microseconds; 0: nothing is owed */
    int chunks_left;
};

static struct connection *connections[MAX_FDS];
static int num_chunks, num_running, top_fd;
static int64_t interval;
static int poller;

static const char PLAIN[] =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s";
static const char COMPLETION[] =
    "{\"id\":\"chatcmpl-0\",\"object\":\"chat.completion\",\"created\":1700000000,"
    "\"model\":\"fake\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
    "\"content\":\"The tests pass now; the missing import was the cause.\"},"
    "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":%zu,"
    "\"completion_tokens\":12,\"total_tokens\":%zu}}";
static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    "transfer-encoding: chunked\r\n\r\n";
static const char EVENT[] =
    "data: {\"id\":\"chatcmpl-0\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
    "\"model\":\"fake\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},"
    "\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char DONE[] = "data: [DONE]\n\n";
static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"fake\",\"object\":\"model\",\"owned_by\":\"vllm\"}]}";
static const char METRICS[] =
    "vllm:num_requests_running{model_name=\"fake\"} %d\n"
    "vllm:num_requests_waiting{model_name=\"fake\"} 0\n"
    "vllm:kv_cache_usage_perc{model_name=\"fake\"} 0.1\n"
    "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"1000000\"} 1.0\n";

static int64_t now_us(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000LL + at.tv_nsec / 1000;
}

static void drop(int fd) {
    num_running -= connections[fd]->due != 0;
    free(connections[fd]);
    connections[fd] = NULL;
    close(fd);
}

/* False: the other side is gone or does not read, and the connection was dropped. */
static bool say(int fd, const char *text, size_t size) {
    if (send(fd, text, size, MSG_NOSIGNAL) == (ssize_t)size) return true;
    drop(fd);
    return false;
}

static bool answer(int fd, const char *body) {
    char text[2048];
    return say(fd, text, (size_t)snprintf(text, sizeof text, PLAIN, strlen(body), body));
}

static bool complete(int fd) {
    char body[1024];
    size_t tokens = connections[fd]->body_size / 4; /* about as many as English text has */
    snprintf(body, sizeof body, COMPLETION, tokens, tokens + 12);
    return answer(fd, body);
}

static bool get(int fd, const char *target) {
    static const char missing[] = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
    char page[1024];
    if (strncmp(target, "/v1/models ", 11) == 0) return answer(fd, MODELS);
    if (strncmp(target, "/health ", 8) == 0) return answer(fd, "{}");
    if (strncmp(target, "/metrics ", 9) != 0) return say(fd, missing, sizeof missing - 1);
    snprintf(page, sizeof page, METRICS, num_running);
    return answer(fd, page);
}

/* A whole request has come. */
static bool serve(int fd) {
    struct connection *it = connections[fd];
    if (strncmp(it->head, "GET ", 4) == 0) return get(fd, it->head + 4);
    if (strncmp(it->head, "POST /v1/saga/", 14) == 0) return get(fd, " "); /* has no plugin */
    if (num_chunks == 0 && interval == 0) return complete(fd);
    it->due = now_us() + interval;
    it->chunks_left = num_chunks;
    num_running++;
    return num_chunks == 0 || say(fd, STREAM_HEAD, sizeof STREAM_HEAD - 1);
}

/* What is due now: the next event of a stream, or a late answer. */
static void pay(int fd) {
    struct connection *it = connections[fd];
    char text[1024];
    int size;
    if (num_chunks > 0 && it->chunks_left > 1) {
        it->due += interval;
        it->chunks_left--;
        size = snprintf(text, sizeof text, "%zx\r\n%s\r\n", sizeof EVENT - 1, EVENT);
        say(fd, text, (size_t)size);
        return;
    }
    it->due = 0;
    num_running--;
    if (num_chunks == 0) {
        complete(fd);
        return;
    }
    size = snprintf(text, sizeof text, "%zx\r\n%s%s\r\n0\r\n\r\n", sizeof EVENT + sizeof DONE - 2,
                    EVENT, DONE);
    say(fd, text, (size_t)size);
}

/* Reads a head that is complete; false: it is not one that is served here. */
static bool begin_body(struct connection *it) {
    char *length = strcasestr(it->head, "\r\ncontent-length:");
    if (strcasestr(it->head, "\r\ntransfer-encoding:")) return false;
    it->body_size = it->body_left = length ? strtoull(length + 17, NULL, 10) : 0;
    it->in_body = true;
    return true;
}

/* Takes in what has come; false: the connection was dropped. */
static bool take(int fd, const char *data, size_t size) {
    struct connection *it = connections[fd];
    while (size > 0) {
        if (!it->in_body) {
            size_t before = it->head_size, room = MAX_HEAD - 1 - before;
            size_t part = size < room ? size : room;
            memcpy(it->head + before, data, part);
            it->head[before + part] = '\0';
            char *end = memmem(it->head, before + part, "\r\n\r\n", 4);
            it->head_size = end ? (size_t)(end + 4 - it->head) : before + part;
            if (end) end[2] = '\0';
            if (end ? !begin_body(it) : part == room) {
                drop(fd);
                return false;
            }
            data += it->head_size - before;
            size -= it->head_size - before;
        }
        if (it->in_body) {
            size_t part = size < it->body_left ? size : it->body_left;
            it->body_left -= part;
            data += part;
            size -= part;
            if (it->body_left == 0) {
                it->in_body = false;
                it->head_size = 0;
                if (!serve(fd)) return false;
            }
        }
    }
    return true;
}

static void receive(int fd) {
    static char data[1 << 18];
    ssize_t size = recv(fd, data, sizeof data, 0);
    if (size > 0)
        take(fd, data, (size_t)size);
    else if (size == 0 || errno != EAGAIN)
        drop(fd);
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connections[fd] = calloc(1, sizeof *connections[fd]);
        if (fd > top_fd) top_fd = fd;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) {
        perror("engine");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    num_chunks = atoi(argv[2]);
    interval = atoll(argv[3]);
    int listener = listen_on(atoi(argv[1]));
    struct epoll_event events[MAX_EVENTS] = {{.events = EPOLLIN, .data.fd = listener}};
    poller = epoll_create1(0);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, events);
    int64_t next_look = 1;
    for (;;) {
        int num_events = epoll_wait(poller, events, MAX_EVENTS, num_running ? TICK_MS : -1);
        for (int i = 0; i < num_events; i++) {
            int fd = events[i].data.fd;
            fd == listener ? accept_all(fd) : receive(fd);
        }
        int64_t now = num_running ? now_us() : 0;
        if (now < next_look) continue;
        next_look = now + TICK_MS * 1000;
        for (int fd = 0; fd <= top_fd; fd++)
            if (connections[fd] && connections[fd]->due && connections[fd]->due <= now) pay(fd);
    }
}
