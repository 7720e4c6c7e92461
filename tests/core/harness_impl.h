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
	struct fake *next;
};

/* Its submissions are looked at from here on, and to here. */
void fake_enlist(struct fake *f);
void fake_forget(const struct fake *f);

/* env->commit of every group. */
void fake_commit(struct group *g, int result);

#endif
