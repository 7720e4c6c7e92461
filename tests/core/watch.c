/* SPDX-License-Identifier: MIT */
#include "watch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "uapi.h"

int watch_init(struct watch *w, uint16_t depth, uint16_t max_members)
{
	w->max_members = max_members;
	w->flights = calloc((size_t)depth * max_members, sizeof(*w->flights));
	return w->flights ? 0 : -ENOMEM;
}

void watch_deinit(struct watch *w)
{
	free(w->log);
	free(w->flights);
}

void watch_script(struct watch *w, struct outcome *outcomes, uint32_t n)
{
	w->outcomes = outcomes;
	w->nr_outcomes = n;
	w->nr_log = 0;
	w->completions = 0;
}

static struct flight *flight(struct watch *w, uint16_t tag, uint16_t member)
{
	return &w->flights[(size_t)tag * w->max_members + member];
}

static const struct outcome *take_outcome(struct watch *w, uint16_t tag,
					  uint16_t member)
{
	static const struct outcome pass = { .kind = OUTCOME_PASS };

	for (uint32_t i = 0; i < w->nr_outcomes; i++) {
		struct outcome *o = &w->outcomes[i];

		if (o->used || o->tag != tag || o->member != member)
			continue;
		o->used = true;
		return o;
	}
	return &pass;
}

static void replace(struct io_uring_sqe *sqe, struct flight *fl, int result)
{
	uint64_t user_data = sqe->user_data;

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_NOP;
	sqe->user_data = user_data;
	fl->replaced = true;
	fl->result = result;
}

static void apply(struct io_uring_sqe *sqe, struct flight *fl,
		  const struct outcome *o)
{
	switch (o->kind) {
	case OUTCOME_CUT:
		if ((uint32_t)o->value < sqe->len)
			sqe->len = (uint32_t)o->value;
		break;
	case OUTCOME_INSTEAD:
		replace(sqe, fl, o->value);
		break;
	case OUTCOME_DENY:
		fl->denied = true;
		fl->result = o->value;
		break;
	default:
		break;
	}
}

/*
 * A kernel buffer starts at 0 and a user's at its address: here ours becomes
 * one of the kernel's, with its slot, its bounds and its direction.
 */
static void lend(struct io_uring_sqe *sqe, struct flight *fl,
		 const struct ublksrv_io_desc *iod, unsigned char *pages,
		 uint32_t max_io)
{
	bool into = sqe->opcode == IORING_OP_READ_FIXED;

	if (!into && sqe->opcode != IORING_OP_WRITE_FIXED)
		return;
	if (!pages || (iod->op_flags & UBLK_IO_F_NEED_REG_BUF) ||
	    into != (iod_op(iod) == UBLK_IO_OP_READ) ||
	    sqe->addr + sqe->len > iod_bytes(iod))
		replace(sqe, fl, -EFAULT);
	else
		sqe->addr += (uint64_t)(uintptr_t)pages +
			     (uint64_t)sqe->buf_index * max_io;
}

static uint32_t keep(struct watch *w, uint16_t tag, uint16_t member,
		     const struct io_uring_sqe *sqe)
{
	if (w->nr_log == w->room) {
		w->room = w->room ? 2 * w->room : 64;
		w->log = realloc(w->log, w->room * sizeof(*w->log));
		if (!w->log)
			abort();
	}
	w->log[w->nr_log] = (struct issued){
		.tag = tag,
		.member = member,
		.opcode = sqe->opcode,
		.flags = sqe->flags,
		.fd = sqe->fd,
		.off = sqe->off,
		.addr = sqe->addr,
		.len = sqe->len,
		.op_flags = (uint32_t)sqe->rw_flags,
		.addr3 = sqe->addr3,
	};
	return w->nr_log++;
}

void watch_look(struct watch *w, struct io_uring_sq *sq,
		const struct ublksrv_io_desc *iods, unsigned char *pages,
		uint32_t max_io)
{
	if ((int)(sq->sqe_head - w->seen) > 0)
		w->unseen = true;
	for (; w->seen != sq->sqe_tail; w->seen++) {
		struct io_uring_sqe *sqe = &sq->sqes[w->seen & sq->ring_mask];
		uint16_t tag = (uint16_t)sqe->user_data;
		uint16_t member = (uint16_t)(sqe->user_data >> 16);
		struct flight *fl = flight(w, tag, member);

		w->in_flight++;
		fl->log = keep(w, tag, member, sqe);
		fl->replaced = false;
		fl->denied = false;
		lend(sqe, fl, &iods[tag], pages, max_io);
		apply(sqe, fl, take_outcome(w, tag, member));
	}
}

int watch_ended(struct watch *w, uint16_t tag, uint16_t member, int res)
{
	const struct flight *fl = flight(w, tag, member);
	struct issued *entry = &w->log[fl->log];

	if (fl->replaced || (fl->denied && res > fl->result))
		res = fl->result;
	w->in_flight--;
	entry->res = res;
	entry->order = ++w->completions;
	return res;
}
