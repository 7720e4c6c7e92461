/* SPDX-License-Identifier: MIT */
/*
 * The mirror target's C side: every write goes to all legs, a read comes
 * from the first that works.
 */
#ifndef UBLKD_TARGETS_MIRROR_H
#define UBLKD_TARGETS_MIRROR_H

#include <stdint.h>

#include "backing.h"

struct ublkd_target_ops;

#define MIRROR_MAX_LEGS 8

/* One per device, shared by its queues. Leg n is fixed file n + 1. */
struct mirror {
	uint32_t nr_legs;
	uint64_t failed; /* bit n: leg n has failed and is left alone */
	struct backing legs[MIRROR_MAX_LEGS];
};

const struct ublkd_target_ops *mirror_ops(void);

#endif
