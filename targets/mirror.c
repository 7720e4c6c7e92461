/* SPDX-License-Identifier: MIT */
#include "mirror.h"

#include <errno.h>

#include "group.h"

static uint16_t slot(uint32_t leg)
{
	return (uint16_t)(leg + 1);
}

static uint64_t failed(const struct mirror *m)
{
	return __atomic_load_n(&m->failed, __ATOMIC_ACQUIRE);
}

static bool works(const struct mirror *m, uint32_t leg)
{
	return !(failed(m) >> leg & 1);
}

static uint32_t first_that_works(const struct mirror *m)
{
	uint32_t leg = 0;

	while (leg + 1 < m->nr_legs && !works(m, leg))
		leg++;
	return leg;
}

/*
 * A leg that failed is left alone from now on: it may lack what the others
 * have. The last one is never given up. Returns whether others go on
 * without this one.
 */
static bool give_up(struct mirror *m, struct group *g, uint32_t leg)
{
	uint64_t all = (1ULL << m->nr_legs) - 1;
	uint64_t before = failed(m);
	uint64_t after;

	do {
		after = before | 1ULL << leg;
		if (after == all)
			return false;
	} while (!__atomic_compare_exchange_n(&m->failed, &before, after, false,
					      __ATOMIC_ACQ_REL,
					      __ATOMIC_ACQUIRE));
	group_report_failed(g, slot(leg));
	return true;
}

static int one_leg(struct mirror *m, struct group *g, uint32_t leg)
{
	const struct ublksrv_io_desc *iod = g->iod;
	const struct backing *b = &m->legs[leg];
	uint64_t at = iod_offset(iod), len = iod_bytes(iod);

	switch (iod_op(iod)) {
	case UBLK_IO_OP_READ:
		return group_read(g, slot(leg), at, 0, (uint32_t)len);
	case UBLK_IO_OP_WRITE:
		return group_write(g, slot(leg), at, 0, (uint32_t)len,
				   backing_write_flags(iod));
	case UBLK_IO_OP_FLUSH:
		return group_fsync(g, slot(leg), IORING_FSYNC_DATASYNC);
	case UBLK_IO_OP_DISCARD:
		return backing_discard(b, g, slot(leg), at, len);
	case UBLK_IO_OP_WRITE_ZEROES:
		return backing_write_zeroes(b, g, slot(leg), at, len);
	default:
		return -EOPNOTSUPP;
	}
}

static int mirror_submit(void *target, struct group *g,
			 const struct ublksrv_io_desc *iod)
{
	struct mirror *m = target;
	int ret = 0;

	if (iod_op(iod) == UBLK_IO_OP_READ)
		return one_leg(m, g, first_that_works(m));
	for (uint32_t leg = 0; leg < m->nr_legs && ret == 0; leg++)
		if (works(m, leg))
			ret = one_leg(m, g, leg);
	return ret;
}

static bool is_failure(const struct group *g, unsigned int index, int res)
{
	const struct member *member = &g->members[index];
	bool data = member->op == MEMBER_READ || member->op == MEMBER_WRITE ||
		    member->op == MEMBER_ZEROES;

	if (res == -EAGAIN || res == -EINTR)
		return group_last_try(g, index);
	/* not its kind of work: it holds what it held */
	if (res == -EOPNOTSUPP &&
	    (member->op == MEMBER_DISCARD || member->op == MEMBER_FALLOCATE))
		return false;
	return res < 0 || (data && res == 0);
}

/* The others answer for what this leg did not do. */
static int mirror_on_cqe(void *target, struct group *g, unsigned int member,
			 int res)
{
	struct mirror *m = target;
	uint32_t leg = g->members[member].file - 1U;

	res = backing_on_cqe(&m->legs[leg], g, member, res);
	if (!is_failure(g, member, res) || !give_up(m, g, leg))
		return res;
	group_excuse(g, member);
	if (iod_op(g->iod) == UBLK_IO_OP_READ)
		return one_leg(m, g, first_that_works(m));
	return 0;
}

static const struct ublkd_target_ops ops = {
	.abi = UBLKD_TARGET_ABI,
	.name = "mirror",
	.submit = mirror_submit,
	.on_cqe = mirror_on_cqe,
};

const struct ublkd_target_ops *mirror_ops(void)
{
	return &ops;
}
