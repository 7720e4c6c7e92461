/* SPDX-License-Identifier: MIT */
/*
 * The links of one NBD disk: each queue has one connection, which comes and
 * goes. C moves requests over it; whoever keeps the links (keeper.py) makes
 * connections and decides how long requests wait for one. These functions
 * are that thread's; what they ask for is done in the queues' own threads.
 */
#ifndef UBLKD_NBD_LINKS_H
#define UBLKD_NBD_LINKS_H

#include <stdbool.h>
#include <stdint.h>

#include "nbd/journal.h"

struct ublkd_target_ops;
struct nbd;

#define NBD_MAX_LINKS 64

enum nbd_state {
	NBD_WAITING, /* without a connection: requests wait */
	NBD_CONNECTED,
	NBD_FAILING, /* without, for too long: requests fail */
};

/* Why a connection was given up. */
enum nbd_loss {
	NBD_NO_LOSS,
	NBD_LOST_SOCKET, /* closed or broken: errno */
	NBD_LOST_TIMEOUT, /* a request had no answer in time */
	NBD_LOST_MAGIC, /* what came is no reply */
	NBD_LOST_COOKIE, /* a reply to what was never asked, or answered */
	NBD_LOST_SHUTDOWN, /* the server says that it ends */
	NBD_LOST_TOLD, /* nbd_break() */
};

struct nbd_config {
	uint32_t nr_links; /* at most NBD_MAX_LINKS; one per queue */
	uint64_t timeout_ns; /* of a request; 0: none */
	uint64_t window_ns; /* that one request waits in all; 0: for ever */
	int lost_fd; /* an eventfd that hears of every loss */
	uint32_t gather_bytes; /* writes up to this are copied: outgoing.c */
	uint64_t journal_bytes; /* 0: what may be lost is not remembered */
	void *journal; /* these, in memory: the target's first file */
	bool flushes; /* before another daemon goes on: the export has FLUSH */
};

struct nbd_status {
	enum nbd_state state;
	enum nbd_loss loss; /* the last one */
	int err; /* and its -errno, if it has one */
	uint64_t attached; /* descriptors that were used or put aside */
	uint32_t unanswered; /* requests that were sent or wait to be */
	uint32_t slow; /* that were sent, and may take a server long */
	uint64_t ended; /* requests, ever */
	uint64_t losses;
	bool may_still_write; /* at the last one writes were unanswered */
};

/* NULL without memory. */
struct nbd *nbd_new(const struct nbd_config *cfg);
void nbd_free(struct nbd *n); /* no queue runs any more */

/* The target of these is a struct nbd. */
const struct ublkd_target_ops *nbd_ops(void);

/*
 * A connection for a link that has none; the descriptor is taken over. What
 * waits is sent once more, from its beginning. When the link gives it up it is
 * not shut down: whoever made it hears the server out, on a descriptor of its
 * own, and ends it by stream_abort().
 */
void nbd_attach(struct nbd *n, uint32_t link, int fd);

/* Gives the link's connection up, if it has one. */
void nbd_break(struct nbd *n, uint32_t link);

/*
 * No connection any more: requests fail, those that wait and those to come,
 * until nbd_attach().
 */
void nbd_fail(struct nbd *n, uint32_t link);

/*
 * Whether the disk is about to end for good: no queue waits for a last flush
 * then, as it does where the next daemon shall not doubt what was written.
 */
void nbd_stopping(struct nbd *n, bool is);

/* Other limits than those of its nbd_config, from now on. */
void nbd_limits(struct nbd *n, uint64_t timeout_ns, uint64_t window_ns);

void nbd_look(struct nbd *n, uint32_t link, struct nbd_status *out);

/*
 * Whether writes were acknowledged that no flush has covered since; a server
 * that was started anew may have lost them.
 */
bool nbd_unflushed(const struct nbd *n);

/*
 * They are lost, and flushes say so: of each link the first that is answered
 * from here on fails.
 */
void nbd_fail_flush(struct nbd *n);

/*
 * Writes that a daemon of this disk had acknowledged before it died, and up
 * to which one they were flushed: the counting goes on there. Before any
 * queue runs.
 */
void nbd_inherit(struct nbd *n, uint64_t acked, uint64_t flushed);

/*
 * Those writes, in the order in which they were acknowledged: how many there
 * are; at most `max` are written. Their data is in the file that is the
 * target's first. Only while nothing is connected.
 */
uint32_t nbd_journal(struct nbd *n, struct nbd_entry *out, uint32_t max);

/* A flush was acknowledged that covers all up to this one, in that order. */
void nbd_note_flush(struct nbd *n, uint64_t order);

/* Whether the journal is not complete. */
bool nbd_journal_broken(const struct nbd *n);

#endif
