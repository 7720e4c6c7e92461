/* SPDX-License-Identifier: MIT */
/*
 * The least that a client of an NBD server can do: requests go out from a
 * registered buffer and answers come into one, as many at once as there are,
 * and nobody looks at either. It keeps no journal and serves no disk, so what
 * it costs is the server, the socket and the turns of the scheduler. For
 * bound.py.
 *
 *     least SOCKET read|write BYTES DEPTH MILLISECONDS [late]
 *
 * prints operations a second. "late", for a depth of 1: an answer is looked at
 * where it is, and taken with the next request. So the server, which waits
 * for that one already, is woken once and not twice.
 */
#include <endian.h>
#include <errno.h>
#include <liburing.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define FIXED_BUF (1U << 2) /* IORING_RECVSEND_FIXED_BUF */
#define DISK (256ULL << 20)

struct request {
	uint32_t magic;
	uint16_t flags, command;
	uint64_t cookie, offset;
	uint32_t length;
} __attribute__((packed));

enum { REPLY = 16, HEADER = sizeof(struct request) };

static struct io_uring ring;
static char *out, *in;
static unsigned int depth;
static uint32_t bytes, answer;
static int is_write;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void get(int fd, void *to, size_t n)
{
	if (recv(fd, to, n, MSG_WAITALL) != (ssize_t)n)
		die("handshake");
}

static int dial(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	char hello[18], export[10];
	uint32_t flags = htobe32(3), option[4] = { 0 };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strncpy(a.sun_path, path, sizeof(a.sun_path) - 1);
	if (fd < 0 || connect(fd, (void *)&a, sizeof(a)))
		die(path);
	get(fd, hello, sizeof(hello));
	memcpy(option, "IHAVEOPT", 8);
	option[2] = htobe32(1); /* EXPORT_NAME, of no length */
	if (write(fd, &flags, 4) != 4 || write(fd, option, 16) != 16)
		die("handshake");
	get(fd, export, sizeof(export));
	return fd;
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Requests for random places, one behind the other; how many bytes. */
static uint32_t fill(unsigned int n)
{
	static uint64_t seed = 1;
	char *at = out;

	for (unsigned int i = 0; i < n; i++) {
		struct request *r = (void *)at;

		seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
		r->magic = htobe32(0x25609513);
		r->command = htobe16(is_write);
		r->offset = htobe64((seed >> 33) % (DISK / bytes) * bytes);
		r->length = htobe32(bytes);
		at += HEADER + (is_write ? bytes : 0);
	}
	return (uint32_t)(at - out);
}

static struct io_uring_sqe *prep(int op, char *at, uint32_t len, int flags)
{
	struct io_uring_sqe *s = io_uring_get_sqe(&ring);

	if (!s)
		abort();
	memset(s, 0, sizeof(*s));
	s->opcode = (uint8_t)op;
	s->flags = IOSQE_FIXED_FILE; /* 0 */
	s->addr = (uintptr_t)at;
	s->len = len;
	s->ioprio = FIXED_BUF;
	s->msg_flags = (uint32_t)flags;
	s->user_data = (uint64_t)op;
	return s;
}

/* Submits, and waits; bytes that were received. */
static uint32_t turn(int *sending, int *receiving)
{
	struct io_uring_cqe *c;
	uint32_t got = 0;

	if (io_uring_submit_and_wait(&ring, 1) < 0)
		die("submit");
	while (!io_uring_peek_cqe(&ring, &c)) {
		errno = -c->res;
		if (c->res <= 0)
			die("connection");
		if (c->user_data == IORING_OP_SEND) {
			*sending = 0;
		} else {
			*receiving = 0;
			got += (uint32_t)c->res;
		}
		io_uring_cqe_seen(&ring, c);
	}
	return got;
}

/* Until then: how many were answered. */
static uint64_t run(uint64_t until)
{
	uint32_t most = depth * answer, got = 0;
	/* what arrives is taken as it comes, or one answer as a whole */
	int how = depth == 1 ? MSG_WAITALL : 0;
	int sending = 0, receiving = 0;
	unsigned int due = depth;
	uint64_t done = 0;

	for (;;) {
		if (now() >= until) { /* a server wants to see the end coming */
			if (due == depth)
				return done;
		} else if (!sending && due) {
			prep(IORING_OP_SEND, out, fill(due), MSG_WAITALL);
			sending = 1;
			due = 0;
		}
		if (!receiving)
			prep(IORING_OP_RECV, in, most - got, how);
		receiving = 1;
		got += turn(&sending, &receiving);
		due += got / answer;
		done += got / answer;
		got %= answer;
	}
}

static uint64_t run_late(uint64_t until)
{
	uint64_t done = 0;
	int late = 0;

	while (now() < until || late) {
		int sending = 1, receiving = 1;
		uint32_t got = 0;

		if (late)
			prep(IORING_OP_RECV, in, answer, MSG_WAITALL)->flags |=
				IOSQE_CQE_SKIP_SUCCESS;
		if (now() >= until) {
			io_uring_submit(&ring);
			return done;
		}
		prep(IORING_OP_SEND, out, fill(1), MSG_WAITALL);
		prep(IORING_OP_RECV, in, answer, MSG_PEEK);
		while (sending || receiving)
			got += turn(&sending, &receiving);
		done++;
		late = got == answer;
		if (late)
			continue;
		receiving = 1; /* the rest was not there yet */
		prep(IORING_OP_RECV, in, answer, MSG_WAITALL);
		while (receiving)
			turn(&sending, &receiving);
	}
	return done;
}

int main(int argc, char **argv)
{
	struct iovec iov;
	uint64_t begin, done, ns;
	size_t room;
	int fd;

	if (argc < 6)
		return 2;
	is_write = !strcmp(argv[2], "write");
	bytes = (uint32_t)atoi(argv[3]);
	answer = REPLY + (is_write ? 0 : bytes);
	depth = (unsigned int)atoi(argv[4]);
	ns = strtoull(argv[5], NULL, 10) * 1000000;
	room = depth * ((size_t)bytes + HEADER + REPLY);
	out = aligned_alloc(4096, (2 * room + 4095) / 4096 * 4096);
	in = out + room;
	memset(out, 7, 2 * room);
	memset(out, 0, room);
	iov = (struct iovec){ out, 2 * room };
	fd = dial(argv[1]);
	if (io_uring_queue_init(64, &ring, 1U << 12 | 1U << 13) ||
	    io_uring_register_files(&ring, &fd, 1) ||
	    io_uring_register_buffers(&ring, &iov, 1))
		die("io_uring");
	io_uring_register_ring_fd(&ring);
	begin = now();
	done = argc > 6 ? run_late(begin + ns) : run(begin + ns);
	printf("%.1f\n", (double)done * 1e9 / (double)(now() - begin));
	((struct request *)out)->command = htobe16(2); /* DISC */
	if (write(fd, out, HEADER) != HEADER)
		return 1;
	return 0;
}
