/* SPDX-License-Identifier: MIT */
/* A group from the inside, for group.c, group_add.c and group_late.c. */
#ifndef UBLKD_GROUP_IMPL_H
#define UBLKD_GROUP_IMPL_H

#include <stdbool.h>
#include <stdint.h>

#include "member.h"
#include "own.h"

struct late;

/* group_late.c: NULL without memory or descriptors. */
struct late *late_new(void);
void late_free(struct late *l);

/*
 * A member that answers EAGAIN or EINTR is issued again. One that does so
 * this often without moving a byte in between has failed.
 */
#define MAX_AGAIN 128

/*
 * What a target has of its own on a queue: a group that leads no request, with
 * the tag behind the last one. group_own.c
 */
struct own {
	struct group *group;
	struct member members[OWN_MEMBERS];
	uint16_t depth;
	bool started; /* ops->start() has been called, and ops->end() not */
	bool ending; /* nothing of it is told any more */
};

/* NULL without memory; free() it. */
struct own *own_new(struct group_env *env, uint16_t depth);

/* The end of one of its members. */
void own_over(struct group_env *env, struct member *m, int res);

/* No byte from `limit` on counts as moved. */
void group_end_at(struct group *g, uint64_t limit);

/* The same, and the first error is kept. */
void group_fail(struct group *g, int err, uint64_t limit);

/* The lane of a fixed file, or NULL where it is no stream socket. */
struct lane *group_lane(const struct group_env *env, uint16_t file);

/* lane_break(), and what is under way on it ends. */
void group_break_lane(struct lane *lane, int err);

/* One member less to wait for; after the last one the request is committed. */
void group_member_over(struct group *g);

#endif
