/* SPDX-License-Identifier: MIT */
#include "ring.h"

#include <errno.h>
#include <string.h>

#define MAX_SQES 4096 /* more would only hold memory: a full SQ submits */

/* Numbers that the oldest supported liburing does not carry. */
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

static int setup(struct ring *r, unsigned int sqes, unsigned int cqes,
		 unsigned int flags)
{
	struct io_uring_params p = {
		/* without SUBMIT_ALL one bad SQE stops the whole batch */
		.flags = IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE |
			 IORING_SETUP_CLAMP | flags,
		.cq_entries = cqes,
	};

	return io_uring_queue_init_params(sqes, &r->uring, &p);
}

int ring_init(struct ring *r, unsigned int sqes, unsigned int cqes,
	      const int *files, unsigned int nr_files)
{
	int ret;

	memset(r, 0, sizeof(*r));
	if (sqes > MAX_SQES)
		sqes = MAX_SQES;
	if (cqes < 2 * sqes)
		cqes = 2 * sqes;
	ret = setup(r, sqes, cqes,
		    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
	if (ret == -EINVAL) /* no DEFER_TASKRUN before 6.1 */
		ret = setup(r, sqes, cqes, IORING_SETUP_COOP_TASKRUN);
	if (ret < 0)
		return ret;
	if (nr_files) {
		ret = io_uring_register_files(&r->uring, files, nr_files);
		if (ret < 0)
			goto exit;
	}
	/* Saves a file look-up per turn; without it all still works. */
	(void)io_uring_register_ring_fd(&r->uring);
	return 0;

exit:
	io_uring_queue_exit(&r->uring);
	return ret;
}

void ring_deinit(struct ring *r)
{
	io_uring_queue_exit(&r->uring);
}

int ring_set_file(struct ring *r, unsigned int slot, int fd)
{
	int ret = io_uring_register_files_update(&r->uring, slot, &fd, 1);

	return ret < 0 ? ret : 0;
}

static bool passing(int ret)
{
	return ret == -EINTR || ret == -EAGAIN || ret == -EBUSY;
}

struct io_uring_sqe *ring_sqe(struct ring *r)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);

	while (!sqe && !r->error) {
		int ret = io_uring_submit(&r->uring);

		if (ret < 0 && !passing(ret))
			r->error = ret;
		sqe = io_uring_get_sqe(&r->uring);
	}
	if (!sqe)
		sqe = &r->nowhere;
	memset(sqe, 0, sizeof(*sqe));
	return sqe;
}

void ring_reserve(struct ring *r, unsigned int n)
{
	while (io_uring_sq_space_left(&r->uring) < n && !r->error) {
		int ret = io_uring_submit(&r->uring);

		if (ret < 0 && !passing(ret))
			r->error = ret;
	}
}

void ring_submit_all(struct ring *r)
{
	while (io_uring_sq_ready(&r->uring) && !r->error) {
		int ret = io_uring_submit(&r->uring);

		if (ret < 0 && !passing(ret))
			r->error = ret;
	}
}

bool ring_submit_and_look(struct ring *r)
{
	ring_submit_all(r);
	(void)io_uring_get_events(&r->uring);
	return io_uring_cq_ready(&r->uring) > 0;
}

int ring_submit_and_wait(struct ring *r)
{
	int ret;

	if (r->error)
		return r->error;
	ret = io_uring_submit_and_wait(&r->uring, 1);
	if (ret < 0 && !passing(ret))
		r->error = ret;
	return r->error;
}
