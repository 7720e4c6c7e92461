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

int lease_table_init(struct lease_table *t, uint16_t depth)
{
	bool table = t->kind == LEASE_AUTO || t->kind == LEASE_REGISTER;
	void *arena;
	int ret;

	if (table && t->slots) {
		ret = io_uring_register_buffers_sparse(&t->ring->uring,
						       t->slots);
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

/* Moves bytes between the request and memory; how many, or -errno. */
static int carry(const struct lease_table *t, uint16_t tag, bool to_request,
		 void *memory, uint32_t bytes)
{
	uint32_t done = 0;

	while (done < bytes) {
		unsigned char *at = (unsigned char *)memory + done;
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

/* All of a WRITE's first bytes: 0 or -errno. */
static int carry_out(const struct lease_table *t, uint16_t tag, void *to,
		     uint32_t bytes)
{
	int ret = carry(t, tag, false, to, bytes);

	if (ret < 0)
		return ret;
	return (uint32_t)ret == bytes ? 0 : -EIO;
}

/* We carry the bytes: those of a WRITE now, those of a READ at the end. */
static int carry_ourselves(struct lease_table *t, struct lease *l, uint16_t tag,
			   const struct ublksrv_io_desc *iod)
{
	uint64_t bytes = iod_bytes(iod);

	l->user_copy = true;
	if (bytes > t->max_io)
		return -EIO;
	if (iod_op(iod) != UBLK_IO_OP_WRITE)
		return 0;
	return carry_out(t, tag, buffer(t, tag), (uint32_t)bytes);
}

/* A command on /dev/ublkcN about the pages of `tag`. */
static struct io_uring_sqe *prep_lend(struct lease_table *t, uint16_t tag,
				      uint32_t op, uint64_t index)
{
	struct io_uring_sqe *sqe = ring_sqe(t->ring);
	struct ublksrv_io_cmd cmd = {
		.q_id = t->qid,
		.tag = tag,
		.addr = index,
	};

	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = 0;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->off = op; /* cmd_op is its low half */
	memcpy(&sqe->addr3, &cmd, sizeof(cmd)); /* the command area */
	return sqe;
}

int lease_begin(struct lease_table *t, struct lease *l, uint16_t tag,
		const struct ublksrv_io_desc *iod)
{
	bool lent_already = t->kind == LEASE_AUTO &&
			    !(iod->op_flags & UBLK_IO_F_NEED_REG_BUF);

	*l = (struct lease){ 0 };
	if (!carries_data(iod) || t->kind == LEASE_COPY)
		return 0;
	if (t->kind == LEASE_GROUP) {
		l->led = true;
		return 0;
	}
	if (lent_already) {
		l->lent = true;
		return 0;
	}
	if (t->kind == LEASE_USER_COPY)
		return carry_ourselves(t, l, tag, iod);
	/*
	 * Never linked to the members: they wait for the answer. A link would
	 * let them run on another request's pages, or leave these lent.
	 */
	prep_lend(t, tag, UBLK_U_IO_REGISTER_IO_BUF, tag)->user_data =
		UD_LEND | tag;
	return LEASE_PENDING;
}

int lease_lent(struct lease_table *t, struct lease *l, uint16_t tag,
	       const struct ublksrv_io_desc *iod, int res)
{
	if (res < 0)
		return carry_ourselves(t, l, tag, iod);
	l->lent = true;
	l->ours = true;
	return 0;
}

void lease_take_back(struct lease_table *t, uint16_t tag)
{
	struct io_uring_sqe *sqe =
		prep_lend(t, tag, UBLK_U_IO_UNREGISTER_IO_BUF, tag);

	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	sqe->user_data = UD_UNLEND | tag;
}

void lease_release(struct lease_table *t, const struct lease *l, uint16_t tag)
{
	if (l->ours)
		lease_take_back(t, tag);
}

void lease_lead(struct lease_table *t, const struct lease *l, uint16_t tag)
{
	struct io_uring_sqe *sqe;

	if (!l->led)
		return;
	ring_reserve(t->ring, 2); /* a group does not cross submissions */
	sqe = prep_lend(t, tag, UBLKD_U_IO_PROVIDE_IO_BUF, 0);
	sqe->flags |= UBLKD_IOSQE_SQE_GROUP | IOSQE_CQE_SKIP_SUCCESS;
	/* where the leader fails its member does too, and that one tells */
	sqe->user_data = UD_LEND | UD_UNLEND | tag;
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
		return;
	}
	sqe->opcode = write ? IORING_OP_WRITE : IORING_OP_READ;
	if (l->led) {
		sqe->addr = buf;
		sqe->flags |= UBLKD_IOSQE_GROUP_BUF;
	} else {
		sqe->addr = (__u64)(uintptr_t)(buffer(t, tag) + buf);
	}
}

static uint8_t stream_opcode(enum stream_op op)
{
	if (op == STREAM_RECV)
		return IORING_OP_RECV;
	return op == STREAM_SEND_ZC ? IORING_OP_SEND_ZC : IORING_OP_SEND;
}

void lease_bind_stream(const struct lease_table *t, const struct lease *l,
		       uint16_t tag, struct io_uring_sqe *sqe,
		       enum stream_op op, uint64_t buf, uint32_t len,
		       uint32_t msg_flags)
{
	sqe->opcode = stream_opcode(op);
	sqe->len = len;
	sqe->addr = buf;
	sqe->msg_flags = msg_flags;
	if (l->led) {
		if (op == STREAM_SEND_ZC) /* no member of a group */
			sqe->opcode = IORING_OP_SEND;
		sqe->flags |= UBLKD_IOSQE_GROUP_BUF;
	} else if (!l->lent) {
		sqe->addr = (__u64)(uintptr_t)(buffer(t, tag) + buf);
	} else {
		sqe->buf_index = tag;
		if (t->fixed_streams || op == STREAM_SEND_ZC) {
			sqe->ioprio |= IORING_RECVSEND_FIXED_BUF;
		} else {
			sqe->opcode = op == STREAM_RECV ? IORING_OP_READ_FIXED
							: IORING_OP_WRITE_FIXED;
			sqe->rw_flags = 0;
		}
	}
}

void *lease_memory(const struct lease_table *t, const struct lease *l,
		   uint16_t tag)
{
	return l->lent || l->led ? NULL : buffer(t, tag);
}

int lease_end(struct lease_table *t, const struct lease *l, uint16_t tag,
	      bool is_read, uint32_t filled)
{
	if (!l->user_copy || !is_read)
		return (int)filled;
	return carry(t, tag, true, buffer(t, tag), filled);
}

int lease_copy(const struct lease_table *t, const struct lease *l, uint16_t tag,
	       void *to, uint32_t len)
{
	const void *memory = lease_memory(t, l, tag);

	if (!memory)
		return carry_out(t, tag, to, len);
	memcpy(to, memory, len);
	return 0;
}

/* The two NOPs are in the ring: who answers first, and how? */
static int judge_group(struct io_uring *ring)
{
	struct io_uring_cqe *cqe;
	uint64_t order[2];

	for (int i = 0; i < 2; i++) {
		int ret = io_uring_wait_cqe(ring, &cqe);

		if (ret < 0)
			return ret;
		order[i] = cqe->user_data;
		if (cqe->res < 0) /* mainline: an unknown flag */
			return 0;
		io_uring_cqe_seen(ring, cqe);
	}
	return order[0] == 2 && order[1] == 1; /* the leader comes last */
}

int lease_probe_group(void)
{
	struct io_uring ring;
	int ret = io_uring_queue_init(4, &ring, 0);

	if (ret < 0)
		return ret;
	for (uint64_t i = 1; i <= 2; i++) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

		if (!sqe)
			break;
		memset(sqe, 0, sizeof(*sqe));
		sqe->opcode = IORING_OP_NOP;
		sqe->user_data = i;
		sqe->flags = i == 1 ? UBLKD_IOSQE_SQE_GROUP : 0;
	}
	/* mainline stops at the first one and answers it alone */
	ret = io_uring_submit_and_wait(&ring, 1);
	if (ret >= 0)
		ret = judge_group(&ring);
	io_uring_queue_exit(&ring);
	return ret;
}
