/* SPDX-License-Identifier: MIT */
#include "member.h"

#include <linux/fs.h>
#include <sys/socket.h>

#include "ring.h"

bool member_on_lane(const struct member *m)
{
	return m->op >= MEMBER_SEND;
}

bool member_carries_data(const struct member *m)
{
	return m->op == MEMBER_READ || m->op == MEMBER_WRITE ||
	       (member_on_lane(m) && !m->memory);
}

bool member_transfers(const struct member *m)
{
	return member_carries_data(m) || m->op == MEMBER_ZEROES ||
	       member_on_lane(m);
}

uint64_t member_resume_at(const struct group *g, const struct member *m)
{
	if (member_on_lane(m))
		return m->done;
	return m->done - m->done % g->env->align;
}

uint32_t member_next_bytes(const struct group *g, const struct member *m)
{
	uint64_t rest = m->len - member_resume_at(g, m);

	if (m->op == MEMBER_ZEROES && rest > ZEROES_BYTES)
		rest = ZEROES_BYTES;
	return (uint32_t)rest;
}

/* Of a READ or WRITE: less than the rest where group_cut() said so. */
static uint32_t issued_bytes(const struct group *g, const struct member *m)
{
	uint32_t rest = member_next_bytes(g, m);
	uint64_t cut;

	if (g->cut_at <= m->buf || m->done)
		return rest;
	cut = g->cut_at - m->buf + g->env->align - 1;
	cut -= cut % g->env->align;
	return cut < rest ? (uint32_t)cut : rest;
}

static void prep_transfer(struct group *g, const struct member *m,
			  struct io_uring_sqe *sqe)
{
	uint64_t at = member_resume_at(g, m);

	if (member_carries_data(m)) {
		lease_bind(g->env->leases, &g->lease, g->tag, sqe,
			   m->op == MEMBER_WRITE, m->buf + at,
			   issued_bytes(g, m));
	} else {
		sqe->opcode = IORING_OP_WRITE;
		sqe->addr = (__u64)(uintptr_t)g->env->zeroes;
		sqe->len = member_next_bytes(g, m);
	}
	sqe->off = m->offset + at;
	sqe->rw_flags = (int)m->flags;
}

static void prep_stream(struct group *g, const struct member *m,
			struct io_uring_sqe *sqe)
{
	/* the kernel may go on by itself; where it does not, we do */
	uint32_t flags = m->flags | MSG_WAITALL;
	uint32_t len = member_next_bytes(g, m);
	enum stream_op op = STREAM_SEND;

	if (m->memory) {
		sqe->opcode =
			m->op == MEMBER_RECV ? IORING_OP_RECV : IORING_OP_SEND;
		sqe->addr = (__u64)(uintptr_t)m->memory + m->done;
		sqe->len = len;
		sqe->msg_flags = flags;
		return;
	}
	if (m->op == MEMBER_RECV)
		op = STREAM_RECV;
	else if (m->op == MEMBER_SEND_ZC)
		op = STREAM_SEND_ZC;
	lease_bind_stream(g->env->leases, &g->lease, g->tag, sqe, op,
			  m->buf + m->done, len, flags);
}

static uint64_t user_data(const struct group *g, unsigned int index)
{
	return (uint64_t)index << 16 | g->tag;
}

void member_cancel(struct group *g, unsigned int index)
{
	struct io_uring_sqe *sqe = ring_sqe(g->env->ring);

	sqe->opcode = IORING_OP_ASYNC_CANCEL;
	sqe->fd = -1;
	sqe->addr = user_data(g, index);
	sqe->user_data = UD_LEND | UD_UNLEND; /* nobody hears of it */
}

void member_issue(struct group *g, unsigned int index)
{
	const struct member *m = &g->members[index];
	struct io_uring_sqe *sqe;

	if (member_carries_data(m))
		lease_lead(g->env->leases, &g->lease, g->tag);
	sqe = ring_sqe(g->env->ring);
	switch (m->op) {
	case MEMBER_FSYNC:
		sqe->opcode = IORING_OP_FSYNC;
		sqe->fsync_flags = m->flags;
		break;
	case MEMBER_FALLOCATE:
		sqe->opcode = IORING_OP_FALLOCATE;
		sqe->off = m->offset;
		sqe->addr = m->len;
		sqe->len = m->flags;
		break;
	case MEMBER_DISCARD:
		sqe->opcode = IORING_OP_URING_CMD;
		/*
		 * By a worker: tried without waiting first, it would be
		 * -EOPNOTSUPP from a disk that knows no REQ_NOWAIT.
		 */
		sqe->flags |= IOSQE_ASYNC;
		sqe->off = UBLKD_BLOCK_URING_CMD_DISCARD;
		sqe->addr = m->offset;
		sqe->addr3 = m->len;
		break;
	case MEMBER_DELAY:
		sqe->opcode = IORING_OP_TIMEOUT;
		sqe->fd = -1;
		sqe->addr = (__u64)(uintptr_t)&m->wait;
		sqe->len = 1;
		break;
	case MEMBER_SEND:
	case MEMBER_SEND_ZC:
	case MEMBER_RECV:
		prep_stream(g, m, sqe);
		break;
	default:
		prep_transfer(g, m, sqe);
	}
	if (m->op != MEMBER_DELAY) {
		sqe->fd = m->file;
		sqe->flags |= IOSQE_FIXED_FILE;
	}
	if (m->again) /* let a kernel worker do the waiting */
		sqe->flags |= IOSQE_ASYNC;
	sqe->user_data = user_data(g, index);
}
