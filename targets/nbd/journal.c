/* SPDX-License-Identifier: MIT */
#include "journal.h"

#include <pthread.h>
#include <stdlib.h>

#include "wire.h"

#define MAX_ENTRIES 16384 /* a power of two */

enum entry_state { ENTRY_TAKEN, ENTRY_KEPT, ENTRY_DONE };

struct place {
	enum entry_state state;
	uint64_t end; /* of its data, as `used` counts */
	struct nbd_entry entry;
};

/* Tickets and bytes are counted for ever; where they are is the remainder. */
struct journal {
	pthread_mutex_t lock; /* of all the links' threads and the keeper's */
	uint64_t bytes;
	uint64_t used; /* bytes, ever */
	uint64_t freed; /* of these */
	int64_t first; /* ticket that is not done */
	int64_t next;
	uint32_t nr_kept;
	struct place places[MAX_ENTRIES];
};

struct journal *journal_new(uint64_t bytes)
{
	struct journal *j = calloc(1, sizeof(*j));

	if (!j)
		return NULL;
	if (pthread_mutex_init(&j->lock, NULL)) {
		free(j);
		return NULL;
	}
	j->bytes = bytes;
	return j;
}

void journal_free(struct journal *j)
{
	if (!j)
		return;
	pthread_mutex_destroy(&j->lock);
	free(j);
}

static struct place *place(struct journal *j, int64_t ticket)
{
	return &j->places[ticket % MAX_ENTRIES];
}

/* Where data of this length can begin: nothing goes around the end. */
static uint64_t begin_of(const struct journal *j, uint32_t length)
{
	uint64_t at = j->used % j->bytes;

	return length > j->bytes - at ? j->used + j->bytes - at : j->used;
}

int64_t journal_take(struct journal *j, const struct nbd_entry *e)
{
	uint32_t length = e->command == NBD_WRITE ? e->length : 0;
	int64_t ticket = -1;
	uint64_t begin;

	pthread_mutex_lock(&j->lock);
	if (j->first == j->next) /* empty: all of it in one piece */
		j->freed = j->used +=
			(j->bytes - j->used % j->bytes) % j->bytes;
	begin = begin_of(j, length);
	if (begin + length - j->freed <= j->bytes &&
	    j->next - j->first < MAX_ENTRIES) {
		struct place *p;

		ticket = j->next++;
		p = place(j, ticket);
		p->state = ENTRY_TAKEN;
		p->entry = *e;
		p->entry.order = 0;
		p->entry.position = begin % j->bytes;
		p->end = j->used = begin + length;
	}
	pthread_mutex_unlock(&j->lock);
	return ticket;
}

uint64_t journal_position(const struct journal *j, int64_t ticket)
{
	return j->places[ticket % MAX_ENTRIES].entry.position;
}

void journal_keep(struct journal *j, int64_t ticket, uint64_t order)
{
	pthread_mutex_lock(&j->lock);
	place(j, ticket)->state = ENTRY_KEPT;
	place(j, ticket)->entry.order = order;
	j->nr_kept++;
	pthread_mutex_unlock(&j->lock);
}

/* The lock is held. */
static void free_what_is_done(struct journal *j)
{
	while (j->first < j->next && place(j, j->first)->state == ENTRY_DONE)
		j->freed = place(j, j->first++)->end;
}

void journal_drop(struct journal *j, int64_t ticket)
{
	pthread_mutex_lock(&j->lock);
	place(j, ticket)->state = ENTRY_DONE;
	free_what_is_done(j);
	pthread_mutex_unlock(&j->lock);
}

void journal_flushed(struct journal *j, uint64_t order)
{
	pthread_mutex_lock(&j->lock);
	for (int64_t t = j->first; t < j->next; t++) {
		struct place *p = place(j, t);

		if (p->state != ENTRY_KEPT || p->entry.order > order)
			continue;
		p->state = ENTRY_DONE;
		j->nr_kept--;
	}
	free_what_is_done(j);
	pthread_mutex_unlock(&j->lock);
}

bool journal_can_shrink(struct journal *j)
{
	bool can;

	pthread_mutex_lock(&j->lock);
	can = j->nr_kept;
	pthread_mutex_unlock(&j->lock);
	return can;
}

static int by_order(const void *a, const void *b)
{
	const struct nbd_entry *x = a, *y = b;

	return (x->order > y->order) - (x->order < y->order);
}

uint32_t journal_list(struct journal *j, struct nbd_entry *out, uint32_t max)
{
	uint32_t n = 0, written;

	pthread_mutex_lock(&j->lock);
	for (int64_t t = j->first; t < j->next; t++) {
		if (place(j, t)->state != ENTRY_KEPT)
			continue;
		if (n < max)
			out[n] = place(j, t)->entry;
		n++;
	}
	pthread_mutex_unlock(&j->lock);
	written = n < max ? n : max;
	if (written)
		qsort(out, written, sizeof(*out), by_order);
	return n;
}
