/* SPDX-License-Identifier: MIT */
#include "group.h"

#include <errno.h>
#include <linux/fs.h>
#include <string.h>

#include "ring.h"
#include "stats.h"

/*
 * A member that answers EAGAIN or EINTR is issued again. One that does so
 * this often without moving a byte in between has failed.
 */
#define MAX_AGAIN 128

static bool carries_data(const struct member *m)
{
	return m->op == MEMBER_READ || m->op == MEMBER_WRITE;
}

/* Everything that a read or a write moves, from memory of any kind. */
static bool transfers(const struct member *m)
{
	return carries_data(m) || m->op == MEMBER_ZEROES;
}

/*
 * Which errno the block layer may see. Some have a meaning of their own
 * there (EAGAIN, EBUSY, ENOMEM: try again for ever; ETIME, EOVERFLOW and
 * others: paths and zones), and most have none: block/blk-core.c.
 */
static int sanitised(int err)
{
	switch (err) {
	case -ENOSPC:
	case -EOPNOTSUPP:
	case -ENODATA:
	case -EILSEQ:
	case -ENOLINK:
	case -EREMOTEIO:
	case -ETIMEDOUT:
		return err;
	case -EDQUOT:
	case -EFBIG:
		return -ENOSPC;
	default:
		return -EIO;
	}
}

static void end_at(struct group *g, uint64_t limit)
{
	if (limit < g->limit)
		g->limit = limit;
}

static void fail(struct group *g, int err, uint64_t limit)
{
	if (!g->error)
		g->error = err < 0 ? err : -EIO;
	end_at(g, limit);
}

/* --- issuing ----------------------------------------------------------- */

/* Bytes of the next transfer: all the rest, or what the zeroes suffice for. */
static uint32_t next_bytes(const struct member *m)
{
	uint64_t rest = m->len - m->done;

	if (m->op == MEMBER_ZEROES && rest > ZEROES_BYTES)
		rest = ZEROES_BYTES;
	return (uint32_t)rest;
}

static void prep_transfer(struct group *g, const struct member *m,
			  struct io_uring_sqe *sqe)
{
	if (carries_data(m)) {
		lease_bind(g->env->leases, &g->lease, g->tag, sqe,
			   m->op == MEMBER_WRITE, m->buf + m->done,
			   next_bytes(m));
	} else {
		sqe->opcode = IORING_OP_WRITE;
		sqe->addr = (__u64)(uintptr_t)g->env->zeroes;
		sqe->len = next_bytes(m);
	}
	sqe->off = m->offset + m->done;
	sqe->rw_flags = (int)m->flags;
}

static void issue(struct group *g, unsigned int index)
{
	const struct member *m = &g->members[index];
	struct io_uring_sqe *sqe = ring_sqe(g->env->ring);

	switch (m->op) {
	case MEMBER_FSYNC:
		sqe->opcode = IORING_OP_FSYNC;
		sqe->fsync_flags = m->flags;
		break;
	case MEMBER_FALLOCATE:
		sqe->opcode = IORING_OP_FALLOCATE;
		sqe->off = m->offset;
		sqe->addr = m->len;
		sqe->len = m->flags;
		break;
	case MEMBER_DISCARD:
		sqe->opcode = IORING_OP_URING_CMD;
		sqe->off = UBLKD_BLOCK_URING_CMD_DISCARD;
		sqe->addr = m->offset;
		sqe->addr3 = m->len;
		break;
	default:
		prep_transfer(g, m, sqe);
	}
	sqe->fd = m->file;
	sqe->flags = IOSQE_FIXED_FILE;
	if (m->again) /* let a kernel worker do the waiting */
		sqe->flags |= IOSQE_ASYNC;
	sqe->user_data = ud_member(g->tag, index);
}

static int add(struct group *g, const struct member *m)
{
	unsigned int index = g->nr_members;

	/* the bytes behind a request's own may be another request's */
	if (carries_data(m) && m->buf + m->len > g->size) {
		fail(g, -EINVAL, 0);
		return -EINVAL;
	}
	if (index == g->env->max_members) {
		if (carries_data(m)) /* a sibling may have covered its bytes */
			end_at(g, m->buf);
		else /* nobody would do its work later */
			fail(g, -EIO, 0);
		return -E2BIG;
	}
	g->members[index] = *m;
	g->nr_members++;
	g->nr_pending++;
	if (carries_data(m) && m->buf <= g->covered &&
	    m->buf + m->len > g->covered)
		g->covered = m->buf + m->len;
	issue(g, index);
	return 0;
}

int group_read(struct group *g, uint16_t file, uint64_t offset, uint32_t buf,
	       uint32_t len)
{
	return add(g, &(struct member){ .op = MEMBER_READ,
					.file = file,
					.offset = offset,
					.buf = buf,
					.len = len });
}

int group_write(struct group *g, uint16_t file, uint64_t offset, uint32_t buf,
		uint32_t len, uint32_t rwf)
{
	return add(g, &(struct member){ .op = MEMBER_WRITE,
					.file = file,
					.offset = offset,
					.buf = buf,
					.len = len,
					.flags = rwf });
}

int group_zeroes(struct group *g, uint16_t file, uint64_t offset, uint64_t len,
		 uint32_t rwf)
{
	return add(g, &(struct member){ .op = MEMBER_ZEROES,
					.file = file,
					.offset = offset,
					.len = len,
					.flags = rwf });
}

int group_fsync(struct group *g, uint16_t file, uint32_t fsync_flags)
{
	return add(g, &(struct member){ .op = MEMBER_FSYNC,
					.file = file,
					.flags = fsync_flags });
}

int group_fallocate(struct group *g, uint16_t file, uint32_t mode,
		    uint64_t offset, uint64_t len)
{
	return add(g, &(struct member){ .op = MEMBER_FALLOCATE,
					.file = file,
					.offset = offset,
					.len = len,
					.flags = mode });
}

int group_discard(struct group *g, uint16_t file, uint64_t offset, uint64_t len)
{
	return add(g, &(struct member){ .op = MEMBER_DISCARD,
					.file = file,
					.offset = offset,
					.len = len });
}

void group_complete(struct group *g, int answer)
{
	g->answered = true;
	g->answer = answer;
	if (answer < 0)
		fail(g, answer, 0);
}

/* --- ending ------------------------------------------------------------ */

static uint64_t round_to_block(const struct group *g, uint64_t bytes)
{
	return bytes - bytes % g->env->block;
}

/* Bytes at the start of the request that truly moved. */
static uint64_t prefix(const struct group *g)
{
	uint64_t moved = g->covered;

	if (g->answered && !g->nr_members && g->answer > 0)
		moved = (uint64_t)g->answer;
	if (moved > g->limit)
		moved = g->limit;
	if (moved > g->size)
		moved = g->size;
	return round_to_block(g, moved);
}

/*
 * What is committed: for READ and WRITE the bytes that moved, as one prefix
 * in whole blocks (the driver sends the rest as a new request), never 0 (a
 * WRITE of 0 would come back for ever) and never more than was filled; for
 * the others 0. Else a negative errno that the block layer understands.
 */
static int result_of(struct group *g)
{
	unsigned int op = iod_op(g->iod);
	uint64_t moved;
	int ret;

	if (op != UBLK_IO_OP_READ && op != UBLK_IO_OP_WRITE) {
		if (!g->nr_members && !g->answered)
			fail(g, -EIO, 0);
		return g->error ? sanitised(g->error) : 0;
	}
	moved = prefix(g);
	if (moved) {
		ret = lease_end(g->env->leases, &g->lease, g->tag,
				op == UBLK_IO_OP_READ, (uint32_t)moved);
		if (ret < 0)
			fail(g, ret, 0);
		moved = ret < 0 ? 0 : round_to_block(g, (uint64_t)ret);
	}
	if (moved)
		return (int)moved;
	return g->error ? sanitised(g->error) : -EIO;
}

static void finish(struct group *g)
{
	g->env->commit(g, result_of(g));
}

/* --- members ----------------------------------------------------------- */

enum verdict { DONE, ISSUE_AGAIN, FAILED };

/* The requeue rule for one result of one member. */
static enum verdict judge(struct group *g, struct member *m, int res)
{
	if (res == -EAGAIN || res == -EINTR) {
		g->env->stats->again_members++;
		return ++m->again < MAX_AGAIN ? ISSUE_AGAIN : FAILED;
	}
	if (res < 0)
		return FAILED;
	if (!transfers(m))
		return DONE;
	/* no progress, or more than was asked: neither can be believed */
	if (res == 0 || (uint32_t)res > next_bytes(m))
		return FAILED;
	if ((uint32_t)res < next_bytes(m))
		g->env->stats->short_members++;
	m->done += (uint64_t)res;
	m->again = 0;
	return m->done == m->len ? DONE : ISSUE_AGAIN;
}

void group_cqe(struct group *g, unsigned int index, int res)
{
	const struct ublkd_target_ops *ops = g->env->ops;
	struct member *m = &g->members[index];

	if (ops->on_cqe)
		res = ops->on_cqe(g->env->target, g, index, res);
	switch (judge(g, m, res)) {
	case ISSUE_AGAIN:
		issue(g, index);
		return;
	case FAILED:
		fail(g, res < 0 ? res : -EIO,
		     carries_data(m) ? m->buf + m->done : 0);
		break;
	case DONE:
		break;
	}
	if (--g->nr_pending == 0)
		finish(g);
}

void group_begin(struct group *g, const struct ublksrv_io_desc *iod,
		 uint64_t now_ns)
{
	struct group_env *env = g->env;
	int ret;

	g->iod = iod;
	g->size = iod_bytes(iod);
	g->covered = 0;
	g->limit = UINT64_MAX;
	g->error = 0;
	g->answered = false;
	g->nr_members = 0;
	g->nr_pending = 0;
	g->began = now_ns;
	stats_begin(env->stats, iod->op_flags);

	ret = lease_begin(env->leases, &g->lease, g->tag, iod);
	if (g->lease.user_copy)
		env->stats->fallbacks++;
	if (ret == 0)
		ret = env->ops->submit(env->target, g, iod);
	if (ret < 0)
		fail(g, ret, 0);
	if (g->nr_pending == 0)
		finish(g);
}
