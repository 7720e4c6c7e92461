/* SPDX-License-Identifier: MIT */
#include "harness.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>

#include "harness_impl.h"

#define RUN_NS 50000000000ULL
#define NOWHERE 15 /* a registered ring that nobody has registered */

/* A ring that has failed submits no more, so it may hold anything. */
void fake_look(struct fake *f)
{
	if (f->cfg.watch && !f->ring.error)
		watch_look(&f->watch);
}

/* --- every submission, even one in the middle of a turn ---------------- */

static _Thread_local struct fake *fakes;

static void look_at(const struct io_uring *ring)
{
	for (struct fake *f = fakes; f; f = f->next)
		if (&f->ring.uring == ring)
			fake_look(f);
}

void fake_enlist(struct fake *f)
{
	f->next = fakes;
	fakes = f;
}

void fake_forget(const struct fake *f)
{
	struct fake **at = &fakes;

	while (*at && *at != f)
		at = &(*at)->next;
	if (*at)
		*at = f->next;
}

/* The linker leads all calls of this library here: meson.build. */
int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __real_io_uring_submit_and_wait(struct io_uring *ring, unsigned int nr);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned int nr);

int __wrap_io_uring_submit(struct io_uring *ring)
{
	look_at(ring);
	return __real_io_uring_submit(ring);
}

int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned int nr)
{
	look_at(ring);
	return __real_io_uring_submit_and_wait(ring, nr);
}

/* --- what stands for queue.c ------------------------------------------- */

void fake_commit(struct group *g, int result)
{
	struct fake *f = g->env->owner;

	fake_look(f);
	if (f->cfg.watch && !f->ring.error)
		watch_commit(&f->watch, g->tag);
	f->commits[g->tag]++;
	f->results[g->tag] = result;
	if (f->serving[g->tag])
		f->nr_serving--;
	f->serving[g->tag] = false;
	group_count(g, result, stats_now());
}

static void complete(struct fake *f, uint64_t user_data, int res,
		     uint32_t flags)
{
	struct group *g = &f->groups[(uint16_t)user_data];

	if (user_data & UD_WAKE) {
		fake_woken(f, res);
		return;
	}
	if (f->cfg.watch)
		res = watch_ended(&f->watch, user_data, res, flags);
	switch (user_data & (UD_LEND | UD_UNLEND)) {
	case UD_LEND | UD_UNLEND:
		break;
	case UD_LEND:
		group_lent(g, res);
		break;
	case UD_UNLEND:
		f->nr_unlent++;
		f->unlent = res;
		break;
	default:
		group_cqe(g, (uint16_t)(user_data >> 16), res, flags);
	}
	fake_look(f);
}

unsigned int fake_reap(struct fake *f)
{
	struct io_uring_cqe *cqe;
	unsigned int head, n = 0;

	io_uring_for_each_cqe(&f->ring.uring, head, cqe)
	{
		n++;
		complete(f, cqe->user_data, cqe->res, cqe->flags);
	}
	io_uring_cq_advance(&f->ring.uring, n);
	groups_turn(&f->env);
	fake_look(f);
	return n;
}

/* The queue has a READ on it all the time; here it is waited for. */
static int wait_for_answers(struct fake *f)
{
	int fd = groups_wake_fd(&f->env);
	struct pollfd told = { .fd = fd, .events = POLLIN };
	uint64_t until = stats_now() + RUN_NS;
	eventfd_t n;
	int ret;

	do /* a test is sent a signal every second: conftest.py */
		ret = poll(&told, 1, RUN_NS / 1000000);
	while (ret < 0 && errno == EINTR && stats_now() < until);
	if (ret != 1 || eventfd_read(fd, &n))
		return -ETIME;
	groups_answered(&f->env);
	fake_look(f);
	return 0;
}

int fake_begin(struct fake *f, uint16_t tag, uint32_t op_flags, uint64_t sector,
	       uint32_t sectors)
{
	if (f->serving[tag])
		return -EBUSY;
	f->iods[tag] = (struct ublksrv_io_desc){
		.op_flags = op_flags,
		.start_sector = sector,
		.nr_sectors = sectors,
	};
	f->serving[tag] = true;
	f->nr_serving++;
	f->commits[tag] = 0;
	watch_begin(&f->watch, tag,
		    f->cfg.lease == LEASE_AUTO &&
			    !(op_flags & UBLK_IO_F_NEED_REG_BUF));
	group_begin(&f->groups[tag], &f->iods[tag], stats_now());
	fake_look(f);
	return 0;
}

struct group *fake_group(struct fake *f, uint16_t tag)
{
	return &f->groups[tag];
}

int fake_run(struct fake *f, uint32_t turns)
{
	uint64_t until = stats_now() + RUN_NS;

	groups_turn(&f->env); /* what has begun came in one turn */
	fake_look(f);
	while (f->nr_serving || watch_of_requests(&f->watch)) {
		int ret;

		if (f->watch.broken)
			return -EPROTO;
		if (f->watch.unseen)
			return -EOVERFLOW;
		if (f->cfg.watch && !f->hears && !f->watch.in_flight &&
		    !f->ring.error) {
			if (groups_wake_fd(&f->env) < 0)
				return -ENODATA;
			if (!turns--)
				return -ETIME;
			ret = wait_for_answers(f);
			if (ret < 0)
				return ret;
			continue;
		}
		if (!turns-- || stats_now() > until)
			return -ETIME;
		ret = ring_submit_and_wait(&f->ring);
		if (ret < 0)
			return ret;
		fake_reap(f);
	}
	return f->watch.broken ? -EPROTO : 0;
}

void fake_script(struct fake *f, struct outcome *outcomes, uint32_t n)
{
	watch_script(&f->watch, outcomes, n);
	f->nr_unlent = 0;
}

/* --- what a test may see ----------------------------------------------- */

int fake_result(const struct fake *f, uint16_t tag)
{
	return f->results[tag];
}

uint32_t fake_commits(const struct fake *f, uint16_t tag)
{
	return f->commits[tag];
}

const char *fake_broken(const struct fake *f)
{
	return f->watch.broken;
}

uint32_t fake_unlent(const struct fake *f, int *res)
{
	*res = f->unlent;
	return f->nr_unlent;
}

unsigned char *fake_pages(struct fake *f, uint16_t tag)
{
	unsigned char *base = f->pages ? f->pages : f->leases.arena;

	return base + (uint64_t)tag * f->cfg.max_io;
}

struct group_env *fake_env(struct fake *f)
{
	return &f->env;
}

uint32_t fake_issued(const struct fake *f, const struct issued **out)
{
	*out = f->watch.log;
	return f->watch.nr_log;
}

void fake_break_ring(struct fake *f, bool broken)
{
	f->ring.uring.enter_ring_fd = broken ? NOWHERE : f->enter_fd;
}
