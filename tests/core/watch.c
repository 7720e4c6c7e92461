/* SPDX-License-Identifier: MIT */
#include "watch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ring.h"
#include "uapi.h"

#define LINKS (IOSQE_IO_LINK | IOSQE_IO_HARDLINK)

static void rule(struct watch *w, bool kept, const char *words)
{
	if (!kept && !w->broken)
		w->broken = words;
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

/* --- members ----------------------------------------------------------- */

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
 * one of the kernel's, with its bounds and its direction.
 */
static void borrow(struct watch *w, struct io_uring_sqe *sqe, struct flight *fl,
		   uint16_t slot, bool into)
{
	const struct ublksrv_io_desc *iod = &w->iods[slot];

	if (into != (iod_op(iod) == UBLK_IO_OP_READ) ||
	    sqe->addr + sqe->len > iod_bytes(iod))
		replace(sqe, fl, -EFAULT);
	else
		sqe->addr += (uint64_t)(uintptr_t)w->pages +
			     (uint64_t)slot * w->cfg->max_io;
}

static bool is_stream_op(uint8_t op)
{
	return op == IORING_OP_SEND || op == IORING_OP_SEND_ZC ||
	       op == IORING_OP_RECV;
}

static bool from_table(const struct io_uring_sqe *sqe)
{
	uint8_t op = sqe->opcode;

	if (is_stream_op(op))
		return sqe->ioprio & IORING_RECVSEND_FIXED_BUF;
	return op == IORING_OP_READ_FIXED || op == IORING_OP_WRITE_FIXED;
}

static void borrow_from_table(struct watch *w, struct io_uring_sqe *sqe,
			      struct flight *fl)
{
	bool into = sqe->opcode == IORING_OP_READ_FIXED ||
		    sqe->opcode == IORING_OP_RECV;
	uint16_t slot = sqe->buf_index;
	bool lent =
		slot < w->cfg->depth && (w->tags[slot].slot == SLOT_OURS ||
					 w->tags[slot].slot == SLOT_DRIVERS);

	if (!from_table(sqe))
		return;
	rule(w,
	     w->cfg->fixed_streams || !is_stream_op(sqe->opcode) ||
		     sqe->opcode == IORING_OP_SEND_ZC,
	     "SEND or RECV with lent pages, which this kernel cannot");
	/* not every kernel under a test knows it: from memory, then */
	if (is_stream_op(sqe->opcode))
		sqe->ioprio &= (uint16_t)~IORING_RECVSEND_FIXED_BUF;
	rule(w, lent, "a member uses pages that are not lent");
	rule(w, slot == (uint16_t)sqe->user_data,
	     "a member uses another request's pages");
	if (lent)
		borrow(w, sqe, fl, slot, into);
	else
		replace(sqe, fl, -EFAULT);
}

static void borrow_from_leader(struct watch *w, struct io_uring_sqe *sqe,
			       struct flight *fl)
{
	uint8_t op = sqe->opcode;

	rule(w,
	     op == IORING_OP_READ || op == IORING_OP_WRITE || is_stream_op(op),
	     "a member of a group does more than it may");
	rule(w, sqe->flags & UBLKD_IOSQE_GROUP_BUF,
	     "a member leaves its group's buffer alone");
	rule(w, !(sqe->flags & IOSQE_CQE_SKIP_SUCCESS),
	     "a member of a group may not skip its answer");
	sqe->flags &= (uint8_t)~UBLKD_IOSQE_GROUP_BUF;
	borrow(w, sqe, fl, (uint16_t)sqe->user_data,
	       op == IORING_OP_READ || op == IORING_OP_RECV);
}

/* Whether all of it will be done; `led` is 1, 0, or why the leader failed. */
static bool see_member(struct watch *w, struct io_uring_sqe *sqe, int led)
{
	const struct outcome *o;
	uint16_t tag = (uint16_t)sqe->user_data;
	uint16_t member = (uint16_t)(sqe->user_data >> 16);
	struct watched_tag *t = &w->tags[tag];
	struct flight *fl = &t->flights[member];

	rule(w, !(sqe->flags & LINKS), "an SQE is linked");
	rule(w, t->slot != SLOT_ASKED,
	     "a member is issued before REGISTER has answered");
	rule(w, !(sqe->flags & UBLKD_IOSQE_SQE_GROUP),
	     "a group has a second member");
	rule(w, led || !(sqe->flags & IOSQE_IO_DRAIN),
	     "a group's buffer is used without a leader");
	w->in_flight++;
	t->members++;
	*fl = (struct flight){ .log = watch_keep(w, tag, member, sqe) };
	if (led < 0) {
		replace(sqe, fl, -ECANCELED);
		return false;
	}
	if (led)
		borrow_from_leader(w, sqe, fl);
	else
		borrow_from_table(w, sqe, fl);
	o = take_outcome(w, tag, member);
	apply(sqe, fl, o);
	return o->kind == OUTCOME_PASS;
}

/* --- commands ---------------------------------------------------------- */

static int scripted(struct watch *w, uint16_t tag, uint16_t at)
{
	const struct outcome *o = take_outcome(w, tag, at);

	return o->kind == OUTCOME_INSTEAD ? o->value : 0;
}

static void check_command(struct watch *w, const struct io_uring_sqe *sqe,
			  uint32_t op, uint64_t index)
{
	uint16_t tag = (uint16_t)sqe->user_data;
	struct ublksrv_io_cmd cmd;

	memcpy(&cmd, &sqe->addr3, sizeof(cmd));
	rule(w, sqe->opcode == IORING_OP_URING_CMD, "no command");
	rule(w, sqe->fd == 0 && (sqe->flags & IOSQE_FIXED_FILE),
	     "a command goes somewhere else than to the driver");
	rule(w, sqe->off == op && !sqe->addr && !sqe->len && !sqe->rw_flags,
	     "a command is not the one it should be");
	rule(w, cmd.q_id == w->cfg->qid && cmd.tag == tag,
	     "a command names another request");
	rule(w, cmd.addr == index, "a command names another slot");
	rule(w, iod_op(&w->iods[tag]) <= UBLK_IO_OP_WRITE,
	     "a command about pages that the request has not");
	rule(w, !(sqe->flags & LINKS), "an SQE is linked");
}

/* In the command's place a NOP, which finds its way back to the log. */
static void answer(struct watch *w, struct io_uring_sqe *sqe, uint16_t at,
		   int result, bool told)
{
	uint16_t tag = (uint16_t)sqe->user_data;
	uint32_t log = watch_keep(w, tag, at, sqe);
	uint64_t user_data = sqe->user_data | (uint64_t)log << 16;

	w->log[log].res = result;
	w->in_flight += told;
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_NOP;
	sqe->flags = told ? 0 : IOSQE_CQE_SKIP_SUCCESS;
	sqe->user_data = user_data;
}

static void see_register(struct watch *w, struct io_uring_sqe *sqe)
{
	uint16_t tag = (uint16_t)sqe->user_data;
	struct watched_tag *t = &w->tags[tag];

	check_command(w, sqe, UBLK_U_IO_REGISTER_IO_BUF, tag);
	rule(w, t->slot == SLOT_EMPTY, "REGISTER of what is lent already");
	rule(w, !t->members, "REGISTER behind a member");
	rule(w, sqe->flags == IOSQE_FIXED_FILE, "REGISTER must answer");
	t->slot = SLOT_ASKED;
	answer(w, sqe, AT_LEND, scripted(w, tag, AT_LEND), true);
}

/* Where it fails the pages stay lent, but that is not the engine's fault. */
static void see_unregister(struct watch *w, struct io_uring_sqe *sqe)
{
	uint16_t tag = (uint16_t)sqe->user_data;
	struct watched_tag *t = &w->tags[tag];
	int result = scripted(w, tag, AT_UNLEND);

	check_command(w, sqe, UBLK_U_IO_UNREGISTER_IO_BUF, tag);
	rule(w, t->slot == SLOT_OURS,
	     "UNREGISTER of what REGISTER has not lent");
	rule(w, !t->members, "UNREGISTER before the last member's end");
	t->slot = SLOT_EMPTY;
	answer(w, sqe, AT_UNLEND, result,
	       result < 0 || !(sqe->flags & IOSQE_CQE_SKIP_SUCCESS));
}

static struct io_uring_sqe *next(struct watch *w)
{
	return w->seen == w->sq->sqe_tail
		       ? NULL
		       : &w->sq->sqes[w->seen++ & w->sq->ring_mask];
}

/*
 * A leader and its member. It answers behind its member, and only if that
 * fell short or it failed itself, or if the script wants to hear it.
 */
static void see_group(struct watch *w, struct io_uring_sqe *leader)
{
	const struct outcome *o;
	struct io_uring_sqe *member = next(w);
	struct io_uring_sqe last;
	bool told;
	int res;

	check_command(w, leader, UBLKD_U_IO_PROVIDE_IO_BUF, 0);
	rule(w,
	     leader->flags == (IOSQE_FIXED_FILE | IOSQE_CQE_SKIP_SUCCESS |
			       UBLKD_IOSQE_SQE_GROUP),
	     "a leader's flags");
	rule(w, member, "a group crosses submissions");
	rule(w, !member || !(member->user_data & (UD_LEND | UD_UNLEND)),
	     "a leader has no member behind it");
	rule(w,
	     !member ||
		     (uint16_t)member->user_data == (uint16_t)leader->user_data,
	     "a leader has another request's member behind it");
	if (w->broken) {
		answer(w, leader, AT_LEAD, -EINVAL, true);
		if (member)
			w->seen--;
		return;
	}
	o = take_outcome(w, (uint16_t)leader->user_data, AT_LEAD);
	told = o->kind == OUTCOME_INSTEAD;
	res = told ? o->value : 0;
	answer(w, leader, AT_LEAD, res, true);
	told |= !see_member(w, member, res < 0 ? res : 1);
	if (!told) {
		w->in_flight--;
		leader->flags |= IOSQE_CQE_SKIP_SUCCESS;
		return;
	}
	last = *leader;
	*leader = *member;
	leader->flags |= IOSQE_IO_HARDLINK;
	*member = last;
}

/* Nobody waits for what it says; it only has to be about what is under way. */
static void see_cancel(struct watch *w, struct io_uring_sqe *sqe)
{
	uint64_t log = watch_keep(w, w->cfg->depth, AT_CANCEL, sqe);

	rule(w, w->tags[(uint16_t)sqe->addr].members,
	     "what is cancelled is not under way");
	w->in_flight++;
	sqe->user_data |= log << 16;
}

void watch_look(struct watch *w)
{
	struct io_uring_sqe *sqe;

	if ((int)(w->sq->sqe_head - w->seen) > 0)
		w->unseen = true;
	while ((sqe = next(w))) {
		if (sqe->user_data & UD_WAKE) /* the harness's own */
			continue;
		if (sqe->opcode == IORING_OP_ASYNC_CANCEL) {
			see_cancel(w, sqe);
			continue;
		}
		switch (sqe->user_data & (UD_LEADER | UD_LEND | UD_UNLEND)) {
		case UD_LEND:
			see_register(w, sqe);
			break;
		case UD_UNLEND:
			see_unregister(w, sqe);
			break;
		case UD_LEND | UD_UNLEND:
			see_group(w, sqe);
			break;
		default:
			see_member(w, sqe, 0);
		}
	}
}

/* --- the request ------------------------------------------------------- */

void watch_begin(struct watch *w, uint16_t tag, bool lent)
{
	w->tags[tag].slot = lent ? SLOT_DRIVERS : SLOT_EMPTY;
}

void watch_commit(struct watch *w, uint16_t tag)
{
	struct watched_tag *t = &w->tags[tag];

	rule(w, t->slot == SLOT_EMPTY || t->slot == SLOT_DRIVERS,
	     "a commit while pages are lent by hand");
	rule(w, !t->members, "a commit before the last member's end");
	t->slot = SLOT_EMPTY;
}

/* --- ends -------------------------------------------------------------- */

static int command_ended(struct watch *w, uint64_t user_data)
{
	uint16_t tag = (uint16_t)user_data;
	struct issued *entry = &w->log[(uint32_t)(user_data >> 16)];

	if (entry->member == AT_LEND)
		w->tags[tag].slot = entry->res < 0 ? SLOT_EMPTY : SLOT_OURS;
	rule(w, entry->member != AT_UNLEND || entry->res < 0,
	     "UNREGISTER answers though it went well");
	entry->order = ++w->completions;
	return entry->res;
}

int watch_ended(struct watch *w, uint64_t user_data, int res, uint32_t flags)
{
	uint16_t member = (uint16_t)(user_data >> 16);
	struct watched_tag *t = &w->tags[(uint16_t)user_data];
	const struct flight *fl;
	struct issued *entry;

	if (user_data & (UD_LEND | UD_UNLEND)) {
		w->in_flight--;
		return command_ended(w, user_data);
	}
	fl = &t->flights[member];
	entry = &w->log[fl->log];
	if (fl->replaced || (fl->denied && res > fl->result))
		res = fl->result;
	if (!(flags & IORING_CQE_F_NOTIF)) /* that one tells nothing */
		entry->res = res;
	if (flags & IORING_CQE_F_MORE) /* it follows */
		return res;
	w->in_flight--;
	t->members--;
	entry->order = ++w->completions;
	return res;
}
