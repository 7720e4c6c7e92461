/* SPDX-License-Identifier: MIT */
/*
 * A group: one request in service. The request leads, its pages are lent,
 * members work on them, and after the last one the request is committed.
 *
 * This file and group.c are the only place for short I/O, rounding, zero
 * progress, the first error, the last member and which errno may be told to
 * the block layer. Not here: how pages are reached (lease.c) and how a
 * commit travels (queue.c).
 */
#ifndef UBLKD_GROUP_H
#define UBLKD_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "lease.h"
#include "target.h"

struct queue_stats;
struct ring;

enum member_op {
	MEMBER_READ,
	MEMBER_WRITE,
	MEMBER_ZEROES, /* a write whose source is zeroes */
	MEMBER_FSYNC,
	MEMBER_FALLOCATE,
	MEMBER_DISCARD, /* on a block device */
};

struct member {
	uint8_t op;
	uint8_t again; /* issues in a row that moved nothing */
	uint16_t file; /* fixed file slot */
	uint32_t flags; /* RWF_*, IORING_FSYNC_*, FALLOC_FL_* */
	uint64_t offset; /* bytes, in the file */
	uint64_t len; /* bytes */
	uint64_t done; /* bytes */
	uint32_t buf; /* bytes, in the request */
};

/* What all groups of one queue have in common. */
struct group_env {
	struct ring *ring;
	struct lease_table *leases;
	struct queue_stats *stats;
	const struct ublkd_target_ops *ops;
	void *target;
	uint32_t block; /* bytes of a logical block */
	uint16_t max_members;
	const void *zeroes; /* ZEROES_BYTES of them */
	/* Hands a result that obeys the rules to the kernel. */
	void (*commit)(struct group *g, int result);
	void *owner; /* of commit() */
};

#define ZEROES_BYTES (1U << 20)

struct group {
	struct group_env *env;
	const struct ublksrv_io_desc *iod;
	struct lease lease;
	uint64_t size; /* bytes of the request */
	uint64_t covered; /* [0, covered) has members, without a gap */
	uint64_t limit; /* no byte at or beyond it counts as moved */
	int error; /* the first one */
	int answer; /* of group_complete() */
	uint64_t began; /* ns */
	uint16_t tag;
	uint16_t nr_members;
	uint16_t nr_pending;
	bool answered;
	struct member *members; /* env->max_members of them */
};

/* --- for targets ------------------------------------------------------- */

/*
 * Add a member and issue it. `file` is a fixed slot (1 is the target's
 * first), offsets and lengths are bytes. Members that carry data are added
 * in ascending order of `buf`: what is committed is a prefix of the request,
 * and it ends at the first gap. Return 0; -E2BIG beyond max_members, which
 * ends the prefix there; -EINVAL beyond the request, which fails it.
 */
int group_read(struct group *g, uint16_t file, uint64_t offset, uint32_t buf,
	       uint32_t len);
int group_write(struct group *g, uint16_t file, uint64_t offset, uint32_t buf,
		uint32_t len, uint32_t rwf);
int group_zeroes(struct group *g, uint16_t file, uint64_t offset, uint64_t len,
		 uint32_t rwf);
int group_fsync(struct group *g, uint16_t file, uint32_t fsync_flags);
int group_fallocate(struct group *g, uint16_t file, uint32_t mode,
		    uint64_t offset, uint64_t len);
int group_discard(struct group *g, uint16_t file, uint64_t offset,
		  uint64_t len);

/*
 * Ends a request that needs no members: bytes moved, or -errno. A target
 * that answers a READ so has filled those bytes.
 */
void group_complete(struct group *g, int answer);

/* --- for the queue ----------------------------------------------------- */

/* A request has arrived: `g` leads it until env->commit(). */
void group_begin(struct group *g, const struct ublksrv_io_desc *iod,
		 uint64_t now_ns);

/* A member's completion. */
void group_cqe(struct group *g, unsigned int member, int res);

/*
 * user_data of a member. The queue's own SQEs have UD_LEADER set; the low
 * 16 bits are the tag in both.
 */
#define UD_LEADER (1ULL << 63)

static inline uint64_t ud_member(unsigned int tag, unsigned int member)
{
	return (uint64_t)member << 16 | tag;
}

#endif
