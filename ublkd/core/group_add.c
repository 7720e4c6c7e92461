/* SPDX-License-Identifier: MIT */
/* What a target may do with a group. */
#include <errno.h>
#include <stdbool.h>

#include "group.h"
#include "group_impl.h"
#include "member.h"
#include "stats.h"

/* More than one request can have: what is left of it comes back later. */
static int refuse(struct group *g, const struct member *m)
{
	if (member_on_lane(m)) /* the other side would wait for its bytes */
		group_break_lane(group_lane(g->env, m->file), -E2BIG);
	if (member_carries_data(m)) /* a sibling may have covered its bytes */
		group_end_at(g, m->buf);
	else /* nobody would do its work later */
		group_fail(g, -EIO, 0);
	return -E2BIG;
}

/* Within the request, and in its direction: others have no pages at all. */
static bool fits(const struct group *g, const struct member *m)
{
	bool into = m->op == MEMBER_READ || m->op == MEMBER_RECV;

	return iod_op(g->iod) == (into ? UBLK_IO_OP_READ : UBLK_IO_OP_WRITE) &&
	       m->buf + m->len <= g->size;
}

static struct member *add(struct group *g, const struct member *m, int *ret)
{
	struct member *added = &g->members[g->nr_members];

	*ret = 0;
	if (member_transfers(m) && !m->len)
		return NULL;
	*ret = -EINVAL;
	/* the bytes behind a request's own may be another request's */
	if (member_carries_data(m) && !fits(g, m)) {
		group_fail(g, -EINVAL, 0);
		return NULL;
	}
	g->has_data |= member_carries_data(m);
	if (g->nr_members == g->env->max_members) {
		*ret = refuse(g, m);
		return NULL;
	}
	*added = *m;
	added->group = g;
	g->nr_members++;
	g->nr_pending++;
	if (member_carries_data(m) && m->buf <= g->covered &&
	    m->buf + m->len > g->covered)
		g->covered = m->buf + m->len;
	*ret = 0;
	return added;
}

static int add_and_issue(struct group *g, const struct member *m)
{
	int ret;
	const struct member *added = add(g, m, &ret);

	if (added)
		member_issue(g, (unsigned int)(added - g->members));
	return ret;
}

int group_read(struct group *g, uint16_t file, uint64_t offset, uint32_t buf,
	       uint32_t len)
{
	return add_and_issue(g, &(struct member){ .op = MEMBER_READ,
						  .file = file,
						  .offset = offset,
						  .buf = buf,
						  .len = len });
}

int group_write(struct group *g, uint16_t file, uint64_t offset, uint32_t buf,
		uint32_t len, uint32_t rwf)
{
	return add_and_issue(g, &(struct member){ .op = MEMBER_WRITE,
						  .file = file,
						  .offset = offset,
						  .buf = buf,
						  .len = len,
						  .flags = rwf });
}

int group_zeroes(struct group *g, uint16_t file, uint64_t offset, uint64_t len,
		 uint32_t rwf)
{
	return add_and_issue(g, &(struct member){ .op = MEMBER_ZEROES,
						  .file = file,
						  .offset = offset,
						  .len = len,
						  .flags = rwf });
}

int group_fsync(struct group *g, uint16_t file, uint32_t fsync_flags)
{
	return add_and_issue(g, &(struct member){ .op = MEMBER_FSYNC,
						  .file = file,
						  .flags = fsync_flags });
}

int group_fallocate(struct group *g, uint16_t file, uint32_t mode,
		    uint64_t offset, uint64_t len)
{
	return add_and_issue(g, &(struct member){ .op = MEMBER_FALLOCATE,
						  .file = file,
						  .offset = offset,
						  .len = len,
						  .flags = mode });
}

int group_discard(struct group *g, uint16_t file, uint64_t offset, uint64_t len)
{
	return add_and_issue(g, &(struct member){ .op = MEMBER_DISCARD,
						  .file = file,
						  .offset = offset,
						  .len = len });
}

int group_delay(struct group *g, uint64_t ns)
{
	return add_and_issue(
		g, &(struct member){
			   .op = MEMBER_DELAY,
			   .wait = { .tv_sec = (int64_t)(ns / 1000000000),
				     .tv_nsec = (long long)(ns % 1000000000) },
		   });
}

static int add_to_lane(struct group *g, const struct member *m)
{
	struct lane *lane = group_lane(g->env, m->file);
	enum lane_way way = m->op == MEMBER_RECV ? LANE_RECV : LANE_SEND;
	struct member *added;
	int ret;

	if (!lane || lane->error) {
		ret = lane ? lane->error : -ENOTSOCK;
		group_fail(g, ret, 0);
		return ret;
	}
	added = add(g, m, &ret);
	if (added && lane_enter(lane, way, &added->turn))
		member_issue(g, (unsigned int)(added - g->members));
	if (ret == -EINVAL) /* the rest of the message may go out already */
		group_break_lane(lane, ret);
	return ret;
}

int group_send(struct group *g, uint16_t file, uint32_t buf, uint32_t len,
	       uint32_t flags)
{
	bool zc = flags & GROUP_SEND_ZC && g->env->ops->flags & UBLKD_SENDS_ZC;

	return add_to_lane(
		g, &(struct member){ .op = zc ? MEMBER_SEND_ZC : MEMBER_SEND,
				     .file = file,
				     .buf = buf,
				     .len = len,
				     .flags = flags & ~GROUP_SEND_ZC });
}

int group_recv(struct group *g, uint16_t file, uint32_t buf, uint32_t len)
{
	return add_to_lane(g, &(struct member){ .op = MEMBER_RECV,
						.file = file,
						.buf = buf,
						.len = len });
}

int group_send_memory(struct group *g, uint16_t file, const void *memory,
		      uint32_t len, uint32_t flags)
{
	return add_to_lane(g,
			   &(struct member){ .op = MEMBER_SEND,
					     .file = file,
					     .memory = memory,
					     .len = len,
					     .flags = flags & ~GROUP_SEND_ZC });
}

int group_recv_memory(struct group *g, uint16_t file, void *memory,
		      uint32_t len)
{
	return group_recv_expected(g, file, memory, len, NULL);
}

int group_recv_expected(struct group *g, uint16_t file, void *memory,
			uint32_t len, const void *expected)
{
	return add_to_lane(g, &(struct member){ .op = MEMBER_RECV,
						.file = file,
						.memory = memory,
						.expected = expected,
						.len = len });
}

void group_cut(struct group *g, uint64_t at)
{
	g->cut_at = at;
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
	if (!g->answered || answer < g->answer)
		g->answer = answer;
	g->answered = true;
	if (answer < 0)
		group_fail(g, answer, 0);
}

int group_error(const struct group *g)
{
	return g->error;
}

void group_fail_with(struct group *g, int err)
{
	g->error = err;
	group_end_at(g, 0);
}

void group_abandon(struct group *g, int err)
{
	group_fail(g, err, 0);
	for (unsigned int i = 0; i < g->nr_members; i++) {
		const struct member *m = &g->members[i];

		if (member_on_lane(m))
			group_break_lane(group_lane(g->env, m->file), err);
	}
}
