/* SPDX-License-Identifier: MIT */
/*
 * Order on stream sockets. A lane carries one SEND and one RECV at a time;
 * what comes meanwhile waits for its turn, first come, first served. So a
 * short transfer goes on before anything else does on that socket.
 *
 * Lanes are a queue's: no two queues may use one socket.
 */
#ifndef UBLKD_LANE_H
#define UBLKD_LANE_H

#include <stdbool.h>
#include <stdint.h>

enum lane_way { LANE_SEND, LANE_RECV };
#define LANE_WAYS 2

/* Whatever takes turns has one of these within. */
struct lane_turn {
	struct lane_turn *next;
};

struct lane_line {
	struct lane_turn *first; /* it is under way */
	struct lane_turn *last;
};

struct lane {
	int fd; /* of our own, to break it; -1: the file is no stream socket */
	int error; /* -errno: the stream was broken off */
	bool lingers; /* lane_break() leaves the other side its way out */
	struct lane_line lines[LANE_WAYS];
};

/*
 * One lane for each of `n` files; NULL without memory. Stream sockets are
 * made blocking, so that io_uring waits for them.
 */
struct lane *lanes_new(const int *files, uint32_t n);
void lanes_free(struct lane *lanes, uint32_t n);

/*
 * A new socket for a lane that is broken or was none; -errno. When this one
 * breaks it is closed towards the other side only: whoever made the connection
 * has a descriptor of it as well, hears the other side out, and then calls
 * stream_abort().
 */
int lane_attach(struct lane *l, int fd);

/* Stands in line; whether it is its turn at once. */
bool lane_enter(struct lane *l, enum lane_way way, struct lane_turn *t);

/* Whoever had the turn is done: whose turn it is now, or NULL. */
struct lane_turn *lane_leave(struct lane *l, enum lane_way way);

/*
 * Nothing more goes over it: its stream is not what the other side expects.
 * What is under way ends, unless the lane lingers. The first error is kept.
 */
void lane_break(struct lane *l, int err);

/*
 * What has arrived already, without waiting: bytes; -EAGAIN: nothing, or
 * somebody stands in line for it; -errno, -ECONNRESET at the end.
 */
int lane_recv_now(const struct lane *l, void *memory, uint32_t len);

/*
 * The end of a connection, both ways and at once. Nothing that the other side
 * has not received yet is delivered any more.
 */
void stream_abort(int fd);

/*
 * As lane_break(), but what has been sent arrives, and `last` behind it if
 * there is room and nothing else is half sent.
 */
void lane_end(struct lane *l, const void *last, uint32_t len);

/*
 * Whether SEND and RECV take registered buffers here: 1, 0, or -errno. Done
 * on a socketpair and a ring of their own: on a disk's own stream the answer
 * would come too late.
 */
int lane_probe(void);

#endif
