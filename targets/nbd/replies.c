/* SPDX-License-Identifier: MIT */
/*
 * Replies over a link: whose they are, what they mean, and how many are taken
 * at once.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "group.h"
#include "links_impl.h"
#include "own.h"
#include "stats.h"

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
static void note_success(struct link *l, struct slot *s)
{
	uint16_t command = be16toh(s->request.command);
	bool fua = be16toh(s->request.flags) & NBD_FLAG_FUA;

	if (command == NBD_FLUSH)
		link_note_flush(l, s->covers);
	/* with a ticket once the journal has its data: link_keep() */
	else if (nbd_changes(command) && !fua && s->ticket < 0)
		link_note_write(l, s, -1);
}

static void take_reply(struct link *l, struct group *g, uint32_t error)
{
	struct slot *s = link_slot(l, g);
	uint16_t command = be16toh(s->request.command);
	uint32_t length = be32toh(s->request.length);
	/* what counts of a write that was gathered: it has no members */
	int done = command == NBD_WRITE ? (int)length : 0;

	/* learnt of while it was under way; it may not cover what is lost */
	if (error == 0 && command == NBD_FLUSH && link_must_tell(l))
		error = NBD_EIO;
	if (error == 0)
		note_success(l, s);
	if (error == 0 && command == NBD_READ) {
		s->state = SLOT_RECEIVING;
		(void)group_recv(g, l->disk->socket, 0, length);
	} else {
		s->state = SLOT_ANSWERED;
		s->refused = error;
		group_complete(g, error ? errno_of(error) : done);
	}
	group_drop(g);
}

void link_receive(struct link *l)
{
	if (l->state != NBD_CONNECTED)
		return;
	l->receiving = !own_recv(l->own, OWN_REPLY, l->disk->socket,
				 (uint8_t *)l->replies + l->cut_off,
				 (uint32_t)sizeof(*l->replies) - l->cut_off);
	l->cut_off = 0;
	if (!l->receiving)
		link_lose(l, NBD_LOST_SOCKET, -ECONNRESET);
}

/* Whether a cookie names a request that waits for an answer. */
static bool was_asked(const struct link *l, uint64_t cookie)
{
	uint16_t tag = (uint16_t)cookie;

	return tag <= own_depth(l->own) && l->slots[tag].state == SLOT_SENT &&
	       cookie == link_cookie(l, tag);
}

static void judge(struct link *l, const struct nbd_reply *reply)
{
	uint32_t error = be32toh(reply->error);
	uint64_t cookie = be64toh(reply->cookie);
	uint16_t tag = (uint16_t)cookie;

	if (be32toh(reply->magic) != NBD_REPLY_MAGIC) {
		link_lose(l, NBD_LOST_MAGIC, 0);
		return;
	}
	if (!was_asked(l, cookie)) {
		link_lose(l, NBD_LOST_COOKIE, 0);
		return;
	}
	if (error == NBD_ESHUTDOWN) {
		link_lose(l, NBD_LOST_SHUTDOWN, 0);
		return;
	}
	link_count_sent(l, &l->slots[tag], -1);
	if (tag == own_depth(l->own))
		link_on_room(l, error);
	else
		take_reply(l, own_group(l->own, tag), error);
}

/*
 * The replies that have come meanwhile, all at once: one by one each would
 * cost a turn of the loop. Only while no READ is awaited, whose data would
 * come with them. Nothing is sent in here, so none can come in between.
 */
static void take_more(struct link *l)
{
	const uint32_t size = sizeof(*l->replies);

	while (l->state == NBD_CONNECTED && l->nr_sent && !l->nr_sent_reads &&
	       !l->cut_off) {
		uint32_t n =
			l->nr_sent < NBD_REPLIES ? l->nr_sent : NBD_REPLIES;
		int got = own_recv_now(l->own, l->disk->socket, l->replies,
				       n * size);

		if (got == -EAGAIN)
			return;
		if (got < 0) {
			link_lose(l, NBD_LOST_SOCKET, got);
			return;
		}
		n = (uint32_t)got / size;
		for (uint32_t i = 0; i < n && l->state == NBD_CONNECTED; i++)
			judge(l, &l->replies[i]);
		l->cut_off = (uint32_t)got % size;
		memmove(l->replies, &l->replies[n], l->cut_off);
	}
}

void link_on_reply(struct link *l, int res)
{
	l->receiving = false;
	if (l->state != NBD_CONNECTED) {
		link_look_again(l);
		return;
	}
	if (res < 0) {
		link_lose(l, NBD_LOST_SOCKET, res);
		return;
	}
	l->heard_at = stats_now();
	judge(l, l->replies);
	take_more(l);
	link_receive(l);
}
