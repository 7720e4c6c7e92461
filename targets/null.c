/* SPDX-License-Identifier: MIT */
/*
 * The null target: writes vanish, reads are zeroes. The zeroes are real
 * (read from /dev/zero, file 1): a page that nobody filled would show the
 * reader some other program's memory.
 */
#include "null.h"

#include <errno.h>

#include "group.h"

static int null_submit(void *target, struct group *g,
		       const struct ublksrv_io_desc *iod)
{
	(void)target;
	switch (iod_op(iod)) {
	case UBLK_IO_OP_READ:
		return group_read(g, 1, 0, 0, (uint32_t)iod_bytes(iod));
	case UBLK_IO_OP_WRITE:
		group_complete(g, (int)iod_bytes(iod));
		return 0;
	case UBLK_IO_OP_FLUSH:
	case UBLK_IO_OP_DISCARD:
	case UBLK_IO_OP_WRITE_ZEROES:
		group_complete(g, 0);
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static const struct ublkd_target_ops ops = {
	.abi = UBLKD_TARGET_ABI,
	.name = "null",
	.submit = null_submit,
};

const struct ublkd_target_ops *null_ops(void)
{
	return &ops;
}
