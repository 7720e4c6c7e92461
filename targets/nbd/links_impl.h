/* SPDX-License-Identifier: MIT */
/* A link from the inside, for the files that are one: links.c and those named below. */
#ifndef UBLKD_NBD_LINKS_IMPL_H
#define UBLKD_NBD_LINKS_IMPL_H

#include <pthread.h>

#include "group.h"
#include "journal.h"
#include "links.h"
#include "own.h"
#include "wire.h"

/* Ids of own.h: */
enum { OWN_REPLY, OWN_TICK, OWN_GATHERED, OWN_LAST };

#define NBD_JOURNAL 1 /* the fixed file of the journal, if there is one */

#define NBD_REPLIES 64 /* that are taken at once */

enum slot_state {
	SLOT_FREE,
	SLOT_SENT, /* or about to be: the answer is awaited */
	SLOT_RECEIVING, /* answered: a READ's bytes are on their way */
	SLOT_ANSWERED, /* and over, once all of it has been sent */
	SLOT_LOST, /* its connection is gone, its members may not be */
	SLOT_KEPT, /* it waits for the next connection */
};

/* What is known of the request of one tag. */
struct slot {
	enum slot_state state;
	uint16_t serial; /* of its use, in the cookie */
	bool refused; /* the server's answer is an error */
	uint64_t sent_at; /* ns, as is: */
	uint64_t lost_at; /* its connection, for the first time; 0: never */
	int64_t ticket; /* of the journal; -1: none */
	uint64_t covers; /* of a FLUSH: acknowledged writes before it */
	struct nbd_request request;
};

/* Requests that go out in one piece: outgoing.c. */
struct outgoing {
	uint8_t *bytes;
	uint32_t used;
};

/* What the keeper asks of a link; under the lock. */
struct inbox {
	int fd; /* -1: none */
	bool breaks;
	bool fails;
};

struct link {
	struct nbd *disk;
	struct own *own; /* NULL while no queue runs; under the lock */
	struct inbox inbox;
	struct nbd_status told; /* under the lock, but for the counters */

	/* From here on it is the queue's thread's alone. */
	enum nbd_state state;
	uint32_t generation;
	int next_fd; /* of a connection that cannot begin yet; -1: none */
	bool receiving; /* a reply is awaited */
	uint32_t nr_sent; /* slots whose answer is awaited */
	uint32_t nr_sent_reads; /* of these: data comes behind theirs */
	uint32_t nr_sent_slow; /* those may take the server long */
	bool ticking;
	bool starved; /* some of what is kept waits for room in the journal */
	uint64_t heard_at; /* ns: the last reply */
	uint64_t lost_at; /* ns: the last connection */
	uint32_t failed_flushes; /* of disk->lost_flushes */
	uint32_t nr_active; /* slots that are neither free nor kept */
	uint32_t nr_kept;
	bool sending; /* one of these, while the other one fills: */
	struct outgoing out[2];
	unsigned int filling;
	struct slot *slots; /* one per tag, and that of a flush of our own */
	struct nbd_reply replies[NBD_REPLIES]; /* those that came last */
	uint32_t cut_off; /* bytes of the first: the rest has not come yet */
	bool winding_up; /* nothing comes any more */
	bool last_flush; /* the one behind all has been sent */
	bool out_of_time; /* nobody waits for it any longer */
};

struct nbd {
	struct nbd_config
		cfg; /* its times change: nbd_timeout(), nbd_window() */
	pthread_mutex_t lock;
	uint64_t acked; /* writes, ever; atomic, as are: */
	uint64_t flushed; /* those that a flush has covered */
	uint32_t lost_flushes; /* how often a flush has to fail, on each link */
	bool starved; /* a link is */
	bool journal_broken;
	bool stopping;
	struct journal *journal; /* NULL: none is kept */
	uint16_t socket; /* the fixed file of a queue's connection */
	struct link links[NBD_MAX_LINKS];
};

static inline uint64_t nbd_timeout(const struct nbd *n)
{
	return __atomic_load_n(&n->cfg.timeout_ns, __ATOMIC_RELAXED);
}

static inline uint64_t nbd_window(const struct nbd *n)
{
	return __atomic_load_n(&n->cfg.window_ns, __ATOMIC_RELAXED);
}

static inline struct slot *link_slot(const struct link *l,
				     const struct group *g)
{
	return &l->slots[g->tag];
}

static inline void link_count(struct link *l)
{
	__atomic_store_n(&l->told.unanswered, l->nr_active + l->nr_kept,
			 __ATOMIC_RELAXED);
}

/* --- connection.c ------------------------------------------------------ */

/* The connection is given up; does nothing where there is none. */
void link_lose(struct link *l, enum nbd_loss why, int err);

/* Every request that is kept is submitted once more. */
void link_submit_kept(struct link *l);

/* Something has ended: perhaps the next connection can begin. */
void link_look_again(const struct link *l);

/* Of struct ublkd_target_ops: */
bool link_keep(void *target, struct group *g);
void link_on_wake(void *target);
int link_start(void *target, struct own *own, void **mine);
void link_bye(void *target);
void link_end(void *target);

/* --- transmission.c ---------------------------------------------------- */

/*
 * What identifies a request: the connection, the use of the slot, the tag.
 * So a reply cannot be mistaken for another request's.
 */
uint64_t link_cookie(const struct link *l, uint16_t tag);

/* A request is sent, or its answer is not awaited any more. */
void link_count_sent(struct link *l, const struct slot *s, int change);

/* Of none is it awaited. */
void link_none_sent(struct link *l);

/* The slot's header, for what `e` says; its answer is awaited from now on. */
void link_prepare(struct link *l, uint16_t tag, const struct nbd_entry *e);

/* Looks for late answers from now on, and if any is awaited. */
void link_tick_later(struct link *l);
void link_look_for_late(struct link *l);

/* --- replies.c --------------------------------------------------------- */

/* The next reply is awaited. */
void link_receive(struct link *l);

/* It is here, or `res` says why not. */
void link_on_reply(struct link *l, int res);

/* --- outgoing.c -------------------------------------------------------- */

int link_new_outgoing(struct link *l);
void link_free_outgoing(struct link *l);

/*
 * A request to what goes out next, with a copy of the first `bytes` of the
 * group, which may be NULL without any. Returns where that copy is, for as
 * long as this turn, or NULL: it has to go by itself.
 */
const void *link_gather(struct link *l, const struct group *g,
			const struct nbd_request *request, uint32_t bytes);

/* What was gathered goes out, unless something is going out already. */
void link_send_gathered(struct link *l);

/* It has, or failed. */
void link_on_gathered(struct link *l, int res);

/* --- unflushed.c ------------------------------------------------------- */

/* A ticket of the journal, or -1: it has to wait for room. */
int64_t link_take_room(struct link *l, const struct nbd_entry *e);

/* If requests wait for room in the journal: something may have changed. */
void link_try_again(struct link *l);

/* Whether a flush has to tell of writes that are lost. */
bool link_must_tell(const struct link *l);

/* Whether this flush is the one that does. */
bool link_must_fail(struct link *l);

/* The flush of our own was answered, with an error of the server's or 0. */
void link_on_room(struct link *l, uint32_t error);

/* Of struct ublkd_target_ops: a flush covers what is acknowledged. */
bool link_winds_up(void *target);

bool link_is_journaled(const struct link *l, uint16_t command);

/* The bytes of a write go to its ticket, if it has one; from `copy` or NULL. */
void link_record(struct link *l, struct group *g, const void *copy);

/* Of struct ublkd_target_ops. */
int link_on_cqe(void *target, struct group *g, unsigned int member, int res);

/* A write was acknowledged, was not, a flush was, or the journal is not whole. */
void link_note_write(struct link *l, const struct slot *s, int64_t ticket);
void nbd_note_failure(struct nbd *n, int64_t ticket);
void link_note_flush(struct link *l, uint64_t covers);
void nbd_break_journal(struct nbd *n);

/* --- links.c ----------------------------------------------------------- */

/* The inbox has something new; the lock is held. */
void link_wake(const struct link *l);

#endif
