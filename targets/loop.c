/* SPDX-License-Identifier: MIT */
#include "loop.h"

#include <errno.h>

#include "group.h"

#define FILE_SLOT 1

static int loop_submit(void *target, struct group *g,
		       const struct ublksrv_io_desc *iod)
{
	const struct loop *lo = target;
	uint64_t at = lo->offset + iod_offset(iod);
	unsigned int op = iod_op(iod);

	if (op == UBLK_IO_OP_READ)
		return group_read(g, FILE_SLOT, at, 0,
				  (uint32_t)iod_bytes(iod));
	if (op == UBLK_IO_OP_FLUSH && lo->read_only) {
		group_complete(g, 0);
		return 0;
	}
	if (lo->read_only)
		return -EROFS;
	switch (op) {
	case UBLK_IO_OP_WRITE:
		return group_write(g, FILE_SLOT, at, 0,
				   (uint32_t)iod_bytes(iod),
				   backing_write_flags(iod));
	case UBLK_IO_OP_FLUSH:
		return group_fsync(g, FILE_SLOT, IORING_FSYNC_DATASYNC);
	case UBLK_IO_OP_DISCARD:
		return backing_discard(&lo->backing, g, FILE_SLOT, at,
				       iod_bytes(iod));
	case UBLK_IO_OP_WRITE_ZEROES:
		return backing_write_zeroes(&lo->backing, g, FILE_SLOT, at,
					    iod_bytes(iod));
	default:
		return -EOPNOTSUPP;
	}
}

static int loop_on_cqe(void *target, struct group *g, unsigned int member,
		       int res)
{
	struct loop *lo = target;

	return backing_on_cqe(&lo->backing, g, member, res);
}

static const struct ublkd_target_ops ops = {
	.abi = UBLKD_TARGET_ABI,
	.name = "loop",
	.submit = loop_submit,
	.on_cqe = loop_on_cqe,
};

const struct ublkd_target_ops *loop_ops(void)
{
	return &ops;
}
