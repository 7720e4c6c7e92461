/* SPDX-License-Identifier: MIT */
/*
 * What a target does of its own accord, behind the fake driver: as in
 * queue.c the ring hears of other threads, and the target's part begins
 * before the first request and ends behind the last.
 */
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "harness_impl.h"

#define NS_PER_S 1000000000ULL
#define END_NS (50 * NS_PER_S)

static void listen_for_wakes(struct fake *f)
{
	struct io_uring_sqe *sqe = ring_sqe(&f->ring);

	sqe->opcode = IORING_OP_READ;
	sqe->fd = groups_wake_fd(&f->env);
	sqe->addr = (__u64)(uintptr_t)&f->wakes;
	sqe->len = sizeof(f->wakes);
	sqe->user_data = UD_WAKE;
}

int fake_start(struct fake *f)
{
	int ret;

	if (!f->cfg.ops->start)
		return 0;
	/* whoever polls the ring itself does not hear of what is deferred */
	f->ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (f->ready_fd < 0)
		return -errno;
	ret = io_uring_register_eventfd(&f->ring.uring, f->ready_fd);
	if (ret < 0)
		return ret;
	ret = groups_start(&f->env);
	if (ret < 0)
		return ret;
	f->hears = groups_wake_fd(&f->env) >= 0;
	if (f->hears)
		listen_for_wakes(f);
	return 0;
}

void fake_woken(struct fake *f, int res)
{
	if (res != -EAGAIN && res != -EINTR && res < 0) {
		f->ring.error = res;
		return;
	}
	groups_answered(&f->env);
	listen_for_wakes(f);
	fake_look(f);
}

int fake_fd(const struct fake *f)
{
	return f->ready_fd;
}

uint32_t fake_in_flight(const struct fake *f)
{
	return f->watch.in_flight;
}

int fake_turn(struct fake *f, uint64_t ns)
{
	struct __kernel_timespec ts = {
		.tv_sec = (int64_t)(ns / NS_PER_S),
		.tv_nsec = (long long)(ns % NS_PER_S),
	};
	struct io_uring_cqe *cqe;
	eventfd_t n;
	int ret;

	groups_turn(&f->env);
	fake_look(f);
	if (f->watch.broken)
		return -EPROTO;
	if (f->watch.unseen)
		return -EOVERFLOW;
	if (f->ring.error)
		return f->ring.error;
	(void)eventfd_read(f->ready_fd, &n);
	ret = io_uring_submit_and_wait_timeout(&f->ring.uring, &cqe, 1, &ts,
					       NULL);
	if (ret < 0 && ret != -ETIME && ret != -EINTR)
		return ret;
	return (int)fake_reap(f);
}

bool fake_winds_up(const struct fake *f)
{
	return groups_wind_up(&f->env);
}

int fake_end(struct fake *f)
{
	uint64_t until = stats_now() + END_NS;

	if (!f->cfg.ops->start)
		return 0;
	while (groups_wind_up(&f->env)) {
		int ret = fake_turn(f, NS_PER_S);

		if (ret < 0)
			return ret;
		if (stats_now() > until)
			return -ETIME;
	}
	groups_break(&f->env);
	while (groups_busy(&f->env) || f->watch.in_flight) {
		int ret = fake_turn(f, NS_PER_S);

		if (ret < 0)
			return ret;
		if (stats_now() > until)
			return -ETIME;
	}
	groups_end(&f->env);
	return 0;
}
