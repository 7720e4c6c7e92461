/* SPDX-License-Identifier: MIT */
/*
 * Requests over a link, in its queue's thread. A request is held from its
 * sending to its reply, and the payload of either goes from or into its own
 * pages.
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

enum { OWN_REPLY, OWN_TICK }; /* ids */

/* --- sending ----------------------------------------------------------- */

static void tick_later(struct link *l)
{
	uint64_t ns = l->disk->cfg.timeout_ns / 8;

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

/*
 * What identifies a request: the connection, the use of the slot, the tag.
 * So a reply cannot be mistaken for another request's.
 */
static uint64_t cookie_of(const struct link *l, uint16_t tag)
{
	return (uint64_t)l->generation << 32 |
	       (uint64_t)l->slots[tag].serial << 16 | tag;
}

static void send_request(struct link *l, struct group *g, uint16_t command,
			 uint16_t flags)
{
	struct slot *s = link_slot(l, g);
	bool is_flush = command == NBD_FLUSH;
	uint32_t length = is_flush ? 0 : (uint32_t)iod_bytes(g->iod);
	int ret;

	s->state = SLOT_SENT;
	s->serial++;
	s->refused = false;
	s->sent_at = stats_now();
	if (is_flush)
		s->covers = __atomic_load_n(&l->disk->acked, __ATOMIC_ACQUIRE);
	s->request = (struct nbd_request){
		.magic = htobe32(NBD_REQUEST_MAGIC),
		.flags = htobe16(flags),
		.command = htobe16(command),
		.cookie = htobe64(cookie_of(l, g->tag)),
		.offset = htobe64(is_flush ? 0 : iod_offset(g->iod)),
		.length = htobe32(length),
	};
	group_hold(g);
	ret = group_send_memory(g, NBD_SOCKET, &s->request, sizeof(s->request),
				command == NBD_WRITE ? MSG_MORE : 0);
	if (ret == 0 && command == NBD_WRITE)
		ret = group_send(g, NBD_SOCKET, 0, length, 0);
	if (ret < 0)
		link_lose(l, NBD_LOST_SOCKET, ret);
	else
		tick_later(l);
}

static int submit(void *target, struct group *g,
		  const struct ublksrv_io_desc *iod)
{
	struct link *l = target;
	uint16_t flags;
	int command = command_of(iod, &flags);

	if (command < 0)
		return command;
	if (l->state == NBD_FAILING)
		return -EIO;
	if (command == NBD_FLUSH &&
	    __atomic_exchange_n(&l->disk->fail_flush, false, __ATOMIC_ACQ_REL))
		return -EIO;
	l->nr_active++;
	link_count(l);
	if (l->state == NBD_CONNECTED)
		send_request(l, g, (uint16_t)command, flags);
	else
		link_slot(l, g)->state =
			SLOT_LOST; /* kept when submit is over */
	return 0;
}

/* --- replies ----------------------------------------------------------- */

static int errno_of(uint32_t error)
{
	switch (error) {
	case NBD_ENOSPC:
		return -ENOSPC;
	case NBD_ENOTSUP:
		return -EOPNOTSUPP;
	default:
		return -EIO;
	}
}

/* Writes that a flush has to cover, and the flushes that do. */
static void note_success(struct link *l, const struct slot *s)
{
	struct nbd *n = l->disk;
	uint16_t flags = be16toh(s->request.flags);
	uint64_t seen;

	switch (be16toh(s->request.command)) {
	case NBD_WRITE:
	case NBD_TRIM:
	case NBD_WRITE_ZEROES:
		if (!(flags & NBD_FLAG_FUA))
			__atomic_add_fetch(&n->acked, 1, __ATOMIC_ACQ_REL);
		break;
	case NBD_FLUSH:
		seen = __atomic_load_n(&n->flushed, __ATOMIC_ACQUIRE);
		while (seen < s->covers &&
		       !__atomic_compare_exchange_n(
			       &n->flushed, &seen, s->covers, false,
			       __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
			;
		break;
	default:
		break;
	}
}

static void take_reply(struct link *l, struct group *g, uint32_t error)
{
	struct slot *s = link_slot(l, g);
	bool is_read = be16toh(s->request.command) == NBD_READ;

	if (error == 0)
		note_success(l, s);
	if (error == 0 && is_read) {
		s->state = SLOT_RECEIVING;
		(void)group_recv(g, NBD_SOCKET, 0, be32toh(s->request.length));
	} else {
		s->state = SLOT_ANSWERED;
		s->refused = error;
		group_complete(g, error ? errno_of(error) : 0);
	}
	group_drop(g);
}

void link_receive(struct link *l)
{
	if (l->state != NBD_CONNECTED)
		return;
	l->receiving = !own_recv(l->own, OWN_REPLY, NBD_SOCKET, &l->reply,
				 sizeof(l->reply));
	if (!l->receiving)
		link_lose(l, NBD_LOST_SOCKET, -ECONNRESET);
}

/* The request that a cookie names and that waits for an answer, or NULL. */
static struct group *asked(const struct link *l, uint64_t cookie)
{
	uint16_t tag = (uint16_t)cookie;

	if (tag >= own_depth(l->own) || l->slots[tag].state != SLOT_SENT ||
	    cookie != cookie_of(l, tag))
		return NULL;
	return own_group(l->own, tag);
}

static void on_reply(struct link *l, int res)
{
	uint32_t error = be32toh(l->reply.error);
	struct group *g;

	l->receiving = false;
	if (l->state != NBD_CONNECTED) {
		link_look_again(l);
		return;
	}
	if (res < 0) {
		link_lose(l, NBD_LOST_SOCKET, res);
		return;
	}
	if (be32toh(l->reply.magic) != NBD_REPLY_MAGIC) {
		link_lose(l, NBD_LOST_MAGIC, 0);
		return;
	}
	g = asked(l, be64toh(l->reply.cookie));
	if (!g) {
		link_lose(l, NBD_LOST_COOKIE, 0);
		return;
	}
	if (error == NBD_ESHUTDOWN) {
		link_lose(l, NBD_LOST_SHUTDOWN, 0);
		return;
	}
	take_reply(l, g, error);
	link_receive(l);
}

/* --- time -------------------------------------------------------------- */

static bool is_late(const struct link *l, const struct slot *s, uint64_t now)
{
	return (s->state == SLOT_SENT || s->state == SLOT_RECEIVING) &&
	       now - s->sent_at > l->disk->cfg.timeout_ns;
}

static void on_tick(struct link *l)
{
	uint16_t depth = own_depth(l->own);
	uint64_t now = stats_now();

	l->ticking = false;
	for (uint16_t tag = 0; tag < depth; tag++)
		if (is_late(l, &l->slots[tag], now))
			link_lose(l, NBD_LOST_TIMEOUT, -ETIMEDOUT);
	if (l->nr_active)
		tick_later(l);
}

static void on_own(void *target, unsigned int id, int res)
{
	if (id == OWN_REPLY)
		on_reply(target, res);
	else
		on_tick(target);
}

static const struct ublkd_target_ops ops = {
	.abi = UBLKD_TARGET_ABI,
	.flags = UBLKD_ANSWERS_LATE,
	.name = "nbd",
	.submit = submit,
	.start = link_start,
	.end = link_end,
	.bye = link_bye,
	.on_wake = link_on_wake,
	.on_own = on_own,
	.keep = link_keep,
};

const struct ublkd_target_ops *nbd_ops(void)
{
	return &ops;
}
