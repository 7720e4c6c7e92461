/* SPDX-License-Identifier: MIT */
/*
 * Requests over a link, in its queue's thread. A request is held from its
 * sending to its reply (replies.c), and the payload of either goes from or
 * into its own pages.
 */
#include <endian.h>
#include <errno.h>
#include <sys/socket.h>

#include "group.h"
#include "links_impl.h"
#include "own.h"
#include "stats.h"

#define NS_PER_MS 1000000ULL
#define MAX_TICK (1000 * NS_PER_MS)
#define MIN_TICK (10 * NS_PER_MS)
#define PATIENCE 10 /* times the timeout: see is_late() */

/* --- sending ----------------------------------------------------------- */

void link_tick_later(struct link *l)
{
	uint64_t ns = nbd_timeout(l->disk) / 8;

	if (l->ticking || !ns)
		return;
	if (ns > MAX_TICK)
		ns = MAX_TICK;
	if (ns < MIN_TICK)
		ns = MIN_TICK;
	l->ticking = true;
	own_delay(l->own, OWN_TICK, ns);
}

static int command_of(const struct ublksrv_io_desc *iod, uint16_t *flags)
{
	*flags = iod->op_flags & UBLK_IO_F_FUA ? NBD_FLAG_FUA : 0;
	switch (iod_op(iod)) {
	case UBLK_IO_OP_READ:
		*flags = 0;
		return NBD_READ;
	case UBLK_IO_OP_WRITE:
		return NBD_WRITE;
	case UBLK_IO_OP_FLUSH:
		*flags = 0;
		return NBD_FLUSH;
	case UBLK_IO_OP_DISCARD:
		return NBD_TRIM;
	case UBLK_IO_OP_WRITE_ZEROES:
		if (iod->op_flags & UBLK_IO_F_NOUNMAP)
			*flags |= NBD_FLAG_NO_HOLE;
		return NBD_WRITE_ZEROES;
	default:
		return -EOPNOTSUPP;
	}
}

uint64_t link_cookie(const struct link *l, uint16_t tag)
{
	return (uint64_t)l->generation << 32 |
	       (uint64_t)l->slots[tag].serial << 16 | tag;
}

/* A flush or a zeroing may take a server long. */
static bool is_quick(uint16_t command)
{
	return command == NBD_READ || command == NBD_WRITE;
}

void link_count_sent(struct link *l, const struct slot *s, int change)
{
	uint16_t command = be16toh(s->request.command);

	l->nr_sent += (uint32_t)change;
	if (command == NBD_READ)
		l->nr_sent_reads += (uint32_t)change;
	if (is_quick(command))
		return;
	l->nr_sent_slow += (uint32_t)change;
	__atomic_store_n(&l->told.slow, l->nr_sent_slow, __ATOMIC_RELAXED);
}

void link_none_sent(struct link *l)
{
	l->nr_sent = l->nr_sent_reads = l->nr_sent_slow = 0;
	__atomic_store_n(&l->told.slow, 0, __ATOMIC_RELAXED);
}

/* The slot's header, for what `e` says; its answer is awaited from now on. */
void link_prepare(struct link *l, uint16_t tag, const struct nbd_entry *e)
{
	struct slot *s = &l->slots[tag];

	s->state = SLOT_SENT;
	s->serial++;
	s->refused = false;
	s->sent_at = stats_now();
	if (e->command == NBD_FLUSH)
		s->covers = __atomic_load_n(&l->disk->acked, __ATOMIC_ACQUIRE);
	s->request = (struct nbd_request){
		.magic = htobe32(NBD_REQUEST_MAGIC),
		.flags = htobe16(e->flags),
		.command = htobe16(e->command),
		.cookie = htobe64(link_cookie(l, tag)),
		.offset = htobe64(e->offset),
		.length = htobe32(e->length),
	};
	link_count_sent(l, s, 1);
}

/* The header, and behind it the request's own pages. */
static void send_alone(struct link *l, struct group *g, uint32_t bytes)
{
	const struct slot *s = link_slot(l, g);
	int ret = group_send_memory(g, l->disk->socket, &s->request,
				    sizeof(s->request), bytes ? MSG_MORE : 0);

	if (ret == 0 && bytes)
		ret = group_send(g, l->disk->socket, 0, bytes, 0);
	if (ret < 0)
		link_lose(l, NBD_LOST_SOCKET, ret);
}

static void send_request(struct link *l, struct group *g,
			 const struct nbd_entry *e)
{
	uint32_t bytes = e->command == NBD_WRITE ? e->length : 0;
	const void *copy = NULL;

	link_prepare(l, g->tag, e);
	group_hold(g);
	if (bytes <= l->disk->cfg.gather_bytes)
		copy = link_gather(l, g, &link_slot(l, g)->request, bytes);
	if (!copy)
		send_alone(l, g, bytes);
	if (bytes)
		link_record(l, g, copy);
	link_tick_later(l);
}

static int submit(void *target, struct group *g,
		  const struct ublksrv_io_desc *iod)
{
	struct link *l = target;
	struct slot *s = link_slot(l, g);
	uint16_t flags;
	int command = command_of(iod, &flags);
	bool is_flush = command == NBD_FLUSH;
	struct nbd_entry e;

	if (command < 0)
		return command;
	e = (struct nbd_entry){
		.command = (uint16_t)command,
		.flags = flags,
		.offset = is_flush ? 0 : iod_offset(iod),
		.length = is_flush ? 0 : (uint32_t)iod_bytes(iod),
	};
	if (l->state == NBD_FAILING)
		return -EIO;
	if (is_flush && link_must_fail(l))
		return -EIO;
	l->nr_active++;
	link_count(l);
	s->state = SLOT_LOST; /* kept when this is over, unless it is sent */
	s->ticket = -1;
	if (l->state != NBD_CONNECTED)
		return 0;
	if (link_is_journaled(l, e.command)) {
		s->ticket = link_take_room(l, &e);
		if (s->ticket < 0)
			return 0;
	}
	send_request(l, g, &e);
	return 0;
}

static void submit_all(void *target, struct group *const *groups,
		       unsigned int n)
{
	for (unsigned int i = 0; i < n; i++) {
		int ret = submit(target, groups[i], groups[i]->iod);

		if (ret < 0)
			group_abandon(groups[i], ret);
	}
	link_send_gathered(target);
}

/* --- time -------------------------------------------------------------- */

/*
 * The answer of a request is late when for so long no other came either: what
 * stands behind others in a slow line is not forgotten. A flush or a zeroing
 * may take a server long, and so may what it does meanwhile, but not for ever.
 */
static bool is_late(const struct link *l, const struct slot *s, uint64_t now)
{
	uint64_t limit = nbd_timeout(l->disk);
	bool quick = is_quick(be16toh(s->request.command));

	if (!limit) /* since this tick was begun */
		return false;
	if (s->state != SLOT_SENT && s->state != SLOT_RECEIVING &&
	    s->state != SLOT_ANSWERED)
		return false;
	if (now - s->sent_at > PATIENCE * limit)
		return true;
	return quick && now - s->sent_at > limit && now - l->heard_at > limit;
}

static void on_tick(struct link *l)
{
	uint16_t depth = own_depth(l->own);
	uint64_t now = stats_now();

	l->ticking = false;
	for (uint16_t tag = 0; tag <= depth; tag++)
		if (is_late(l, &l->slots[tag], now))
			link_lose(l, NBD_LOST_TIMEOUT, -ETIMEDOUT);
	link_look_for_late(l);
}

void link_look_for_late(struct link *l)
{
	if (l->nr_active || l->slots[own_depth(l->own)].state == SLOT_SENT)
		link_tick_later(l);
}

static void on_own(void *target, unsigned int id, int res)
{
	struct link *l = target;

	switch (id) {
	case OWN_REPLY:
		link_on_reply(l, res);
		break;
	case OWN_TICK:
		on_tick(l);
		break;
	case OWN_LAST:
		l->out_of_time = true;
		break;
	default:
		link_on_gathered(l, res);
	}
}

static const struct ublkd_target_ops ops = {
	.abi = UBLKD_TARGET_ABI,
	.flags = UBLKD_ANSWERS_LATE,
	.name = "nbd",
	.submit_all = submit_all,
	.on_cqe = link_on_cqe,
	.start = link_start,
	.end = link_end,
	.bye = link_bye,
	.on_wake = link_on_wake,
	.on_own = on_own,
	.keep = link_keep,
	.winds_up = link_winds_up,
};

const struct ublkd_target_ops *nbd_ops(void)
{
	return &ops;
}
