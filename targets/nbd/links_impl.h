/* SPDX-License-Identifier: MIT */
/* A link from the inside, for links.c, connection.c and transmission.c. */
#ifndef UBLKD_NBD_LINKS_IMPL_H
#define UBLKD_NBD_LINKS_IMPL_H

#include <pthread.h>

#include "group.h"
#include "links.h"
#include "own.h"
#include "wire.h"

#define NBD_SOCKET 1 /* the fixed file of the connection */

enum slot_state {
	SLOT_FREE,
	SLOT_SENT, /* or about to be: the answer is awaited */
	SLOT_RECEIVING, /* answered: a READ's bytes are on their way */
	SLOT_ANSWERED,
	SLOT_LOST, /* its connection is gone, its members may not be */
	SLOT_KEPT, /* it waits for the next connection */
};

/* What is known of the request of one tag. */
struct slot {
	enum slot_state state;
	uint16_t serial; /* of its use, in the cookie */
	bool refused; /* the server's answer is an error */
	uint64_t sent_at; /* ns */
	uint64_t covers; /* of a FLUSH: acknowledged writes before it */
	struct nbd_request request;
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
	bool ticking;
	uint32_t nr_active; /* slots that are neither free nor kept */
	uint32_t nr_kept;
	struct slot *slots;
	struct nbd_reply reply;
};

struct nbd {
	struct nbd_config cfg;
	pthread_mutex_t lock;
	uint64_t acked; /* writes, ever; atomic, as are: */
	uint64_t flushed; /* those that a flush has covered */
	bool fail_flush;
	struct link links[NBD_MAX_LINKS];
};

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

/* Something has ended: perhaps the next connection can begin. */
void link_look_again(const struct link *l);

/* Of struct ublkd_target_ops: */
bool link_keep(void *target, struct group *g);
void link_on_wake(void *target);
int link_start(void *target, struct own *own, void **mine);
void link_bye(void *target);
void link_end(void *target);

/* --- transmission.c ---------------------------------------------------- */

/* The next reply is awaited. */
void link_receive(struct link *l);

#endif
