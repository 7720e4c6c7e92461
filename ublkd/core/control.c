/* SPDX-License-Identifier: MIT */
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "uapi.h"

#define CANCEL_GRACE_MS 1000

#define UD_CANCEL 0 /* commands are numbered from 1 */

struct control {
	int fd;
	bool stuck; /* a command outlived its deadline and its cancellation */
	uint64_t seq; /* the last command's user_data */
	struct io_uring ring;
	/*
	 * Commands that sleep run in a kernel worker that may outlive our
	 * wait, so what they read and write is ours and never the caller's.
	 */
	unsigned char *buf;
};

int control_init(struct control **out)
{
	struct io_uring_params p = { .flags = IORING_SETUP_SQE128 };
	struct control *c = calloc(1, sizeof(*c));
	int ret = -ENOMEM;

	if (!c)
		return ret;
	c->buf = calloc(1, CONTROL_BUF_BYTES);
	if (!c->buf)
		goto free_control;
	c->fd = open(UBLK_CONTROL_PATH, O_RDWR | O_CLOEXEC);
	if (c->fd < 0) {
		ret = -errno;
		goto free_buf;
	}
	ret = io_uring_queue_init_params(4, &c->ring, &p);
	if (ret < 0)
		goto close_fd;
	*out = c;
	return 0;

close_fd:
	close(c->fd);
free_buf:
	free(c->buf);
free_control:
	free(c);
	return ret;
}

void control_deinit(struct control *c)
{
	if (!c)
		return;
	io_uring_queue_exit(&c->ring);
	close(c->fd);
	/* A stuck command may still write there: one page is kept for it. */
	if (!c->stuck)
		free(c->buf);
	free(c);
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Waits for the CQE of `want`; 0 with its result in *res, or -ETIMEDOUT. */
static int wait_for(struct control *c, uint64_t want, int64_t until, int *res)
{
	for (;;) {
		int64_t left = until - now_ms();
		struct __kernel_timespec ts;
		struct io_uring_cqe *cqe;
		uint64_t got;
		int ret;

		if (left < 0)
			left = 0;
		ts.tv_sec = left / 1000;
		ts.tv_nsec = left % 1000 * 1000000;
		ret = io_uring_submit_and_wait_timeout(&c->ring, &cqe, 1, &ts,
						       NULL);
		if (ret < 0 && ret != -ETIME && ret != -EINTR &&
		    ret != -EAGAIN && ret != -EBUSY)
			return ret;
		if (io_uring_peek_cqe(&c->ring, &cqe)) {
			if (!left)
				return -ETIMEDOUT;
			continue;
		}
		got = cqe->user_data;
		*res = cqe->res;
		io_uring_cqe_seen(&c->ring, cqe);
		if (got == want)
			return 0;
	}
}

/* The deadline has passed: take the command back, or give it up. */
static int cancel(struct control *c)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&c->ring);
	int res;

	if (sqe) {
		memset(sqe, 0, 2 * sizeof(*sqe));
		io_uring_prep_cancel64(sqe, c->seq, 0);
		sqe->user_data = UD_CANCEL;
	}
	if (wait_for(c, c->seq, now_ms() + CANCEL_GRACE_MS, &res)) {
		c->stuck = true;
		return -ETIMEDOUT;
	}
	return res == -EINTR || res == -ECANCELED ? -ETIMEDOUT : res;
}

int control_cmd(struct control *c, uint32_t op, uint32_t dev_id, uint64_t data,
		void *buf, uint16_t len, uint16_t path_len,
		unsigned int timeout_ms)
{
	struct ublksrv_ctrl_cmd cmd = {
		.dev_id = dev_id,
		.queue_id = (__u16)-1,
		.len = len,
		.addr = len ? (__u64)(uintptr_t)c->buf : 0,
		.data = { data },
		.dev_path_len = path_len,
	};
	struct io_uring_sqe *sqe;
	int ret, res;

	if (c->stuck && wait_for(c, c->seq, now_ms(), &res))
		return -EBUSY;
	c->stuck = false; /* its late answer has come */
	if (len > CONTROL_BUF_BYTES)
		return -EINVAL;
	sqe = io_uring_get_sqe(&c->ring);
	if (!sqe)
		return -EBUSY;
	if (len)
		memcpy(c->buf, buf, len);
	memset(sqe, 0, 2 * sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = c->fd;
	sqe->off = op; /* cmd_op is its low half */
	sqe->user_data = ++c->seq;
	memcpy(&sqe->addr3, &cmd, sizeof(cmd)); /* the command area */

	ret = wait_for(c, c->seq, now_ms() + timeout_ms, &res);
	if (ret == -ETIMEDOUT) {
		res = cancel(c);
	} else if (ret < 0) {
		c->stuck = true; /* nobody knows what became of it */
		return ret;
	}
	if (res >= 0 && len)
		memcpy(buf, c->buf, len);
	return res;
}
