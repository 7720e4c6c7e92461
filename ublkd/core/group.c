/* SPDX-License-Identifier: MIT */
#include "group.h"

#include <errno.h>

#include "member.h"
#include "stats.h"

/*
 * A member that answers EAGAIN or EINTR is issued again. One that does so
 * this often without moving a byte in between has failed.
 */
#define MAX_AGAIN 128

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

static int add(struct group *g, const struct member *m)
{
	unsigned int index = g->nr_members;

	/* the bytes behind a request's own may be another request's */
	if (member_carries_data(m) && m->buf + m->len > g->size) {
		fail(g, -EINVAL, 0);
		return -EINVAL;
	}
	g->has_data |= member_carries_data(m);
	if (index == g->env->max_members) {
		if (member_carries_data(
			    m)) /* a sibling may have covered its bytes */
			end_at(g, m->buf);
		else /* nobody would do its work later */
			fail(g, -EIO, 0);
		return -E2BIG;
	}
	g->members[index] = *m;
	g->nr_members++;
	g->nr_pending++;
	if (member_carries_data(m) && m->buf <= g->covered &&
	    m->buf + m->len > g->covered)
		g->covered = m->buf + m->len;
	member_issue(g, index);
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

int group_delay(struct group *g, uint64_t ns)
{
	return add(g,
		   &(struct member){
			   .op = MEMBER_DELAY,
			   .wait = { .tv_sec = (int64_t)(ns / 1000000000),
				     .tv_nsec = (long long)(ns % 1000000000) },
		   });
}

void group_excuse(struct group *g, unsigned int index)
{
	g->members[index].excused = true;
}

bool group_last_try(const struct group *g, unsigned int index)
{
	return g->members[index].again + 1 >= MAX_AGAIN;
}

void group_report_failed(struct group *g, uint16_t file)
{
	g->env->stats->failed_files |= 1ULL << (file & 63);
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

	if (g->answered && !g->has_data && g->answer > 0)
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
	int result = result_of(g);

	lease_release(g->env->leases, &g->lease, g->tag);
	g->env->commit(g, result);
}

/* --- members ----------------------------------------------------------- */

enum verdict { DONE, ISSUE_AGAIN, FAILED };

/* Once more; a member that never gets on has failed. */
static enum verdict be_patient(struct member *m)
{
	return ++m->again < MAX_AGAIN ? ISSUE_AGAIN : FAILED;
}

/* The requeue rule for one result of one member. */
static enum verdict judge(struct group *g, struct member *m, int res)
{
	uint64_t reached;

	if (m->excused)
		return DONE;
	if (res == -EAGAIN || res == -EINTR) {
		g->env->stats->again_members++;
		return be_patient(m);
	}
	if (res < 0)
		return FAILED;
	if (!member_transfers(m))
		return DONE;
	/* no progress, or more than was asked: neither can be believed */
	if (res == 0 || (uint32_t)res > member_next_bytes(g, m))
		return FAILED;
	if ((uint32_t)res < member_next_bytes(g, m))
		g->env->stats->short_members++;
	reached = member_resume_at(g, m) + (uint64_t)res;
	if (reached <= m->done)
		return be_patient(m);
	m->done = reached;
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
		member_issue(g, index);
		return;
	case FAILED:
		fail(g, res < 0 ? res : -EIO,
		     member_carries_data(m) ? m->buf + m->done : 0);
		break;
	case DONE:
		break;
	}
	if (--g->nr_pending == 0)
		finish(g);
}

/* The pages can be reached, or `ret` says why not. */
static void begin_members(struct group *g, int ret)
{
	struct group_env *env = g->env;

	if (g->lease.user_copy && env->leases->kind != LEASE_USER_COPY)
		env->stats->fallbacks++;
	if (ret == 0)
		ret = env->ops->submit(env->target, g, g->iod);
	if (ret < 0)
		fail(g, ret, 0);
	if (g->nr_pending == 0)
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
	g->has_data = false;
	g->nr_members = 0;
	g->nr_pending = 0;
	g->began = now_ns;
	stats_begin(env->stats, iod->op_flags);

	ret = lease_begin(env->leases, &g->lease, g->tag, iod);
	if (ret != LEASE_PENDING)
		begin_members(g, ret);
}

void group_lent(struct group *g, int res)
{
	begin_members(
		g, lease_lent(g->env->leases, &g->lease, g->tag, g->iod, res));
}
