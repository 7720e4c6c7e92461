/* SPDX-License-Identifier: MIT */
/*
 * A queue from the inside, for queue.c (its thread) and queue_new.c (its
 * making, its freeing, and who waits for it).
 */
#ifndef UBLKD_QUEUE_IMPL_H
#define UBLKD_QUEUE_IMPL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "group.h"
#include "own.h"
#include "queue.h"
#include "ring.h"

enum tag_state {
	TAG_STOPPED, /* the driver has nothing of ours and sends nothing */
	TAG_FETCHING, /* the driver owns it: FETCH or COMMIT_AND_FETCH */
	TAG_SERVING, /* a group leads its request */
};

enum queue_state { QUEUE_NEW, QUEUE_READY, QUEUE_ENDED };

/* What was committed last, kept until the driver has taken it. */
struct commit {
	int result;
	bool pending;
	uint8_t tries;
};

#define MAX_CQES 65536U /* IORING_MAX_CQ_ENTRIES */

struct queue {
	struct queue_config cfg;
	int *files; /* slot 0 is /dev/ublkcN */
	struct ring ring;
	struct lease_table leases;
	struct group_env env;
	struct group *groups; /* one per tag, and the target's own */
	struct member *members; /* max_members per tag */
	uint8_t *tags; /* enum tag_state */
	struct commit *commits; /* one per tag */
	unsigned int nr_unlend_tries;
	unsigned int nr_live; /* tags that are not stopped */
	unsigned int nr_serving;
	bool leaving; /* the driver has begun to take back what it had */
	const struct ublksrv_io_desc *iods;
	size_t iods_bytes;
	int error; /* the first one that ends the queue */
	uint64_t now; /* ns, of this turn */
	uint64_t wakes; /* read from groups_wake_fd() */

	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum queue_state state; /* under lock, as is: */
	int ended_with;
};

/*
 * CQEs that one tag may have outstanding: its members and its commit, and
 * what lends its pages, once for all of them or once for each; a member that
 * sends without a copy has two.
 */
static inline unsigned int queue_cqes_per_tag(const struct queue_config *cfg)
{
	if (cfg->lease == LEASE_GROUP || cfg->ops->flags & UBLKD_SENDS_ZC)
		return 2U * cfg->max_members + 3;
	return cfg->max_members + 3U;
}

/* queue.c: env->commit of every group. */
void queue_commit(struct group *g, int result);

/* queue_new.c: wakes who waits for the queue. */
void queue_set_state(struct queue *q, enum queue_state state, int ret);

#endif
