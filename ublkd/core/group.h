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
 * ends the prefix there; -EINVAL beyond the request or against its
 * direction, which fails it. Nothing is added for no bytes.
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
 * The same on a stream socket: in the order in which they are added, and a
 * short one goes on before anything else does on that socket. So what one
 * submit() adds stays together. Once one has failed the stream is broken,
 * and whatever else is added for it fails with the same error. `flags` are
 * MSG_MORE and GROUP_SEND_ZC, which sends without any copy where it can
 * (-EOPNOTSUPP on unix sockets) and needs UBLKD_SENDS_ZC.
 *
 * The two of memory leave the request's own bytes alone; the memory must
 * last until the request is over.
 */
#define GROUP_SEND_ZC (1U << 31)
int group_send(struct group *g, uint16_t file, uint32_t buf, uint32_t len,
	       uint32_t flags);
int group_recv(struct group *g, uint16_t file, uint32_t buf, uint32_t len);
int group_send_memory(struct group *g, uint16_t file, const void *memory,
		      uint32_t len, uint32_t flags);
int group_recv_memory(struct group *g, uint16_t file, void *memory,
		      uint32_t len);

/* The same for bytes that must be `expected`: others break the stream. */
int group_recv_expected(struct group *g, uint16_t file, void *memory,
			uint32_t len, const void *expected);

/*
 * Before members are added, for tests: the transfer that would move byte `at`
 * of the request ends before it the first time; with direct I/O at the next
 * place that it takes. 0: none does.
 */
void group_cut(struct group *g, uint64_t at);

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
 * that answers a READ so has filled those bytes in group_memory(); where
 * there is none it fails. Of several answers the least counts.
 */
void group_complete(struct group *g, int answer);

/*
 * For submit_all(), where submit() would return -errno: the request fails,
 * and a stream on which it has members is broken, for nobody knows how much
 * of its message is missing.
 */
void group_abandon(struct group *g, int err);

/* What has failed so far, -errno, or 0. */
int group_error(const struct group *g);

/* For ops->keep(): the request fails with `err`, whatever has failed before. */
void group_fail_with(struct group *g, int err);

/* For a request that ops->keep() has kept: as if it had just arrived. */
void group_restart(struct group *g);

/*
 * For an answer that comes by another road: the request is not over before
 * the drop that belongs to the hold. Both in the queue's thread.
 */
void group_hold(struct group *g);
void group_drop(struct group *g);

/*
 * group_complete() and group_drop() from any thread, once per group_hold();
 * there may be many holders.
 * The queue hears of it through UBLKD_ANSWERS_LATE.
 */
void group_answer(struct group *g, int answer);

/*
 * The bytes of a READ or WRITE, where the lease keeps them in memory (`copy`
 * and `user-copy`), else NULL. A READ's may hold anything until it is filled.
 */
void *group_memory(const struct group *g);

/*
 * The first bytes of a WRITE, wherever the lease keeps them, copied at once:
 * for little, where an operation would cost more. 0 or -errno.
 */
int group_copy(const struct group *g, void *to, uint32_t len);

/* --- for the queue ----------------------------------------------------- */

/*
 * What env holds beside what it points to: batches of up to `depth`, lanes
 * for its `nr_files` files. 0 or -errno; group_env_deinit() in any case.
 */
int group_env_init(struct group_env *env, uint16_t depth, const int *files,
		   uint32_t nr_files);
void group_env_deinit(struct group_env *env);

/* A request has arrived: `g` leads it until env->commit(). */
void group_begin(struct group *g, const struct ublksrv_io_desc *iod,
		 uint64_t now_ns);

/* The answer to what lease_begin() asked for: -errno if it was refused. */
void group_lent(struct group *g, int res);

/* A member's completion; `cqe_flags` are IORING_CQE_F_*. */
void group_cqe(struct group *g, unsigned int member, int res,
	       uint32_t cqe_flags);

/* It was committed with `result`: for the counters and the recorder. */
void group_count(const struct group *g, int result, uint64_t now_ns);

/* A turn has brought all that it brings: submit_all(), if that is the way. */
void groups_turn(struct group_env *env);

/*
 * Becomes readable when other threads have answered; -1: none ever does, nor
 * can it be woken.
 */
int groups_wake_fd(const struct group_env *env);

/* Makes it readable, though nothing was answered; from any thread. */
void groups_wake(const struct group_env *env);

/* It was read: what they have answered ends, and the target hears of it. */
void groups_answered(struct group_env *env);

/* The target's own part of a queue begins; 0 or -errno. */
int groups_start(struct group_env *env);

/* It shall end: what it has under way is broken off. */
void groups_break(struct group_env *env);

/* Before that: whether the target wants one more turn of the loop. */
bool groups_wind_up(const struct group_env *env);

/* Whether something of it is still under way. */
bool groups_busy(const struct group_env *env);

/* It is not, and ends: ops->end(). With a broken ring it stays as it is. */
void groups_end(struct group_env *env);

#endif
