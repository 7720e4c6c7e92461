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
};

/* Everything that the engine has put into the SQ since the last look. */
static void look(struct fake *f)
{
	if (f->cfg.watch)
		watch_look(&f->watch, &f->ring.uring.sq, f->iods, f->pages,
			   f->cfg.max_io);
}

/* --- what stands for queue.c ------------------------------------------- */

static void commit(struct group *g, int result)
{
	struct fake *f = g->env->owner;

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
	uint16_t tag = (uint16_t)user_data;
	uint16_t member = (uint16_t)(user_data >> 16);

	if (f->cfg.watch)
		res = watch_ended(&f->watch, tag, member, res);
	group_cqe(&f->groups[tag], member, res);
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
	group_begin(&f->groups[tag], &f->iods[tag], stats_now());
	look(f);
	return 0;
}

int fake_run(struct fake *f, uint32_t turns)
{
	uint64_t until = stats_now() + RUN_NS;

	while (f->nr_serving) {
		int ret;

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
	return 0;
}

void fake_script(struct fake *f, struct outcome *outcomes, uint32_t n)
{
	watch_script(&f->watch, outcomes, n);
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
		       ? watch_init(&f->watch, f->cfg.depth, f->cfg.max_members)
		       : -ENOMEM;
}

static void wire(struct fake *f)
{
	f->leases.kind = f->cfg.lease;
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
	unsigned int cqes = f->cfg.depth * (f->cfg.max_members + 1U);
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
	return ret;
}

/* `auto`: every slot of the buffer table has pages of ours behind it. */
static int fill_table(struct fake *f)
{
	f->pages = map((size_t)f->cfg.depth * f->cfg.max_io,
		       PROT_READ | PROT_WRITE);
	if (!f->pages)
		return -ENOMEM;
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
	ret = lease_table_init(&f->leases, &f->ring, cfg->depth);
	if (ret == 0 && cfg->lease == LEASE_AUTO)
		ret = fill_table(f);
	if (ret < 0)
		goto free_fake;
	*out = f;
	return 0;

free_fake:
	fake_free(f);
	return ret;
}

void fake_free(struct fake *f)
{
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
