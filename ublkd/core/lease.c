/* SPDX-License-Identifier: MIT */
#include "lease.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ring.h"
#include "target.h"

static bool carries_data(const struct ublksrv_io_desc *iod)
{
	return iod_op(iod) == UBLK_IO_OP_READ ||
	       iod_op(iod) == UBLK_IO_OP_WRITE;
}

int lease_table_init(struct lease_table *t, struct ring *ring, uint16_t depth)
{
	void *arena;
	int ret;

	if (t->kind == LEASE_AUTO && t->slots) {
		ret = io_uring_register_buffers_sparse(&ring->uring, t->slots);
		if (ret < 0)
			return ret;
	}
	/*
	 * Address space only: a page that no request ever used costs nothing.
	 */
	t->arena_bytes = (uint64_t)depth * t->max_io;
	arena = mmap(NULL, t->arena_bytes, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED)
		return -errno;
	/* and a page that one did use costs a page, not two megabytes */
	(void)madvise(arena, t->arena_bytes, MADV_NOHUGEPAGE);
	t->arena = arena;
	return 0;
}

void lease_table_deinit(struct lease_table *t)
{
	if (t->arena)
		munmap(t->arena, t->arena_bytes);
	t->arena = NULL;
}

static unsigned char *buffer(const struct lease_table *t, uint16_t tag)
{
	return t->arena + (uint64_t)tag * t->max_io;
}

void lease_prep_fetch(const struct lease_table *t, uint16_t tag,
		      struct io_uring_sqe *sqe, struct ublksrv_io_cmd *cmd)
{
	if (t->kind == LEASE_COPY)
		cmd->addr = (__u64)(uintptr_t)buffer(t, tag);
	else if (t->kind == LEASE_AUTO)
		/* without FALLBACK a failure would be a silent I/O error */
		sqe->addr = tag | UBLK_AUTO_BUF_REG_FALLBACK
					  << UBLK_AUTO_BUF_REG_FLAGS_SHIFT;
}

static off_t request_pos(const struct lease_table *t, uint16_t tag)
{
	return (off_t)(UBLKSRV_IO_BUF_OFFSET +
		       ((uint64_t)t->qid << UBLK_QID_OFF) +
		       ((uint64_t)tag << UBLK_TAG_OFF));
}

/* Moves bytes between the request and its buffer; how many, or -errno. */
static int carry(const struct lease_table *t, uint16_t tag, bool to_request,
		 uint32_t bytes)
{
	uint32_t done = 0;

	while (done < bytes) {
		unsigned char *at = buffer(t, tag) + done;
		off_t pos = request_pos(t, tag) + done;
		ssize_t n = to_request
				    ? pwrite(t->dev_fd, at, bytes - done, pos)
				    : pread(t->dev_fd, at, bytes - done, pos);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return done ? (int)done : -errno;
		if (n == 0)
			break;
		done += (uint32_t)n;
	}
	return (int)done;
}

int lease_begin(struct lease_table *t, struct lease *l, uint16_t tag,
		const struct ublksrv_io_desc *iod)
{
	uint64_t bytes = iod_bytes(iod);
	int ret;

	l->lent = false;
	l->user_copy = false;
	if (!carries_data(iod))
		return 0;
	l->lent = t->kind == LEASE_AUTO &&
		  !(iod->op_flags & UBLK_IO_F_NEED_REG_BUF);
	if (l->lent || t->kind == LEASE_COPY)
		return 0;

	l->user_copy = true;
	if (bytes > t->max_io)
		return -EIO;
	if (iod_op(iod) != UBLK_IO_OP_WRITE)
		return 0;
	ret = carry(t, tag, false, (uint32_t)bytes);
	if (ret < 0)
		return ret;
	return (uint64_t)ret == bytes ? 0 : -EIO;
}

void lease_bind(const struct lease_table *t, const struct lease *l,
		uint16_t tag, struct io_uring_sqe *sqe, bool write,
		uint64_t buf, uint32_t len)
{
	sqe->len = len;
	if (l->lent) {
		sqe->opcode =
			write ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED;
		sqe->addr = buf; /* a kernel buffer starts at 0 */
		sqe->buf_index = tag;
	} else {
		sqe->opcode = write ? IORING_OP_WRITE : IORING_OP_READ;
		sqe->addr = (__u64)(uintptr_t)(buffer(t, tag) + buf);
	}
}

int lease_end(struct lease_table *t, const struct lease *l, uint16_t tag,
	      bool is_read, uint32_t filled)
{
	if (!l->user_copy || !is_read)
		return (int)filled;
	return carry(t, tag, true, filled);
}
