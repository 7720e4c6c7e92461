/* SPDX-License-Identifier: MIT */
#include "harness.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ring.h"
#include "watch.h"

#define RUN_NS 5000000000ULL
#define NOWHERE 15 /* a registered ring that nobody has registered */

struct fake {
	struct fake_config cfg;
	struct ring ring;
	struct lease_table leases;
	struct queue_stats stats;
	struct group_env env;
	struct group *groups; /* one per tag, as are: */
	struct ublksrv_io_desc *iods;
	bool *serving;
	int *results;
	uint32_t *commits;
	struct member *members; /* max_members per tag */
	struct watch watch;
	unsigned char *pages; /* what the fake kernel lends, by slot */
	unsigned int nr_serving;
	bool open;
	int enter_fd;
	uint32_t nr_unlent; /* failures */
	int unlent;
	struct fake *next;
};

/*
 * Everything that the engine has put into the SQ since the last look. A ring
 * that has failed submits no more, so it may hold anything.
 */
static void look(struct fake *f)
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
			look(f);
}

static void forget(const struct fake *f)
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

static void commit(struct group *g, int result)
{
	struct fake *f = g->env->owner;

	look(f);
	if (f->cfg.watch && !f->ring.error)
		watch_commit(&f->watch, g->tag);
	f->commits[g->tag]++;
	f->results[g->tag] = result;
	if (f->serving[g->tag])
		f->nr_serving--;
	f->serving[g->tag] = false;
	stats_end(&f->stats, iod_op(g->iod), g->size, result,
		  stats_now() - g->began);
}

static void complete(struct fake *f, uint64_t user_data, int res)
{
	struct group *g = &f->groups[(uint16_t)user_data];

	if (f->cfg.watch)
		res = watch_ended(&f->watch, user_data, res);
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
		group_cqe(g, (uint16_t)(user_data >> 16), res);
	}
	look(f);
}

static void reap(struct fake *f)
{
	struct io_uring_cqe *cqe;
	unsigned int head, n = 0;

	io_uring_for_each_cqe(&f->ring.uring, head, cqe)
	{
		n++;
		complete(f, cqe->user_data, cqe->res);
	}
	io_uring_cq_advance(&f->ring.uring, n);
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
	look(f);
	return 0;
}

int fake_run(struct fake *f, uint32_t turns)
{
	uint64_t until = stats_now() + RUN_NS;

	while (f->nr_serving || f->watch.in_flight) {
		int ret;

		if (f->watch.broken)
			return -EPROTO;
		if (f->watch.unseen)
			return -EOVERFLOW;
		if (f->cfg.watch && !f->watch.in_flight && !f->ring.error)
			return -ENODATA;
		if (!turns-- || stats_now() > until)
			return -ETIME;
		ret = ring_submit_and_wait(&f->ring);
		if (ret < 0)
			return ret;
		reap(f);
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

/* --- making and freeing ------------------------------------------------ */

static void *map(size_t bytes, int prot)
{
	void *p = mmap(NULL, bytes, prot,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int alloc(struct fake *f)
{
	size_t depth = f->cfg.depth;
	size_t all = depth * f->cfg.max_members;

	f->groups = calloc(depth, sizeof(*f->groups));
	f->iods = calloc(depth, sizeof(*f->iods));
	f->serving = calloc(depth, sizeof(*f->serving));
	f->results = calloc(depth, sizeof(*f->results));
	f->commits = calloc(depth, sizeof(*f->commits));
	f->members = calloc(all, sizeof(*f->members));
	f->env.zeroes = map(ZEROES_BYTES, PROT_READ);
	return f->groups && f->iods && f->serving && f->results && f->commits &&
			       f->members && f->env.zeroes
		       ? watch_init(&f->watch, &f->cfg, f->iods)
		       : -ENOMEM;
}

static void wire(struct fake *f)
{
	f->leases.kind = f->cfg.lease;
	f->leases.ring = &f->ring;
	f->leases.dev_fd = f->cfg.dev_fd;
	f->leases.qid = f->cfg.qid;
	f->leases.slots = f->cfg.depth;
	f->leases.max_io = f->cfg.max_io;
	f->env.ring = &f->ring;
	f->env.leases = &f->leases;
	f->env.stats = &f->stats;
	f->env.ops = f->cfg.ops;
	f->env.target = f->cfg.target;
	f->env.block = f->cfg.block;
	f->env.align = 1;
	f->env.max_members = f->cfg.max_members;
	f->env.commit = commit;
	f->env.owner = f;
	for (uint16_t tag = 0; tag < f->cfg.depth; tag++) {
		f->groups[tag].env = &f->env;
		f->groups[tag].tag = tag;
		f->groups[tag].members =
			f->members + (size_t)tag * f->cfg.max_members;
	}
}

static int open_ring(struct fake *f)
{
	unsigned int nr = f->cfg.nr_files + 1;
	unsigned int cqes = f->cfg.depth * (2U * f->cfg.max_members + 2U);
	int *files = calloc(nr, sizeof(*files));
	int ret = -ENOMEM;

	if (!files)
		return ret;
	files[0] = f->cfg.dev_fd;
	for (uint32_t i = 0; i < f->cfg.nr_files; i++)
		files[i + 1] = f->cfg.files[i];
	ret = ring_init(&f->ring, f->cfg.sqes, cqes, files, nr);
	free(files);
	f->open = ret == 0;
	f->enter_fd = f->ring.uring.enter_ring_fd;
	f->watch.sq = &f->ring.uring.sq;
	return ret;
}

/*
 * The pages that the fake kernel lends. They stand in the buffer table all
 * the time; who may use them when is watch.c's to say.
 */
static int lend_pages(struct fake *f)
{
	f->pages = map((size_t)f->cfg.depth * f->cfg.max_io,
		       PROT_READ | PROT_WRITE);
	if (!f->pages)
		return -ENOMEM;
	f->watch.pages = f->pages;
	if (f->cfg.lease == LEASE_GROUP) /* has no table */
		return 0;
	for (uint16_t tag = 0; tag < f->cfg.depth; tag++) {
		struct iovec iov = { fake_pages(f, tag), f->cfg.max_io };
		__u64 resource = 0;
		int ret = io_uring_register_buffers_update_tag(
			&f->ring.uring, tag, &iov, &resource, 1);

		if (ret < 0)
			return ret;
	}
	return 0;
}

int fake_new(const struct fake_config *cfg, struct fake **out)
{
	struct fake *f = calloc(1, sizeof(*f));
	int ret;

	if (!f)
		return -ENOMEM;
	f->cfg = *cfg;
	ret = alloc(f);
	if (ret == 0)
		ret = open_ring(f);
	if (ret < 0)
		goto free_fake;
	wire(f);
	ret = lease_table_init(&f->leases, cfg->depth);
	if (ret == 0 && cfg->lease != LEASE_COPY &&
	    cfg->lease != LEASE_USER_COPY)
		ret = lend_pages(f);
	if (ret < 0)
		goto free_fake;
	f->next = fakes;
	fakes = f;
	*out = f;
	return 0;

free_fake:
	fake_free(f);
	return ret;
}

void fake_free(struct fake *f)
{
	forget(f);
	if (f->open) {
		fake_break_ring(f, false);
		ring_deinit(&f->ring);
	}
	lease_table_deinit(&f->leases);
	if (f->pages)
		munmap(f->pages, (size_t)f->cfg.depth * f->cfg.max_io);
	if (f->env.zeroes)
		munmap((void *)(uintptr_t)f->env.zeroes, ZEROES_BYTES);
	watch_deinit(&f->watch);
	free(f->members);
	free(f->commits);
	free(f->results);
	free(f->serving);
	free(f->iods);
	free(f->groups);
	free(f);
}
