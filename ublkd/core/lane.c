/* SPDX-License-Identifier: MIT */
#include "lane.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static bool is_stream(int fd)
{
	int type = 0;
	socklen_t len = sizeof(type);

	return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) &&
	       type == SOCK_STREAM;
}

static void make_blocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags >= 0 && flags & O_NONBLOCK)
		(void)fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

struct lane *lanes_new(const int *files, uint32_t n)
{
	struct lane *lanes = calloc(n ? n : 1, sizeof(*lanes));

	if (!lanes)
		return NULL;
	for (uint32_t i = 0; i < n; i++)
		lanes[i].fd = -1;
	for (uint32_t i = 0; i < n; i++) {
		if (!is_stream(files[i]))
			continue;
		lanes[i].fd = fcntl(files[i], F_DUPFD_CLOEXEC, 0);
		if (lanes[i].fd < 0) {
			lanes_free(lanes, n);
			return NULL;
		}
		make_blocking(files[i]);
	}
	return lanes;
}

void lanes_free(struct lane *lanes, uint32_t n)
{
	for (uint32_t i = 0; lanes && i < n; i++)
		if (lanes[i].fd >= 0)
			close(lanes[i].fd);
	free(lanes);
}

int lane_attach(struct lane *l, int fd)
{
	int mine;

	if (!is_stream(fd))
		return -ENOTSOCK;
	if (l->lines[LANE_SEND].first || l->lines[LANE_RECV].first)
		return -EBUSY;
	mine = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (mine < 0)
		return -errno;
	if (l->fd >= 0)
		close(l->fd);
	make_blocking(fd);
	l->fd = mine;
	l->error = 0;
	l->lingers = true;
	return 0;
}

bool lane_enter(struct lane *l, enum lane_way way, struct lane_turn *t)
{
	struct lane_line *line = &l->lines[way];
	bool alone = !line->first;

	t->next = NULL;
	if (alone)
		line->first = t;
	else
		line->last->next = t;
	line->last = t;
	return alone;
}

struct lane_turn *lane_leave(struct lane *l, enum lane_way way)
{
	struct lane_line *line = &l->lines[way];

	line->first = line->first->next;
	return line->first;
}

void stream_abort(int fd)
{
	const struct sockaddr nobody = { .sa_family = AF_UNSPEC };

	(void)shutdown(fd, SHUT_RDWR);
	/* TCP would go on trying to deliver what it has, and keep its pages */
	(void)connect(fd, &nobody, sizeof(nobody));
}

void lane_break(struct lane *l, int err)
{
	if (l->error)
		return;
	l->error = err < 0 ? err : -EPIPE;
	if (l->lingers)
		(void)shutdown(l->fd, SHUT_WR);
	else
		stream_abort(l->fd);
}

int lane_recv_now(const struct lane *l, void *memory, uint32_t len)
{
	ssize_t got;

	if (l->error)
		return l->error;
	if (l->lines[LANE_RECV].first)
		return -EAGAIN; /* it comes first */
	do
		got = recv(l->fd, memory, len, MSG_DONTWAIT);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return errno == EWOULDBLOCK ? -EAGAIN : -errno;
	return got ? (int)got : -ECONNRESET;
}

void lane_end(struct lane *l, const void *last, uint32_t len)
{
	if (l->error)
		return;
	if (!l->lines[LANE_SEND].first)
		(void)send(l->fd, last, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	l->error = -ESHUTDOWN;
	(void)shutdown(l->fd, SHUT_RDWR);
}

/* --- the probe --------------------------------------------------------- */

/* One byte through `fd`, from or into the one registered buffer. */
static int try_fixed(struct io_uring *ring, uint8_t opcode, int fd, char *byte)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;
	int ret;

	if (!sqe)
		return -EBUSY;
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = opcode;
	sqe->fd = fd;
	sqe->addr = (__u64)(uintptr_t)byte;
	sqe->len = 1;
	sqe->ioprio = IORING_RECVSEND_FIXED_BUF;
	ret = io_uring_submit_and_wait(ring, 1);
	if (ret >= 0)
		ret = io_uring_wait_cqe(ring, &cqe);
	if (ret < 0)
		return ret;
	ret = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	return ret;
}

/* A kernel that does not know the flag says -EINVAL or ignores it. */
static int probe(struct io_uring *ring, const int *pair)
{
	char bytes[2] = { 's', 0 };
	struct iovec iov = { bytes, sizeof(bytes) };
	int ret = io_uring_register_buffers(ring, &iov, 1);

	if (ret < 0)
		return ret;
	ret = try_fixed(ring, IORING_OP_SEND, pair[0], &bytes[0]);
	if (ret == 1)
		ret = try_fixed(ring, IORING_OP_RECV, pair[1], &bytes[1]);
	if (ret == -EINVAL)
		return 0;
	if (ret < 0)
		return ret;
	return ret == 1 && bytes[1] == 's';
}

int lane_probe(void)
{
	struct io_uring ring;
	int pair[2];
	int ret;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return -errno;
	ret = io_uring_queue_init(2, &ring, 0);
	if (ret == 0) {
		ret = probe(&ring, pair);
		io_uring_queue_exit(&ring);
	}
	close(pair[0]);
	close(pair[1]);
	return ret;
}
