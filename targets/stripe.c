/* SPDX-License-Identifier: MIT */
#include "stripe.h"

#include <errno.h>

#include "group.h"

static uint16_t slot(uint32_t leg)
{
	return (uint16_t)(leg + 1);
}

/* A READ or WRITE: one member per chunk that it touches, in order. */
static int transfer(const struct stripe *s, struct group *g,
		    const struct ublksrv_io_desc *iod)
{
	uint64_t pos = iod_offset(iod), end = pos + iod_bytes(iod);
	uint32_t rwf = backing_write_flags(iod), buf = 0;
	int ret = 0;

	while (pos < end && ret == 0) {
		uint64_t chunk = pos / s->chunk, within = pos % s->chunk;
		uint64_t at = chunk / s->nr_legs * s->chunk + within;
		uint16_t file = slot((uint32_t)(chunk % s->nr_legs));
		uint64_t left = s->chunk - within;
		uint32_t len = (uint32_t)(left < end - pos ? left : end - pos);

		if (iod_op(iod) == UBLK_IO_OP_READ)
			ret = group_read(g, file, at, buf, len);
		else
			ret = group_write(g, file, at, buf, len, rwf);
		pos += len;
		buf += len;
	}
	/* a prefix is committed then, and the rest comes back */
	return ret == -E2BIG ? 0 : ret;
}

uint64_t stripe_leg_pos(const struct stripe *s, uint32_t leg, uint64_t pos)
{
	uint64_t row = s->chunk * s->nr_legs, rest = pos % row;
	uint64_t before = leg * s->chunk, here = 0;

	if (rest > before)
		here = rest - before < s->chunk ? rest - before : s->chunk;
	return pos / row * s->chunk + here;
}

/* What a range of the disk is on one leg is one range there. */
static int each_leg(const struct stripe *s, struct group *g,
		    const struct ublksrv_io_desc *iod)
{
	uint64_t pos = iod_offset(iod), end = pos + iod_bytes(iod);
	int ret = 0;

	for (uint32_t leg = 0; leg < s->nr_legs && ret == 0; leg++) {
		const struct backing *b = &s->legs[leg];
		uint64_t from = stripe_leg_pos(s, leg, pos);
		uint64_t len = stripe_leg_pos(s, leg, end) - from;

		if (iod_op(iod) == UBLK_IO_OP_FLUSH)
			ret = group_fsync(g, slot(leg), IORING_FSYNC_DATASYNC);
		else if (!len)
			continue;
		else if (iod_op(iod) == UBLK_IO_OP_DISCARD)
			ret = backing_discard(b, g, slot(leg), from, len);
		else
			ret = backing_write_zeroes(b, g, slot(leg), from, len);
	}
	return ret;
}

static int stripe_submit(void *target, struct group *g,
			 const struct ublksrv_io_desc *iod)
{
	const struct stripe *s = target;

	switch (iod_op(iod)) {
	case UBLK_IO_OP_READ:
	case UBLK_IO_OP_WRITE:
		return transfer(s, g, iod);
	case UBLK_IO_OP_FLUSH:
	case UBLK_IO_OP_DISCARD:
	case UBLK_IO_OP_WRITE_ZEROES:
		return each_leg(s, g, iod);
	default:
		return -EOPNOTSUPP;
	}
}

static int stripe_on_cqe(void *target, struct group *g, unsigned int member,
			 int res)
{
	struct stripe *s = target;

	return backing_on_cqe(&s->legs[g->members[member].file - 1], g, member,
			      res);
}

static const struct ublkd_target_ops ops = {
	.abi = UBLKD_TARGET_ABI,
	.name = "stripe",
	.submit = stripe_submit,
	.on_cqe = stripe_on_cqe,
};

const struct ublkd_target_ops *stripe_ops(void)
{
	return &ops;
}
