/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "queue_impl.h"

void queue_set_state(struct queue *q, enum queue_state state, int ret)
{
	pthread_mutex_lock(&q->lock);
	q->state = state;
	q->ended_with = ret;
	pthread_cond_broadcast(&q->changed);
	pthread_mutex_unlock(&q->lock);
}

int queue_wait_ready(struct queue *q, unsigned int timeout_ms)
{
	struct timespec until;
	int ret = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += timeout_ms % 1000 * 1000000L;
	if (until.tv_nsec >= 1000000000L) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000L;
	}
	pthread_mutex_lock(&q->lock);
	while (q->state == QUEUE_NEW && !ret)
		ret = -pthread_cond_timedwait(&q->changed, &q->lock, &until);
	if (q->state == QUEUE_ENDED)
		ret = q->ended_with < 0 ? q->ended_with : -ECANCELED;
	else if (q->state == QUEUE_READY)
		ret = 0;
	pthread_mutex_unlock(&q->lock);
	return ret;
}

static int init_lock(struct queue *q)
{
	pthread_condattr_t attr;
	int ret = pthread_condattr_init(&attr);

	if (ret)
		return -ret;
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	ret = pthread_cond_init(&q->changed, &attr);
	pthread_condattr_destroy(&attr);
	if (ret)
		return -ret;
	return -pthread_mutex_init(&q->lock, NULL);
}

static int alloc(struct queue *q)
{
	size_t depth = q->cfg.depth;

	q->files = calloc(q->cfg.nr_files + 1, sizeof(*q->files));
	q->groups = calloc(depth + 1, sizeof(*q->groups));
	q->members = calloc(depth * q->cfg.max_members, sizeof(*q->members));
	q->tags = calloc(depth, sizeof(*q->tags));
	q->commits = calloc(depth, sizeof(*q->commits));
	if (!q->files || !q->groups || !q->members || !q->tags || !q->commits)
		return -ENOMEM;
	return 0;
}

static void wire(struct queue *q)
{
	const struct queue_config *cfg = &q->cfg;

	q->files[0] = cfg->dev_fd;
	for (uint32_t i = 0; i < cfg->nr_files; i++)
		q->files[i + 1] = cfg->files[i];
	q->leases.kind = cfg->lease;
	q->leases.ring = &q->ring;
	q->leases.dev_fd = cfg->dev_fd;
	q->leases.qid = cfg->qid;
	q->leases.slots = cfg->lease_slots;
	q->leases.max_io = cfg->max_io;
	q->leases.fixed_streams = cfg->fixed_streams;
	q->env.groups = q->groups;
	q->env.ring = &q->ring;
	q->env.leases = &q->leases;
	q->env.stats = cfg->stats;
	q->env.ops = cfg->ops;
	q->env.target = cfg->target;
	q->env.block = cfg->block;
	q->env.align = cfg->align;
	q->env.max_members = cfg->max_members;
	q->env.wakes = true;
	q->env.commit = queue_commit;
	q->env.owner = q;
	for (uint16_t tag = 0; tag < cfg->depth; tag++) {
		q->groups[tag].env = &q->env;
		q->groups[tag].tag = tag;
		q->groups[tag].members =
			q->members + (size_t)tag * cfg->max_members;
	}
	if (!cfg->stats->started) /* else it goes on for a dead daemon's */
		cfg->stats->started = stats_now();
	cfg->stats->magic = STATS_MAGIC;
}

int queue_new(const struct queue_config *cfg, struct queue **out)
{
	struct queue *q;
	int ret;

	if (cfg->ops->abi != UBLKD_TARGET_ABI)
		return -ELIBBAD;
	if (!cfg->depth || cfg->depth > UBLK_MAX_QUEUE_DEPTH ||
	    !cfg->max_members || !cfg->max_io || !cfg->block || !cfg->align)
		return -EINVAL;
	if (cfg->depth * queue_cqes_per_tag(cfg) > MAX_CQES)
		return -E2BIG;
	q = calloc(1, sizeof(*q));
	if (!q)
		return -ENOMEM;
	q->cfg = *cfg;
	ret = init_lock(q);
	if (ret == 0)
		ret = alloc(q);
	if (ret == 0) {
		wire(q);
		ret = group_env_init(&q->env, cfg->depth, q->files,
				     cfg->nr_files + 1);
	}
	if (ret < 0) {
		queue_free(q);
		return ret;
	}
	*out = q;
	return 0;
}

void queue_free(struct queue *q)
{
	/* with the ring broken somebody may still hold a request */
	if (!q || q->nr_serving || (q->env.own && groups_busy(&q->env)))
		return;
	group_env_deinit(&q->env);
	free(q->commits);
	free(q->tags);
	free(q->members);
	free(q->groups);
	free(q->files);
	pthread_cond_destroy(&q->changed);
	pthread_mutex_destroy(&q->lock);
	free(q);
}
