/* SPDX-License-Identifier: MIT */
/*
 * Stands between the engine and the kernel: what was issued, how it shall
 * end, and whether it was allowed.
 *
 * Commands about a request's pages need the driver: they become NOPs with
 * the result that a test has written down, 0 if it has not. What they would
 * do is kept here, per tag.
 */
#ifndef UBLKD_TESTS_WATCH_H
#define UBLKD_TESTS_WATCH_H

#include "harness.h"

struct io_uring_sq;
struct io_uring_sqe;

/* An SQE under way that will answer. */
struct flight {
	uint32_t log; /* index */
	bool replaced; /* it tells `result` */
	bool denied; /* it tells no more than `result` */
	int result;
};

/* What a tag's slot of the buffer table holds. */
enum slot {
	SLOT_EMPTY,
	SLOT_DRIVERS, /* pages that came and go with the request */
	SLOT_ASKED, /* nothing yet: REGISTER has not answered */
	SLOT_OURS, /* pages that REGISTER has put there */
};

struct watched_tag {
	enum slot slot;
	uint32_t members; /* under way */
	struct flight *flights; /* one per member */
};

struct watch {
	const struct fake_config *cfg;
	const struct ublksrv_io_desc *iods;
	struct io_uring_sq *sq;
	unsigned char *pages; /* max_io bytes per tag; NULL: none are lent */
	struct flight *flights; /* of all tags */
	struct watched_tag *tags; /* the last one is the target's own */
	unsigned int seen; /* position in the SQ */
	bool unseen; /* one was submitted before it was looked at */
	const char *broken; /* the first rule that was, in words */
	uint32_t in_flight;
	struct outcome *outcomes;
	uint32_t nr_outcomes;
	struct issued *log;
	uint32_t nr_log;
	uint32_t room;
	uint32_t completions;
};

/* 0 or -errno. */
int watch_init(struct watch *w, const struct fake_config *cfg,
	       const struct ublksrv_io_desc *iods);
void watch_deinit(struct watch *w);

void watch_script(struct watch *w, struct outcome *outcomes, uint32_t n);

/* Writes an SQE into the log; its index. */
uint32_t watch_keep(struct watch *w, uint16_t tag, uint16_t member,
		    const struct io_uring_sqe *sqe);

/* A request arrives; its pages are in the table or they are not. */
void watch_begin(struct watch *w, uint16_t tag, bool lent);

/* And is committed: right behind all that stands in the SQ now. */
void watch_commit(struct watch *w, uint16_t tag);

/* Looks at every SQE that is new. */
void watch_look(struct watch *w);

/* What of `in_flight` belongs to requests, and not to the target itself. */
static inline uint32_t watch_of_requests(const struct watch *w)
{
	return w->in_flight - w->tags[w->cfg->depth].members;
}

/* A completion; returns the result that the engine shall see. */
int watch_ended(struct watch *w, uint64_t user_data, int res, uint32_t flags);

#endif
