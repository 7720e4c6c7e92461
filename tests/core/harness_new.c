/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness_impl.h"

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

	f->groups = calloc(depth + 1, sizeof(*f->groups));
	f->iods = calloc(depth, sizeof(*f->iods));
	f->serving = calloc(depth, sizeof(*f->serving));
	f->results = calloc(depth, sizeof(*f->results));
	f->commits = calloc(depth, sizeof(*f->commits));
	f->members = calloc(all, sizeof(*f->members));
	return f->groups && f->iods && f->serving && f->results && f->commits &&
			       f->members
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
	f->leases.fixed_streams = f->cfg.fixed_streams;
	f->env.ring = &f->ring;
	f->env.leases = &f->leases;
	f->env.stats = &f->stats;
	f->env.ops = f->cfg.ops;
	f->env.target = f->cfg.target;
	f->env.block = f->cfg.block;
	f->env.align = 1;
	f->env.max_members = f->cfg.max_members;
	f->env.commit = fake_commit;
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
	unsigned int cqes = f->cfg.depth * (2U * f->cfg.max_members + 2U) + 1U +
			    2U * OWN_MEMBERS;
	int *files = calloc(nr, sizeof(*files));
	int ret = -ENOMEM;

	if (!files)
		return ret;
	files[0] = f->cfg.dev_fd;
	for (uint32_t i = 0; i < f->cfg.nr_files; i++)
		files[i + 1] = f->cfg.files[i];
	f->env.ops = f->cfg.ops;
	f->env.groups = f->groups;
	ret = group_env_init(&f->env, f->cfg.depth, files, nr);
	if (ret == 0)
		ret = ring_init(&f->ring, f->cfg.sqes, cqes, files, nr);
	free(files);
	if (ret < 0)
		return ret;
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
	f->ready_fd = -1;
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
	fake_enlist(f);
	ret = fake_start(f);
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
		(void)fake_end(f);
		ring_deinit(&f->ring);
	}
	if (f->ready_fd >= 0)
		close(f->ready_fd);
	fake_forget(f);
	lease_table_deinit(&f->leases);
	if (f->pages)
		munmap(f->pages, (size_t)f->cfg.depth * f->cfg.max_io);
	group_env_deinit(&f->env);
	watch_deinit(&f->watch);
	free(f->members);
	free(f->commits);
	free(f->results);
	free(f->serving);
	free(f->iods);
	free(f->groups);
	free(f);
}
