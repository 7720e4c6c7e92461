/* SPDX-License-Identifier: MIT */
/*
 * The stripe target's C side: a disk laid over several backings in turns,
 * one chunk each.
 */
#ifndef UBLKD_TARGETS_STRIPE_H
#define UBLKD_TARGETS_STRIPE_H

#include <stdint.h>

#include "backing.h"

struct ublkd_target_ops;

#define STRIPE_MAX_LEGS 64

/* One per device, shared by its queues. Leg n is fixed file n + 1. */
struct stripe {
	uint32_t nr_legs;
	uint64_t chunk; /* bytes, a power of two */
	struct backing legs[STRIPE_MAX_LEGS];
};

const struct ublkd_target_ops *stripe_ops(void);

/* Where byte `pos` of the disk is on leg `leg`, or would be if it had it. */
uint64_t stripe_leg_pos(const struct stripe *s, uint32_t leg, uint64_t pos);

#endif
