/* SPDX-License-Identifier: MIT */
#include "group.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "group_impl.h"
#include "member.h"
#include "stats.h"

static bool transfers(unsigned int op)
{
	return op == UBLK_IO_OP_READ || op == UBLK_IO_OP_WRITE;
}

/* What every disk can do: nobody makes sense of its not being supported. */
static bool is_basic(unsigned int op)
{
	return transfers(op) || op == UBLK_IO_OP_FLUSH;
}

/*
 * Which errno the block layer may see. Some have a meaning of their own
 * there (EAGAIN, EBUSY, ENOMEM: try again for ever; ETIME, EOVERFLOW and
 * others: paths and zones), and most have none: block/blk-core.c. "Not
 * supported" is an answer to DISCARD or WRITE_ZEROES; to a reader or writer
 * through io_uring it means "try again", for ever (io_uring/rw.c), and of a
 * FLUSH it makes fsync() a success (blkdev_fsync() in block/fops.c).
 */
static int sanitised(unsigned int op, int err)
{
	switch (err) {
	case -EOPNOTSUPP:
		return is_basic(op) ? -EIO : err;
	case -ENOSPC:
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

void group_end_at(struct group *g, uint64_t limit)
{
	if (limit < g->limit)
		g->limit = limit;
}

void group_fail(struct group *g, int err, uint64_t limit)
{
	if (!g->error)
		g->error = err < 0 ? err : -EIO;
	group_end_at(g, limit);
}

/* --- ending ------------------------------------------------------------ */

static uint64_t round_to_block(const struct group *g, uint64_t bytes)
{
	return bytes - bytes % g->env->block;
}

/* Nobody can have filled the pages of a READ that only members reach. */
static bool may_answer(const struct group *g)
{
	return iod_op(g->iod) != UBLK_IO_OP_READ ||
	       lease_memory(g->env->leases, &g->lease, g->tag);
}

/* Bytes at the start of the request that truly moved. */
static uint64_t prefix(const struct group *g)
{
	uint64_t moved = g->covered;

	if (g->answered && !g->has_data && g->answer > 0 && may_answer(g))
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

	if (!transfers(op)) {
		if (!g->nr_members && !g->answered)
			group_fail(g, -EIO, 0);
		return g->error ? sanitised(op, g->error) : 0;
	}
	moved = prefix(g);
	if (moved) {
		ret = lease_end(g->env->leases, &g->lease, g->tag,
				op == UBLK_IO_OP_READ, (uint32_t)moved);
		if (ret < 0)
			group_fail(g, ret, 0);
		moved = ret < 0 ? 0 : round_to_block(g, (uint64_t)ret);
	}
	if (moved)
		return (int)moved;
	return g->error ? sanitised(op, g->error) : -EIO;
}

static void finish(struct group *g)
{
	const struct ublkd_target_ops *ops = g->env->ops;
	int result;

	if (ops->keep && ops->keep(g->env->target, g))
		return;
	result = result_of(g);
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

static bool as_expected(const struct member *m)
{
	return !m->expected || !memcmp(m->memory, m->expected, m->len);
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
	if ((uint32_t)res < member_next_bytes(g, m)) {
		g->env->stats->short_members++;
		if (g->nr_short < UINT8_MAX)
			g->nr_short++;
	}
	reached = member_resume_at(g, m) + (uint64_t)res;
	if (reached <= m->done)
		return be_patient(m);
	m->done = reached;
	m->again = 0;
	if (m->done < m->len)
		return ISSUE_AGAIN;
	return as_expected(m) ? DONE : FAILED;
}

/* --- lanes ------------------------------------------------------------- */

struct lane *group_lane(const struct group_env *env, uint16_t file)
{
	if (file >= env->nr_lanes || env->lanes[file].fd < 0)
		return NULL;
	return &env->lanes[file];
}

static struct member *whose(struct lane_turn *t)
{
	return (struct member *)((char *)t - offsetof(struct member, turn));
}

static unsigned int index_of(const struct member *m)
{
	return (unsigned int)(m - m->group->members);
}

/* What is under way on a stream that was broken and is still there. */
static void cancel_head(struct lane *lane, enum lane_way way)
{
	struct lane_turn *t = lane->lines[way].first;

	if (t && lane->lingers)
		member_cancel(whose(t)->group, index_of(whose(t)));
}

void group_break_lane(struct lane *lane, int err)
{
	if (lane->error)
		return;
	lane_break(lane, err);
	cancel_head(lane, LANE_SEND);
	cancel_head(lane, LANE_RECV);
}

/* The end of a member, unless it has an answer of its own to give. */
static void over(struct group *g, struct member *m, int res)
{
	if (g == g->env->own->group)
		own_over(g->env, m, res);
	else
		group_member_over(g);
}

/* -errno of the broken stream that it is on: nothing goes on there. */
static int broken_by(const struct group *g, const struct member *m)
{
	if (!member_on_lane(m))
		return 0;
	return group_lane(g->env, m->file)->error;
}

/* What stands in line behind a broken stream would never be understood. */
static void turn_away(struct lane *lane, enum lane_way way, struct lane_turn *t)
{
	while (t) {
		struct member *m = whose(t);
		struct group *g = m->group;

		t = lane_leave(lane, way);
		group_fail(g, lane->error, member_carries_data(m) ? m->buf : 0);
		over(g, m, lane->error);
	}
}

/* A member is done with its lane: the next one's turn. */
static void leave_lane(struct group *g, const struct member *m, bool failed,
		       int err)
{
	struct lane *lane = group_lane(g->env, m->file);
	enum lane_way way = m->op == MEMBER_RECV ? LANE_RECV : LANE_SEND;
	struct lane_turn *t = lane_leave(lane, way);

	if ((failed || m->done != m->len) && !lane->error) {
		lane_break(lane, err);
		cancel_head(lane, way == LANE_SEND ? LANE_RECV : LANE_SEND);
	}
	if (lane->error)
		turn_away(lane, way, t);
	else if (t)
		member_issue(whose(t)->group, index_of(whose(t)));
}

/* --- completions ------------------------------------------------------- */

void group_member_over(struct group *g)
{
	if (--g->nr_pending == 0)
		finish(g);
}

void group_cqe(struct group *g, unsigned int index, int res, uint32_t cqe_flags)
{
	const struct ublkd_target_ops *ops = g->env->ops;
	struct member *m = &g->members[index];
	enum verdict verdict;

	if (cqe_flags & IORING_CQE_F_MORE) { /* its pages are still in use */
		m->sent = res;
		return;
	}
	if (cqe_flags & IORING_CQE_F_NOTIF)
		res = m->sent;
	if (ops->on_cqe && g != g->env->own->group)
		res = ops->on_cqe(g->env->target, g, index, res);
	verdict = judge(g, m, res);
	if (verdict != DONE && broken_by(g, m)) {
		verdict = FAILED;
		res = broken_by(g, m);
	}
	switch (verdict) {
	case ISSUE_AGAIN:
		member_issue(g, index);
		return;
	case FAILED:
		group_fail(g, res < 0 ? res : -EIO,
			   member_carries_data(m) ? m->buf + m->done : 0);
		break;
	case DONE:
		break;
	}
	if (member_on_lane(m))
		leave_lane(g, m, verdict == FAILED, res);
	if (verdict == DONE)
		res = (int)m->done;
	else if (res >= 0)
		res = -ECONNRESET;
	over(g, m, res);
}

/* --- requests ---------------------------------------------------------- */

static void submit(struct group *g)
{
	struct group_env *env = g->env;
	int ret;

	if (!env->ops->submit) { /* with all that this turn brings */
		g->nr_pending++;
		env->batch[env->nr_batch++] = g;
		return;
	}
	ret = env->ops->submit(env->target, g, g->iod);
	if (ret < 0)
		group_abandon(g, ret);
}

void groups_turn(struct group_env *env)
{
	unsigned int n = env->nr_batch;

	if (!n)
		return;
	env->nr_batch = 0;
	env->ops->submit_all(env->target, env->batch, n);
	for (unsigned int i = 0; i < n; i++)
		group_member_over(env->batch[i]);
}

/* The pages can be reached, or `ret` says why not. */
static void begin_members(struct group *g, int ret)
{
	struct group_env *env = g->env;

	if (g->lease.user_copy && env->leases->kind != LEASE_USER_COPY)
		env->stats->fallbacks++;
	g->nr_pending++; /* or a member that is turned away would end it */
	if (ret == 0)
		submit(g);
	else
		group_fail(g, ret, 0);
	group_member_over(g);
}

static void clear(struct group *g)
{
	g->covered = 0;
	g->limit = UINT64_MAX;
	g->cut_at = 0;
	g->error = 0;
	g->answered = false;
	g->has_data = false;
	g->nr_members = 0;
	g->nr_pending = 0;
	g->nr_short = 0;
}

void group_restart(struct group *g)
{
	clear(g);
	g->nr_pending++;
	submit(g);
	group_member_over(g);
}

void group_begin(struct group *g, const struct ublksrv_io_desc *iod,
		 uint64_t now_ns)
{
	struct group_env *env = g->env;
	int ret;

	g->iod = iod;
	g->size = iod_bytes(iod);
	clear(g);
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
