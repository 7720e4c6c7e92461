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

#include "member.h"

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

/* Waits; on_cqe() excuses the member and goes on. */
int group_delay(struct group *g, uint64_t ns);

/*
 * For on_cqe(): this member counts as done whatever it did, because another
 * one answers for its bytes.
 */
void group_excuse(struct group *g, unsigned int member);

/* For on_cqe(): one more -EAGAIN or -EINTR, and this member has failed. */
bool group_last_try(const struct group *g, unsigned int member);

/* Tells whoever looks that a file has failed and is done without. */
void group_report_failed(struct group *g, uint16_t file);

/*
 * Ends a request that needs no members: bytes moved, or -errno. A target
 * that answers a READ so has filled those bytes.
 */
void group_complete(struct group *g, int answer);

/* --- for the queue ----------------------------------------------------- */

/* A request has arrived: `g` leads it until env->commit(). */
void group_begin(struct group *g, const struct ublksrv_io_desc *iod,
		 uint64_t now_ns);

/* The answer to what lease_begin() asked for: -errno if it was refused. */
void group_lent(struct group *g, int res);

/* A member's completion. */
void group_cqe(struct group *g, unsigned int member, int res);

#endif
