/* SPDX-License-Identifier: MIT */
/*
 * Stands between the engine and the kernel: what was issued, and how it
 * shall end.
 */
#ifndef UBLKD_TESTS_WATCH_H
#define UBLKD_TESTS_WATCH_H

#include "harness.h"

struct io_uring_sq;

/* A member's SQE under way. */
struct flight {
	uint32_t log; /* index */
	bool replaced; /* it tells `result` */
	bool denied; /* it tells no more than `result` */
	int result;
};

struct watch {
	uint16_t max_members;
	struct flight *flights; /* max_members per tag */
	unsigned int seen; /* position in the SQ */
	bool unseen; /* one was submitted before it was looked at */
	uint32_t in_flight;
	struct outcome *outcomes;
	uint32_t nr_outcomes;
	struct issued *log;
	uint32_t nr_log;
	uint32_t room;
	uint32_t completions;
};

/* 0 or -errno. */
int watch_init(struct watch *w, uint16_t depth, uint16_t max_members);
void watch_deinit(struct watch *w);

void watch_script(struct watch *w, struct outcome *outcomes, uint32_t n);

/*
 * Looks at every SQE that is new. `pages` (max_io bytes per slot) is what
 * the buffer table lends, NULL if nothing.
 */
void watch_look(struct watch *w, struct io_uring_sq *sq,
		const struct ublksrv_io_desc *iods, unsigned char *pages,
		uint32_t max_io);

/* A completion; returns the result that the engine shall see. */
int watch_ended(struct watch *w, uint16_t tag, uint16_t member, int res);

#endif
