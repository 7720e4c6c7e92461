/* SPDX-License-Identifier: MIT */
/*
 * Members, the group that they belong to, and how each kind becomes an SQE.
 * What a result means is group.c's business.
 */
#ifndef UBLKD_MEMBER_H
#define UBLKD_MEMBER_H

#include <stdbool.h>
#include <stdint.h>

#include "lane.h"
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
	MEMBER_DELAY, /* ends after a time, with -ETIME */
	MEMBER_SEND, /* on a lane, as are: */
	MEMBER_SEND_ZC,
	MEMBER_RECV,
};

struct member {
	uint8_t op;
	uint8_t again; /* issues in a row that moved nothing new */
	bool excused; /* done, whatever it did */
	uint16_t file; /* fixed file slot */
	uint32_t flags; /* RWF_*, IORING_FSYNC_*, FALLOC_FL_*, MSG_* */
	uint64_t offset; /* bytes, in the file */
	uint64_t len; /* bytes */
	uint64_t done; /* bytes */
	uint32_t buf; /* bytes, in the request */
	int sent; /* what SEND_ZC told before its notification */
	const void
		*memory; /* of a lane's member that leaves the request alone */
	const void *expected; /* what must have arrived there */
	struct group *group;
	struct lane_turn turn;
	struct __kernel_timespec wait; /* of a delay */
};

/* What all groups of one queue have in common. */
struct group_env {
	struct ring *ring;
	struct lease_table *leases;
	struct queue_stats *stats;
	const struct ublkd_target_ops *ops;
	void *target;
	uint32_t block; /* bytes of a logical block */
	uint32_t align; /* bytes that a transfer's file offset must keep to */
	uint16_t max_members;
	const void *zeroes; /* ZEROES_BYTES of them */
	struct lane *lanes; /* one per fixed file */
	uint32_t nr_lanes;
	struct group **batch; /* what this turn has brought for submit_all() */
	uint32_t nr_batch;
	struct group *groups; /* one per tag, and that of `own` */
	struct own *own; /* what the target does of its own accord */
	bool wakes; /* other threads may wake it, whatever its target needs */
	struct late *late; /* what other threads answer; NULL: they do not */
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
	uint64_t cut_at; /* of group_cut() */
	int error; /* the first one */
	int answer; /* of group_complete() */
	uint64_t began; /* ns */
	uint16_t tag;
	uint16_t nr_members;
	uint16_t nr_pending;
	uint8_t nr_short; /* transfers that went on; 255: or more */
	bool answered;
	bool has_data; /* some member moves bytes of the request */
	int late_answer; /* of group_answer(), the least that is unheard of */
	uint16_t nr_late; /* how many those are */
	struct group *next_answered;
	struct member *members; /* env->max_members of them */
};

/* Moves bytes of the request itself. */
bool member_carries_data(const struct member *m);

/* Moves bytes on a stream socket, where no byte can be moved twice. */
bool member_on_lane(const struct member *m);

/* Everything that a read or a write moves, from memory of any kind. */
bool member_transfers(const struct member *m);

/*
 * Where the next transfer starts. Direct I/O cannot go on at any byte: it
 * takes the part of a block that has moved already once more.
 */
uint64_t member_resume_at(const struct group *g, const struct member *m);

/* Bytes of the next transfer: all the rest, or what the zeroes suffice for. */
uint32_t member_next_bytes(const struct group *g, const struct member *m);

/* Issues it, for the first time or for what it has not moved yet. */
void member_issue(struct group *g, unsigned int index);

/* Its completion comes soon, with -ECANCELED if it was in time. */
void member_cancel(struct group *g, unsigned int index);

#endif
