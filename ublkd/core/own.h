/* SPDX-License-Identifier: MIT */
/*
 * What a target does on a queue of its own accord and not for one request:
 * it hears of other threads, has connections that come and go, receives and
 * sends on them, and looks at the clock. All but own_wake() belongs into the
 * queue's thread.
 */
#ifndef UBLKD_OWN_H
#define UBLKD_OWN_H

#include <stdint.h>

/* One queue, as its target sees it. */
struct own;

/* How many of its own transfers and delays a target may have at a time. */
#define OWN_MEMBERS 4

uint16_t own_depth(const struct own *o); /* tags, numbered from 0 */
uint16_t own_qid(const struct own *o);

/* The queue's counters: those of connections are the target's to keep. */
struct queue_stats *own_stats(const struct own *o);

/* The group of a tag, whatever it is at. */
struct group *own_group(const struct own *o, uint16_t tag);

/* From any thread: ops->on_wake() follows. Needs UBLKD_ANSWERS_LATE. */
void own_wake(struct own *o);

/*
 * A connected stream socket takes a fixed slot, which is empty or whose lane
 * is broken and has nobody in line; the caller keeps the descriptor. It is
 * not shut down when its lane breaks: see lane_attach(). 0 or -errno.
 */
int own_attach(struct own *o, uint16_t file, int fd);

/* The lane is broken: what is under way on it fails. */
void own_break(struct own *o, uint16_t file, int err);

/*
 * The last that goes over a lane, as far as that needs no waiting, and its
 * end. The other side reads it before it sees that end.
 */
void own_farewell(struct own *o, uint16_t file, const void *memory,
		  uint32_t len);

/*
 * A transfer with memory that must last, in its turn on the lane, and whole.
 * ops->on_own() has the bytes or -errno, -ECONNRESET where the other side
 * has closed. `id` is below OWN_MEMBERS and free. -errno if it cannot begin.
 */
int own_recv(struct own *o, unsigned int id, uint16_t file, void *memory,
	     uint32_t len);
int own_send(struct own *o, unsigned int id, uint16_t file, const void *memory,
	     uint32_t len, uint32_t flags);

/*
 * Without waiting and without on_own(): bytes, of what has arrived already and
 * nobody stands in line for; -EAGAIN: nothing; -errno, -ECONNRESET as above.
 */
int own_recv_now(const struct own *o, uint16_t file, void *memory,
		 uint32_t len);

/* on_own() with 0, once the time is over. */
void own_delay(struct own *o, unsigned int id, uint64_t ns);

#endif
