/* SPDX-License-Identifier: MIT */
/* What all groups of a queue share: made, kept count of, and given back. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "group.h"
#include "group_impl.h"
#include "stats.h"

static const void *new_zeroes(void)
{
	void *p = mmap(NULL, ZEROES_BYTES, PROT_READ,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int group_env_init(struct group_env *env, uint16_t depth, const int *files,
		   uint32_t nr_files)
{
	bool late = env->wakes || env->ops->flags & UBLKD_ANSWERS_LATE;

	env->zeroes = new_zeroes();
	env->batch = calloc(depth, sizeof(*env->batch));
	env->lanes = lanes_new(files, nr_files);
	env->nr_lanes = nr_files;
	env->own = own_new(env, depth);
	env->late = late ? late_new() : NULL;
	return env->zeroes && env->batch && env->lanes && env->own &&
			       (env->late || !late)
		       ? 0
		       : -ENOMEM;
}

void group_env_deinit(struct group_env *env)
{
	late_free(env->late);
	free(env->own);
	lanes_free(env->lanes, env->nr_lanes);
	free(env->batch);
	if (env->zeroes)
		munmap((void *)(uintptr_t)env->zeroes, ZEROES_BYTES);
}

/* How its pages were reached in the end. */
static enum lease_kind leased(const struct group *g)
{
	if (g->lease.user_copy)
		return LEASE_USER_COPY;
	return g->lease.ours ? LEASE_REGISTER : g->env->leases->kind;
}

void group_count(const struct group *g, int result, uint64_t now_ns)
{
	struct queue_stats *s = g->env->stats;
	uint64_t took = now_ns - g->began;
	struct recorded *e = recorder_open(&s->recorder);

	e->ended = now_ns;
	e->took = took;
	e->start_sector = g->iod->start_sector;
	e->op_flags = g->iod->op_flags;
	e->nr_sectors = g->iod->nr_sectors;
	e->result = result;
	e->members = g->nr_members;
	e->shorts = g->nr_short;
	e->lease = (uint8_t)leased(g);
	recorder_close(&s->recorder, e);
	stats_end(s, iod_op(g->iod), g->size, result, took);
}
