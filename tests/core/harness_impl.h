/* SPDX-License-Identifier: MIT */
/* The fake driver from the inside, for harness.c and harness_new.c (its making). */
#ifndef UBLKD_TESTS_HARNESS_IMPL_H
#define UBLKD_TESTS_HARNESS_IMPL_H

#include "harness.h"
#include "ring.h"
#include "watch.h"

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
	int ready_fd; /* of a target with a part of its own; else -1 */
	bool hears; /* a READ of the wake descriptor is in the ring */
	uint64_t wakes;
	struct fake *next;
};

/* Its submissions are looked at from here on, and to here. */
void fake_enlist(struct fake *f);
void fake_forget(const struct fake *f);

/* Gives what has completed to the engine; how much that was. */
unsigned int fake_reap(struct fake *f);

/* Everything that the engine has put into the SQ since the last look. */
void fake_look(struct fake *f);

/* own_part.c: the target's own part begins; 0 or -errno. */
int fake_start(struct fake *f);

/* Somebody has woken the target. */
void fake_woken(struct fake *f, int res);

/* env->commit of every group. */
void fake_commit(struct group *g, int result);

#endif
