/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "backing.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/stat.h>

#include "group.h"

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

uint32_t backing_write_flags(const struct ublksrv_io_desc *iod)
{
	return wants_fua(iod) ? RWF_DSYNC : 0;
}

int backing_discard(const struct backing *b, struct group *g, uint16_t file,
		    uint64_t at, uint64_t len)
{
	if (b->block_device)
		return group_discard(g, file, at, len);
	return group_fallocate(g, file, PUNCH, at, len);
}

/* By the best way that the backing has not refused yet. */
int backing_write_zeroes(const struct backing *b, struct group *g,
			 uint16_t file, uint64_t at, uint64_t len)
{
	if (!(g->iod->op_flags & UBLK_IO_F_NOUNMAP) &&
	    !learnt(&b->no_punch_hole))
		return group_fallocate(g, file, PUNCH, at, len);
	if (!learnt(&b->no_zero_range))
		return group_fallocate(g, file, ZERO, at, len);
	return group_zeroes(g, file, at, len, backing_write_flags(g->iod));
}

int backing_on_cqe(struct backing *b, struct group *g, unsigned int member,
		   int res)
{
	const struct member *m = &g->members[member];

	if (m->op != MEMBER_FALLOCATE ||
	    iod_op(g->iod) != UBLK_IO_OP_WRITE_ZEROES)
		return res;
	if (res == -EOPNOTSUPP) {
		learn(m->flags & FALLOC_FL_PUNCH_HOLE ? &b->no_punch_hole
						      : &b->no_zero_range);
		return backing_write_zeroes(b, g, m->file, m->offset, m->len);
	}
	if (res == 0 && wants_fua(g->iod))
		return group_fsync(g, m->file, IORING_FSYNC_DATASYNC);
	return res;
}

/* --- what backing.py asks before the device exists --------------------- */

int backing_dio_align(int fd, uint32_t *mem, uint32_t *offset)
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

int backing_probe_discard(int fd)
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

int backing_probe_punch_hole(int fd, uint64_t beyond_end)
{
	if (fallocate(fd, PUNCH, (off_t)beyond_end, 4096))
		return -errno;
	return 0;
}
