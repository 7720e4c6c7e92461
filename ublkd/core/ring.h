/* SPDX-License-Identifier: MIT */
/*
 * The io_uring of one queue: how it is set up and how an SQE is had.
 * A ring is made and used by one thread, the queue's own.
 */
#ifndef UBLKD_RING_H
#define UBLKD_RING_H

#include <liburing.h>
#include <stdbool.h>

struct ring {
	struct io_uring uring;
	int error; /* the first failure to submit; ends the queue */
	struct io_uring_sqe nowhere; /* what ring_sqe() gives after that */
};

/*
 * `sqes` is a wish, `cqes` is a promise: room for that many completions
 * at once. Files go to fixed slots 0..nr_files-1. Returns 0 or -errno.
 */
int ring_init(struct ring *r, unsigned int sqes, unsigned int cqes,
	      const int *files, unsigned int nr_files);
void ring_deinit(struct ring *r);

/* Another file in a fixed slot; what is under way keeps the one it had. */
int ring_set_file(struct ring *r, unsigned int slot, int fd);

/*
 * A cleared SQE. Cannot fail: with the queue full it submits what is there.
 * If even that is impossible, r->error is set and the SQE goes nowhere.
 */
struct io_uring_sqe *ring_sqe(struct ring *r);

/*
 * Makes sure that the next `n` SQEs go to the kernel in one submission, one
 * behind the other; `n` is far below the size of any ring.
 */
void ring_reserve(struct ring *r, unsigned int n);

/*
 * user_data: the tag in the low 16 bits, and what the SQE was for. A member
 * has its index above the tag and none of these bits.
 */
#define UD_LEADER (1ULL << 63) /* FETCH or COMMIT_AND_FETCH */
#define UD_LEND (1ULL << 62) /* the pages' way into the buffer table */
#define UD_UNLEND (1ULL << 61) /* and out of it */
#define UD_WAKE (1ULL << 60) /* another thread has something to tell */

/* Submits all that is there, or sets r->error. */
void ring_submit_all(struct ring *r);

/* Submits, and has the kernel tell what it has to tell; whether that is any. */
bool ring_submit_and_look(struct ring *r);

/* Submits, and waits for at least one completion; 0 or -errno. */
int ring_submit_and_wait(struct ring *r);

#endif
