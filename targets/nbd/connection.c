/* SPDX-License-Identifier: MIT */
/*
 * A link's connection, in its queue's thread: how it is had, lost and had
 * again, and what becomes of the requests meanwhile. All that was sent and
 * not answered whole is kept, and sent from its beginning over the next
 * connection: nobody knows how far the server came.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "group.h"
#include "links_impl.h"
#include "own.h"
#include "stats.h"

/* The lock is held. */
static void set_state(struct link *l, enum nbd_state state)
{
	l->state = state;
	l->told.state = state;
	if (l->own)
		own_stats(l->own)->without_connection = state != NBD_CONNECTED;
}

static void tell_state(struct link *l, enum nbd_state state)
{
	pthread_mutex_lock(&l->disk->lock);
	set_state(l, state);
	pthread_mutex_unlock(&l->disk->lock);
}

/* --- losing a connection ----------------------------------------------- */

/* Nothing of the old connection is under way any more. */
static bool is_quiet(const struct link *l)
{
	return !l->nr_active && !l->receiving && !l->sending;
}

/* A connection that waits for this has its turn, once this turn is over. */
void link_look_again(const struct link *l)
{
	if (l->next_fd >= 0 && is_quiet(l))
		own_wake(l->own);
}

/*
 * It was acknowledged, and its data is on the way into the journal, which may
 * be read before it is there: it is sent again.
 */
static bool is_half_written(const struct slot *s)
{
	return s->state == SLOT_ANSWERED && s->ticket >= 0 && !s->refused;
}

/* The server may have something in hand, to be written whenever it likes. */
static bool may_still_write(const struct link *l)
{
	for (uint16_t tag = 0; tag < own_depth(l->own); tag++) {
		const struct slot *s = &l->slots[tag];

		if (s->state == SLOT_SENT &&
		    nbd_changes(be16toh(s->request.command)))
			return true;
	}
	return false;
}

void link_lose(struct link *l, enum nbd_loss why, int err)
{
	uint16_t depth = own_depth(l->own);

	if (l->state != NBD_CONNECTED)
		return;
	pthread_mutex_lock(&l->disk->lock);
	set_state(l, NBD_WAITING);
	l->told.loss = why;
	l->told.err = err;
	l->told.losses++;
	l->told.may_still_write = may_still_write(l);
	pthread_mutex_unlock(&l->disk->lock);
	own_stats(l->own)->lost_connections++;
	l->out[l->filling].used = 0;
	own_break(l->own, l->disk->socket, -ECONNABORTED);
	l->lost_at = stats_now();
	for (uint16_t tag = 0; tag < depth; tag++) {
		struct slot *s = &l->slots[tag];
		bool held = s->state == SLOT_SENT;

		if (!held && s->state != SLOT_RECEIVING && !is_half_written(s))
			continue;
		s->state = SLOT_LOST;
		if (!s->lost_at)
			s->lost_at = l->lost_at;
		if (held)
			group_drop(own_group(l->own, tag));
	}
	l->slots[depth].state = SLOT_FREE;
	link_none_sent(l);
	l->starved = false; /* they are all kept, and sent anew */
	link_look_again(l);
	(void)eventfd_write(l->disk->cfg.lost_fd, 1);
}

/* Every request that is kept is submitted once more. */
void link_submit_kept(struct link *l)
{
	uint16_t depth = own_depth(l->own);

	for (uint16_t tag = 0; tag < depth; tag++) {
		if (l->slots[tag].state != SLOT_KEPT)
			continue;
		l->slots[tag].state = SLOT_FREE;
		l->nr_kept--;
		group_restart(own_group(l->own, tag));
	}
	link_count(l);
}

/*
 * Whether it was lost for the first time longer ago than a request may wait:
 * perhaps it is what the connections break at.
 */
static bool has_waited(const struct link *l, const struct slot *s)
{
	uint64_t window = nbd_window(l->disk);

	return window && s->lost_at && l->lost_at - s->lost_at > window;
}

/* A FUA as well: it may stand behind a write that is not durable. */
static void settle_ticket(struct link *l, struct slot *s)
{
	if (s->state == SLOT_ANSWERED && !s->refused)
		link_note_write(l, s, s->ticket);
	else
		nbd_note_failure(l->disk, s->ticket);
	s->ticket = -1;
}

/* ops->keep: a request would be answered now. */
bool link_keep(void *target, struct group *g)
{
	struct link *l = target;
	struct slot *s = link_slot(l, g);
	bool kept = false;

	if (s->state == SLOT_FREE) { /* it never came this far */
		s->lost_at = 0; /* unless it was kept before */
		return false;
	}
	/* what failed was not the server's answer, but the socket */
	if (s->state != SLOT_LOST && !s->refused && group_error(g)) {
		link_lose(l, NBD_LOST_SOCKET, group_error(g));
		s->state = SLOT_LOST;
	}
	l->nr_active--;
	if (s->ticket >= 0)
		settle_ticket(l, s);
	if (s->state != SLOT_LOST) {
		__atomic_store_n(&l->told.ended, l->told.ended + 1,
				 __ATOMIC_RELAXED);
		s->state = SLOT_FREE;
	} else if (l->state == NBD_FAILING || has_waited(l, s)) {
		group_fail_with(g, -EIO); /* not with the socket's error */
		s->state = SLOT_FREE;
	} else {
		s->state = SLOT_KEPT;
		l->nr_kept++;
		kept = true;
	}
	if (!kept)
		s->lost_at = 0;
	link_count(l);
	link_look_again(l);
	return kept;
}

/* --- the keeper's wishes ----------------------------------------------- */

/* The connection that waits has been used, or is put aside for another. */
static void next_is(struct link *l, int fd)
{
	if (l->next_fd >= 0) {
		close(l->next_fd);
		pthread_mutex_lock(&l->disk->lock);
		l->told.attached++;
		pthread_mutex_unlock(&l->disk->lock);
	}
	l->next_fd = fd;
}

static void connect_next(struct link *l)
{
	int ret;

	if (l->next_fd < 0 || l->state == NBD_CONNECTED || !is_quiet(l))
		return;
	ret = own_attach(l->own, l->disk->socket, l->next_fd);
	l->generation++;
	l->cut_off = 0;
	tell_state(l, NBD_CONNECTED);
	next_is(l, -1);
	if (ret < 0) {
		link_lose(l, NBD_LOST_SOCKET, ret);
		return;
	}
	link_receive(l);
	link_submit_kept(l);
}

static void fail_all(struct link *l)
{
	next_is(l, -1);
	if (l->state == NBD_CONNECTED)
		link_lose(l, NBD_LOST_TOLD, 0);
	tell_state(l, NBD_FAILING);
	link_submit_kept(l);
}

void link_on_wake(void *target)
{
	struct link *l = target;
	struct inbox wish;

	pthread_mutex_lock(&l->disk->lock);
	wish = l->inbox;
	l->inbox = (struct inbox){ .fd = -1 };
	pthread_mutex_unlock(&l->disk->lock);
	if (wish.breaks) {
		next_is(l, -1);
		link_lose(l, NBD_LOST_TOLD, 0);
	}
	if (wish.fails)
		fail_all(l);
	if (wish.fd >= 0)
		next_is(l, wish.fd);
	connect_next(l);
	link_try_again(l);
	link_look_for_late(l); /* there may be a limit where was none */
}

/* --- a queue's beginning and end --------------------------------------- */

int link_start(void *target, struct own *own, void **mine)
{
	struct nbd *n = target;
	struct link *l;

	if (own_qid(own) >= n->cfg.nr_links)
		return -EINVAL;
	l = &n->links[own_qid(own)];
	l->slots = calloc(own_depth(own) + 1U, sizeof(*l->slots));
	if (!l->slots || link_new_outgoing(l) < 0) {
		free(l->slots);
		link_free_outgoing(l);
		return -ENOMEM;
	}
	l->winding_up = l->last_flush = l->out_of_time = false;
	pthread_mutex_lock(&n->lock);
	l->own = own;
	set_state(l, NBD_WAITING);
	own_wake(own); /* the first connection may be here already */
	pthread_mutex_unlock(&n->lock);
	*mine = l;
	return 0;
}

void link_bye(void *target)
{
	struct link *l = target;
	const struct nbd_request disc = {
		.magic = htobe32(NBD_REQUEST_MAGIC),
		.command = htobe16(NBD_DISC),
	};

	if (l->state == NBD_CONNECTED)
		own_farewell(l->own, l->disk->socket, &disc, sizeof(disc));
}

void link_end(void *target)
{
	struct link *l = target;

	pthread_mutex_lock(&l->disk->lock);
	l->own = NULL;
	pthread_mutex_unlock(&l->disk->lock);
	free(l->slots);
	l->slots = NULL;
	link_free_outgoing(l);
	tell_state(l, NBD_WAITING);
}
