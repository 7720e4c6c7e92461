/* SPDX-License-Identifier: MIT */
/*
 * All that a native target sees, together with group.h.
 *
 * A target turns an iod into members of a group and never waits. It runs in
 * the queue's thread, so what several queues share it must guard itself.
 */
#ifndef UBLKD_TARGET_H
#define UBLKD_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "uapi.h"

struct group;
struct own;

#define UBLKD_TARGET_ABI 2

/* What a target needs of its queues: ublkd_target_ops.flags. */
#define UBLKD_ANSWERS_LATE (1U << 0) /* group_answer() */
#define UBLKD_SENDS_ZC (1U << 1) /* group_send() with GROUP_SEND_ZC */

struct ublkd_target_ops {
	uint32_t abi; /* UBLKD_TARGET_ABI, checked when the queue is made */
	uint32_t flags;
	const char *name;
	/*
	 * Adds members or completes. -errno fails the request; members that
	 * were added before are waited for.
	 */
	int (*submit)(void *target, struct group *g,
		      const struct ublksrv_io_desc *iod);
	/*
	 * In its place: the same for all requests that one turn of the loop
	 * has brought, in one call. g->iod says what each asks for.
	 */
	void (*submit_all)(void *target, struct group *const *groups,
			   unsigned int n);
	/*
	 * Sees a member's result before the rule of group.c does and returns
	 * the result that the rule shall see. May add members. NULL: none
	 * of that.
	 */
	int (*on_cqe)(void *target, struct group *g, unsigned int member,
		      int res);
	/*
	 * A queue begins, in its thread, before its first request, and ends
	 * behind its last one. What is stored in *mine is what all functions
	 * get as `target` in between. 0 or -errno. See own.h.
	 */
	int (*start)(void *target, struct own *own, void **mine);
	void (*end)(void *target);
	/* In between: no request comes any more, and none is under way. */
	void (*bye)(void *target);
	/* Another thread has called own_wake(). */
	void (*on_wake)(void *target);
	/* What own.h began under this id has ended. */
	void (*on_own)(void *target, unsigned int id, int res);
	/*
	 * A request is about to be answered. True: it is not, and its pages
	 * stay lent until group_restart() submits it once more.
	 */
	bool (*keep)(void *target, struct group *g);
	/*
	 * As long as it is true the queue does not end, though no request
	 * comes any more and none is under way: the target is at something of
	 * its own. Asked before bye(), and again after each turn.
	 */
	bool (*winds_up)(void *target);
};

/* For a target that stands before another one. */
static inline int target_submit(const struct ublkd_target_ops *ops,
				void *target, struct group *g,
				const struct ublksrv_io_desc *iod)
{
	if (ops->submit)
		return ops->submit(target, g, iod);
	ops->submit_all(target, &g, 1);
	return 0;
}

static inline unsigned int iod_op(const struct ublksrv_io_desc *iod)
{
	return iod->op_flags & 0xff;
}

static inline uint64_t iod_offset(const struct ublksrv_io_desc *iod)
{
	return iod->start_sector << 9;
}

static inline uint64_t iod_bytes(const struct ublksrv_io_desc *iod)
{
	return (uint64_t)iod->nr_sectors << 9;
}

#endif
