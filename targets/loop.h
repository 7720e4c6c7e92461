/* SPDX-License-Identifier: MIT */
/*
 * The loop target's C side: it serves what loop.py has opened and decided.
 */
#ifndef UBLKD_TARGETS_LOOP_H
#define UBLKD_TARGETS_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "backing.h"

struct ublkd_target_ops;

/* One per device, shared by its queues. */
struct loop {
	uint64_t offset; /* bytes: where the disk starts in the backing */
	bool read_only;
	struct backing backing;
};

const struct ublkd_target_ops *loop_ops(void);

#endif
