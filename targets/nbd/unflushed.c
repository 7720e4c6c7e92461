/* SPDX-License-Identifier: MIT */
/*
 * What a server has acknowledged and no flush has covered: it may be lost
 * with the server. Counted, and with a journal kept to be told again; without
 * room there requests wait for a flush of our own.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "group.h"
#include "links_impl.h"
#include "own.h"
#include "stats.h"

/* A link that waits for room may find some now. */
static void wake_starved(struct nbd *n)
{
	if (!__atomic_load_n(&n->starved, __ATOMIC_SEQ_CST))
		return;
	pthread_mutex_lock(&n->lock);
	__atomic_store_n(&n->starved, false, __ATOMIC_RELEASE);
	for (uint32_t i = 0; i < n->cfg.nr_links; i++)
		link_wake(&n->links[i]);
	pthread_mutex_unlock(&n->lock);
}

/*
 * What the next daemon must know if this one dies stands in the counters. It
 * has no journal to tell again: what is durable by itself does not count.
 */
void link_note_write(struct link *l, const struct slot *s, int64_t ticket)
{
	struct nbd *n = l->disk;
	uint64_t order = __atomic_add_fetch(&n->acked, 1, __ATOMIC_ACQ_REL);

	if (!(be16toh(s->request.flags) & NBD_FLAG_FUA))
		own_stats(l->own)->acked_writes = order;
	if (ticket >= 0)
		journal_keep(n->journal, ticket, order);
	wake_starved(n);
}

void nbd_note_failure(struct nbd *n, int64_t ticket)
{
	journal_drop(n->journal, ticket);
	wake_starved(n);
}

void nbd_note_flush(struct nbd *n, uint64_t covers)
{
	uint64_t seen = __atomic_load_n(&n->flushed, __ATOMIC_ACQUIRE);

	while (seen < covers &&
	       !__atomic_compare_exchange_n(&n->flushed, &seen, covers, false,
					    __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		;
	if (n->journal)
		journal_flushed(n->journal, covers);
	wake_starved(n);
}

void link_note_flush(struct link *l, uint64_t covers)
{
	struct queue_stats *s = own_stats(l->own);

	if (s->flushed_writes < covers)
		s->flushed_writes = covers;
	nbd_note_flush(l->disk, covers);
}

void nbd_inherit(struct nbd *n, uint64_t acked, uint64_t flushed)
{
	if (acked < flushed) /* it counts those that are durable as well */
		acked = flushed;
	__atomic_store_n(&n->acked, acked, __ATOMIC_RELEASE);
	__atomic_store_n(&n->flushed, flushed, __ATOMIC_RELEASE);
}

void nbd_break_journal(struct nbd *n)
{
	__atomic_store_n(&n->journal_broken, true, __ATOMIC_SEQ_CST);
	wake_starved(n);
}

bool nbd_journal_broken(const struct nbd *n)
{
	return __atomic_load_n(&n->journal_broken, __ATOMIC_SEQ_CST);
}

uint32_t nbd_journal(struct nbd *n, struct nbd_entry *out, uint32_t max)
{
	return n->journal ? journal_list(n->journal, out, max) : 0;
}

bool nbd_unflushed(const struct nbd *n)
{
	return __atomic_load_n(&n->acked, __ATOMIC_ACQUIRE) !=
	       __atomic_load_n(&n->flushed, __ATOMIC_ACQUIRE);
}

static void tell_of_loss(struct nbd *n)
{
	__atomic_add_fetch(&n->lost_flushes, 1, __ATOMIC_ACQ_REL);
	/* once is enough: from here on they count as told of */
	nbd_note_flush(n, __atomic_load_n(&n->acked, __ATOMIC_ACQUIRE));
}

void nbd_fail_flush(struct nbd *n)
{
	tell_of_loss(n);
	__atomic_store_n(&n->journal_broken, false, __ATOMIC_RELEASE);
}

/*
 * Servers say it once, and whoever waits for it is not us. The next daemon
 * must know as well, whatever flush has succeeded: one write more counts as
 * not flushed.
 */
static void note_refusal(struct link *l)
{
	own_stats(l->own)->acked_writes =
		__atomic_add_fetch(&l->disk->acked, 1, __ATOMIC_ACQ_REL);
	tell_of_loss(l->disk);
}

bool link_must_tell(const struct link *l)
{
	return l->failed_flushes !=
	       __atomic_load_n(&l->disk->lost_flushes, __ATOMIC_ACQUIRE);
}

bool link_must_fail(struct link *l)
{
	uint32_t lost =
		__atomic_load_n(&l->disk->lost_flushes, __ATOMIC_ACQUIRE);
	bool must = lost != l->failed_flushes;

	l->failed_flushes = lost;
	return must;
}

/* --- room in the journal ----------------------------------------------- */

bool link_is_journaled(const struct link *l, uint16_t command)
{
	return l->disk->journal && nbd_changes(command) &&
	       !nbd_journal_broken(l->disk);
}

/* A flush of our own is under way. */
static bool is_flushing(const struct link *l)
{
	return l->slots[own_depth(l->own)].state == SLOT_SENT;
}

/* Goes out with what else does next; false: there is no room for it now. */
static bool gather_flush(struct link *l)
{
	const struct nbd_entry flush = { .command = NBD_FLUSH };
	uint16_t tag = own_depth(l->own);
	struct slot *s = &l->slots[tag];

	link_prepare(l, tag, &flush);
	if (link_gather(l, NULL, &s->request, 0)) {
		link_tick_later(l);
		return true;
	}
	s->state = SLOT_FREE;
	link_count_sent(l, s, -1);
	return false;
}

/* What has no room is kept until a flush of our own has made some. */
static void make_room(struct link *l)
{
	if (is_flushing(l) || !journal_can_shrink(l->disk->journal))
		return; /* whatever ends next wakes the link */
	(void)gather_flush(l); /* or once something has gone out */
}

int64_t link_take_room(struct link *l, const struct nbd_entry *e)
{
	struct nbd *n = l->disk;
	int64_t ticket = journal_take(n->journal, e);

	if (ticket >= 0)
		return ticket;
	l->starved = true;
	__atomic_store_n(&n->starved, true, __ATOMIC_SEQ_CST);
	/* once more: whoever made room in between has woken nobody */
	ticket = journal_take(n->journal, e);
	if (ticket >= 0)
		return ticket;
	if (nbd_journal_broken(n))
		own_wake(l->own); /* it is kept by then */
	else
		make_room(l);
	return -1;
}

void link_try_again(struct link *l)
{
	if (!l->starved || l->state != NBD_CONNECTED || is_flushing(l))
		return;
	l->starved = false;
	link_submit_kept(l);
}

void link_on_room(struct link *l, uint32_t error)
{
	struct slot *s = &l->slots[own_depth(l->own)];

	s->state = SLOT_FREE;
	if (error)
		note_refusal(l);
	else if (link_must_tell(l)) /* the counters say so to the next daemon */
		nbd_note_flush(l->disk, s->covers);
	else
		link_note_flush(l, s->covers);
	l->starved = false;
	link_submit_kept(l);
}

void link_record(struct link *l, struct group *g, const void *copy)
{
	const struct nbd *n = l->disk;
	const struct slot *s = link_slot(l, g);
	uint32_t length = be32toh(s->request.length);
	uint64_t position;

	if (s->ticket < 0)
		return;
	position = journal_position(n->journal, s->ticket);
	if (copy)
		memcpy((uint8_t *)n->cfg.journal + position, copy, length);
	else
		(void)group_write(g, NBD_JOURNAL, position, 0, length, 0);
}

/* ops->on_cqe: a write that the journal does not have is not replayed. */
int link_on_cqe(void *target, struct group *g, unsigned int member, int res)
{
	struct link *l = target;

	if (g->members[member].file != NBD_JOURNAL || !l->disk->journal ||
	    res >= 0)
		return res;
	if ((res == -EAGAIN || res == -EINTR) && !group_last_try(g, member))
		return res;
	nbd_break_journal(l->disk);
	group_excuse(g, member);
	return res;
}

/* --- the end ----------------------------------------------------------- */

#define LAST_NS 5000000000ULL /* what a server may take for the last flush */

static bool is_over(const struct link *l)
{
	const struct nbd *n = l->disk;

	/* of a loss a flush has to tell, and not to cover it up */
	return l->state != NBD_CONNECTED || l->out_of_time ||
	       link_must_tell(l) ||
	       __atomic_load_n(&n->stopping, __ATOMIC_SEQ_CST) ||
	       !n->cfg.flushes || !nbd_unflushed(n);
}

/*
 * The disk goes on with another daemon, which finds another connection: it
 * could not tell whether the server has been there all the time.
 */
bool link_winds_up(void *target)
{
	struct link *l = target;

	if (is_over(l))
		return false;
	if (!l->winding_up)
		own_delay(l->own, OWN_LAST, LAST_NS);
	l->winding_up = true;
	if (is_flushing(l))
		return true;
	/* refused; or another link has written since, and flushes that */
	if (l->last_flush || !gather_flush(l))
		return false;
	l->last_flush = true;
	link_send_gathered(l);
	return true;
}
