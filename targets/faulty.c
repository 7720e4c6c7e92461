/* SPDX-License-Identifier: MIT */
#include "faulty.h"

#include <errno.h>

#include "group.h"

enum roll { ROLL_ERROR, ROLL_DELAY, ROLL_AGAIN, ROLL_ODD, ROLL_SHORT, ROLL_AT };

/* splitmix64, three rounds of it: every input bit reaches every output bit */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

uint32_t faulty_roll(uint64_t seed, uint64_t place, uint32_t what, uint32_t try)
{
	uint64_t how = (uint64_t)what << 32 | try;

	return (uint32_t)mix(mix(mix(seed) ^ place) ^ how);
}

static uint32_t roll_request(const struct faulty *f, const struct group *g,
			     enum roll what)
{
	return faulty_roll(f->seed, g->iod->start_sector,
			   what << 8 | iod_op(g->iod), 0);
}

/* Each issue of each member rolls anew: its bytes so far and its tries. */
static uint32_t roll_member(const struct faulty *f, const struct group *g,
			    unsigned int index, enum roll what)
{
	const struct member *m = &g->members[index];

	return faulty_roll(f->seed ^ index, m->offset + m->done,
			   what << 8 | iod_op(g->iod), m->again);
}

/*
 * A request that starts at sector n is cut n bytes behind its start, modulo
 * its length: whoever goes over the disk in sectors meets every cut there is.
 */
static uint64_t turn(const struct group *g)
{
	uint64_t bytes = iod_bytes(g->iod);

	return bytes ? g->iod->start_sector % bytes : 0;
}

static int serve(const struct faulty *f, struct group *g)
{
	if (f->walk)
		group_cut(g, turn(g));
	return target_submit(f->over, f->over_target, g, g->iod);
}

static int faulty_submit(void *target, struct group *g,
			 const struct ublksrv_io_desc *iod)
{
	const struct faulty *f = target;

	(void)iod;
	if (roll_request(f, g, ROLL_ERROR) < f->error)
		return f->error_number;
	if (roll_request(f, g, ROLL_DELAY) < f->delay)
		return group_delay(g, f->delay_ns);
	return serve(f, g);
}

/* How much of `res` bytes shall have moved: at least one, never more. */
static int cut(const struct faulty *f, const struct group *g,
	       unsigned int index, int res)
{
	uint32_t at = roll_member(f, g, index, ROLL_AT);
	int blocks = res / (int)f->block;

	if (res > 1 && roll_member(f, g, index, ROLL_ODD) < f->short_by_byte)
		return 1 + (int)(at % (uint32_t)(res - 1));
	if (blocks > 1 &&
	    roll_member(f, g, index, ROLL_SHORT) < f->short_by_block)
		return (1 + (int)(at % (uint32_t)(blocks - 1))) * (int)f->block;
	return res;
}

/* Direct I/O has moved whole blocks. */
static int cut_in_turn(const struct group *g, const struct member *m, int res)
{
	uint64_t at = turn(g);

	if (at <= m->buf || at - m->buf >= (uint64_t)res)
		return res;
	return (int)(at - m->buf);
}

static int spoil(const struct faulty *f, const struct group *g,
		 unsigned int index, int res)
{
	const struct member *m = &g->members[index];

	if (res <= 0 || (m->op != MEMBER_READ && m->op != MEMBER_WRITE))
		return res;
	if (roll_member(f, g, index, ROLL_AGAIN) < f->again)
		return -EAGAIN;
	if (f->walk && m->done == 0)
		return cut_in_turn(g, m, res);
	return cut(f, g, index, res);
}

static int faulty_on_cqe(void *target, struct group *g, unsigned int member,
			 int res)
{
	const struct faulty *f = target;

	if (g->members[member].op == MEMBER_DELAY) {
		int ret = serve(f, g);

		group_excuse(g, member);
		if (ret < 0)
			group_complete(g, ret);
		return 0;
	}
	res = spoil(f, g, member, res);
	if (f->over->on_cqe)
		res = f->over->on_cqe(f->over_target, g, member, res);
	return res;
}

static const struct ublkd_target_ops ops = {
	.abi = UBLKD_TARGET_ABI,
	.name = "faulty",
	.submit = faulty_submit,
	.on_cqe = faulty_on_cqe,
};

const struct ublkd_target_ops *faulty_ops(void)
{
	return &ops;
}
