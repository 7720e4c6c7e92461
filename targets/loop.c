/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "loop.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/stat.h>

#include "group.h"

#define BACKING 1 /* its fixed file slot */
#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define ZERO (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)

#ifndef RWF_DSYNC
#define RWF_DSYNC 0x00000002
#endif

static bool learnt(const bool *refused)
{
	return __atomic_load_n(refused, __ATOMIC_RELAXED);
}

static void learn(bool *refused)
{
	__atomic_store_n(refused, true, __ATOMIC_RELAXED);
}

static bool wants_fua(const struct ublksrv_io_desc *iod)
{
	return iod->op_flags & UBLK_IO_F_FUA;
}

static uint32_t write_flags(const struct ublksrv_io_desc *iod)
{
	return wants_fua(iod) ? RWF_DSYNC : 0;
}

static int discard(const struct loop *lo, struct group *g,
		   const struct ublksrv_io_desc *iod)
{
	uint64_t at = lo->offset + iod_offset(iod);

	if (lo->block_device)
		return group_discard(g, BACKING, at, iod_bytes(iod));
	return group_fallocate(g, BACKING, PUNCH, at, iod_bytes(iod));
}

/* The best way to zero a range that the backing has not refused yet. */
static int write_zeroes(const struct loop *lo, struct group *g,
			const struct ublksrv_io_desc *iod)
{
	uint64_t at = lo->offset + iod_offset(iod);
	uint64_t len = iod_bytes(iod);

	if (!(iod->op_flags & UBLK_IO_F_NOUNMAP) && !learnt(&lo->no_punch_hole))
		return group_fallocate(g, BACKING, PUNCH, at, len);
	if (!learnt(&lo->no_zero_range))
		return group_fallocate(g, BACKING, ZERO, at, len);
	return group_zeroes(g, BACKING, at, len, write_flags(iod));
}

static int loop_submit(void *target, struct group *g,
		       const struct ublksrv_io_desc *iod)
{
	const struct loop *lo = target;
	uint64_t at = lo->offset + iod_offset(iod);
	unsigned int op = iod_op(iod);

	if (op == UBLK_IO_OP_READ)
		return group_read(g, BACKING, at, 0, (uint32_t)iod_bytes(iod));
	if (op == UBLK_IO_OP_FLUSH && lo->read_only) {
		group_complete(g, 0);
		return 0;
	}
	if (lo->read_only)
		return -EROFS;
	switch (op) {
	case UBLK_IO_OP_WRITE:
		return group_write(g, BACKING, at, 0, (uint32_t)iod_bytes(iod),
				   write_flags(iod));
	case UBLK_IO_OP_FLUSH:
		return group_fsync(g, BACKING, IORING_FSYNC_DATASYNC);
	case UBLK_IO_OP_DISCARD:
		return discard(lo, g, iod);
	case UBLK_IO_OP_WRITE_ZEROES:
		return write_zeroes(lo, g, iod);
	default:
		return -EOPNOTSUPP;
	}
}

/*
 * WRITE_ZEROES only: a way that the backing refuses is replaced by the next
 * one, and FUA behind a fallocate is an fsync.
 */
static int loop_on_cqe(void *target, struct group *g, unsigned int member,
		       int res)
{
	const struct member *m = &g->members[member];
	struct loop *lo = target;

	if (m->op != MEMBER_FALLOCATE ||
	    iod_op(g->iod) != UBLK_IO_OP_WRITE_ZEROES)
		return res;
	if (res == -EOPNOTSUPP) {
		learn(m->flags & FALLOC_FL_PUNCH_HOLE ? &lo->no_punch_hole
						      : &lo->no_zero_range);
		return write_zeroes(lo, g, g->iod);
	}
	if (res == 0 && wants_fua(g->iod))
		return group_fsync(g, BACKING, IORING_FSYNC_DATASYNC);
	return res;
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

/* --- what loop.py asks before the device exists ------------------------ */

int loop_dio_align(int fd, uint32_t *mem, uint32_t *offset)
{
#ifdef STATX_DIOALIGN
	struct statx st;

	memset(&st, 0, sizeof(st));
	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st))
		return -errno;
	if (!(st.stx_mask & STATX_DIOALIGN))
		return -EOPNOTSUPP;
	if (!st.stx_dio_offset_align)
		return -EINVAL;
	*mem = st.stx_dio_mem_align;
	*offset = st.stx_dio_offset_align;
	return 0;
#else
	(void)fd;
	(void)mem;
	(void)offset;
	return -EOPNOTSUPP;
#endif
}

int loop_probe_discard(int fd)
{
	struct io_uring ring;
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	int ret = io_uring_queue_init(2, &ring, 0);

	if (ret < 0)
		return ret;
	sqe = io_uring_get_sqe(&ring);
	if (!sqe) {
		io_uring_queue_exit(&ring);
		return -EBUSY;
	}
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = fd;
	sqe->off = UBLKD_BLOCK_URING_CMD_DISCARD;
	/* no bytes: -EINVAL from whoever knows the command */
	ret = io_uring_submit_and_wait(&ring, 1);
	if (ret >= 0)
		ret = io_uring_wait_cqe(&ring, &cqe);
	if (ret >= 0)
		ret = cqe->res == -EINVAL ? 0 : cqe->res;
	io_uring_queue_exit(&ring);
	return ret;
}

int loop_probe_punch_hole(int fd, uint64_t beyond_end)
{
	if (fallocate(fd, PUNCH, (off_t)beyond_end, 4096))
		return -errno;
	return 0;
}
