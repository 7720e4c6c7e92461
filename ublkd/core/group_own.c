/* SPDX-License-Identifier: MIT */
#include "own.h"

#include <errno.h>
#include <stdlib.h>

#include "group.h"
#include "group_impl.h"
#include "lane.h"
#include "ring.h"

struct own *own_new(struct group_env *env, uint16_t depth)
{
	struct own *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->depth = depth;
	o->group = &env->groups[depth];
	o->group->env = env;
	o->group->tag = depth;
	o->group->members = o->members;
	return o;
}

uint16_t own_depth(const struct own *o)
{
	return o->depth;
}

uint16_t own_qid(const struct own *o)
{
	return o->group->env->leases->qid;
}

struct queue_stats *own_stats(const struct own *o)
{
	return o->group->env->stats;
}

struct group *own_group(const struct own *o, uint16_t tag)
{
	return &o->group->env->groups[tag];
}

int own_attach(struct own *o, uint16_t file, int fd)
{
	struct group_env *env = o->group->env;
	int ret;

	if (file >= env->nr_lanes)
		return -EINVAL;
	ret = lane_attach(&env->lanes[file], fd);
	if (ret < 0)
		return ret;
	ret = ring_set_file(env->ring, file, fd);
	if (ret < 0)
		lane_break(&env->lanes[file], ret);
	return ret;
}

void own_break(struct own *o, uint16_t file, int err)
{
	struct lane *lane = group_lane(o->group->env, file);

	if (lane)
		group_break_lane(lane, err);
}

void own_farewell(struct own *o, uint16_t file, const void *memory,
		  uint32_t len)
{
	struct lane *lane = group_lane(o->group->env, file);

	if (lane)
		lane_end(lane, memory, len);
}

/* --- transfers and delays ---------------------------------------------- */

static void begin(struct own *o, unsigned int id, const struct member *m)
{
	o->members[id] = *m;
	o->members[id].group = o->group;
	o->group->nr_pending++;
}

static int transfer(struct own *o, unsigned int id, const struct member *m)
{
	struct lane *lane = group_lane(o->group->env, m->file);
	enum lane_way way = m->op == MEMBER_RECV ? LANE_RECV : LANE_SEND;

	if (!lane)
		return -ENOTSOCK;
	if (o->ending)
		return -ECANCELED;
	if (lane->error)
		return lane->error;
	begin(o, id, m);
	if (lane_enter(lane, way, &o->members[id].turn))
		member_issue(o->group, id);
	return 0;
}

int own_recv(struct own *o, unsigned int id, uint16_t file, void *memory,
	     uint32_t len)
{
	return transfer(o, id,
			&(struct member){ .op = MEMBER_RECV,
					  .file = file,
					  .memory = memory,
					  .len = len });
}

int own_recv_now(const struct own *o, uint16_t file, void *memory, uint32_t len)
{
	const struct lane *lane = group_lane(o->group->env, file);

	return lane ? lane_recv_now(lane, memory, len) : -ENOTSOCK;
}

int own_send(struct own *o, unsigned int id, uint16_t file, const void *memory,
	     uint32_t len, uint32_t flags)
{
	return transfer(o, id,
			&(struct member){ .op = MEMBER_SEND,
					  .file = file,
					  .memory = memory,
					  .len = len,
					  .flags = flags });
}

void own_delay(struct own *o, unsigned int id, uint64_t ns)
{
	/* that the time is over is told as -ETIME */
	const struct member m = {
		.op = MEMBER_DELAY,
		.excused = true,
		.wait = { .tv_sec = (int64_t)(ns / 1000000000),
			  .tv_nsec = (long long)(ns % 1000000000) },
	};

	if (o->ending)
		return;
	begin(o, id, &m);
	member_issue(o->group, id);
}

void own_over(struct group_env *env, struct member *m, int res)
{
	struct own *o = env->own;

	o->group->nr_pending--;
	m->group = NULL; /* free */
	if (o->started && !o->ending)
		env->ops->on_own(env->target, (unsigned int)(m - o->members),
				 res);
}

/* --- for the queue ----------------------------------------------------- */

int groups_start(struct group_env *env)
{
	int ret;

	if (!env->ops->start)
		return 0;
	ret = env->ops->start(env->target, env->own, &env->target);
	env->own->started = ret == 0;
	return ret;
}

bool groups_wind_up(const struct group_env *env)
{
	return env->own->started && !env->own->ending && env->ops->winds_up &&
	       env->ops->winds_up(env->target);
}

static void break_off(struct group_env *env, unsigned int id)
{
	struct member *m = &env->own->members[id];

	if (!m->group)
		return;
	if (member_on_lane(m))
		own_break(env->own, m->file, -ECANCELED);
	else
		member_cancel(env->own->group, id);
}

void groups_break(struct group_env *env)
{
	if (!env->own->started || env->own->ending)
		return;
	env->own->ending = true;
	if (env->ops->bye)
		env->ops->bye(env->target);
	for (unsigned int id = 0; id < OWN_MEMBERS; id++)
		break_off(env, id);
}

bool groups_busy(const struct group_env *env)
{
	return env->own->group->nr_pending;
}

void groups_end(struct group_env *env)
{
	if (!env->own->started || groups_busy(env))
		return;
	env->own->started = false;
	env->ops->end(env->target);
}
