/* SPDX-License-Identifier: MIT */
/*
 * The faulty target's C side: it stands before another target and spoils
 * some of what that one's members bring, as a seed says.
 */
#ifndef UBLKD_TARGETS_FAULTY_H
#define UBLKD_TARGETS_FAULTY_H

#include <stdbool.h>
#include <stdint.h>

struct ublkd_target_ops;

/* How often, as a share of 2^32. */
struct faulty {
	const struct ublkd_target_ops *over;
	void *over_target;
	uint64_t seed;
	uint64_t short_by_block; /* a transfer ends early, in whole blocks */
	uint64_t short_by_byte; /* and at any byte */
	bool walk; /* a transfer is cut where the place of its request says */
	uint64_t again; /* it says that it should be tried again */
	uint64_t error; /* a request fails before it is served */
	int error_number; /* with this, -errno */
	uint64_t delay; /* a request waits before it is served */
	uint64_t delay_ns;
	uint32_t block; /* bytes */
};

const struct ublkd_target_ops *faulty_ops(void);

/*
 * The dice: 32 bits that follow from the seed, a place on the disk, what is
 * done there and the count of tries; nothing else, so that a run repeats.
 */
uint32_t faulty_roll(uint64_t seed, uint64_t place, uint32_t what,
		     uint32_t try);

#endif
