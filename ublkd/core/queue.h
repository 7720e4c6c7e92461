/* SPDX-License-Identifier: MIT */
/*
 * One hardware queue: one thread, one io_uring, `depth` tags.
 *
 * queue_new() and queue_free() may be called by any thread, before the
 * queue's thread starts and after it has ended; queue_run() is the thread.
 */
#ifndef UBLKD_QUEUE_H
#define UBLKD_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "lease.h"
#include "stats.h"
#include "target.h"

struct queue;

struct queue_config {
	int dev_fd; /* /dev/ublkcN, open for as long as the queue is */
	uint16_t qid;
	uint16_t depth; /* tags */
	uint32_t max_io; /* bytes of the largest request */
	uint32_t block; /* bytes of a logical block */
	uint32_t align; /* bytes that a member's file offset must keep to */
	enum lease_kind lease;
	uint32_t lease_slots; /* buffer table entries; normally `depth` */
	uint16_t max_members; /* that one request may need */
	const int *files; /* the target's; they become slots 1, 2, ... */
	uint32_t nr_files;
	const struct ublkd_target_ops *ops;
	void *target;
	struct queue_stats *stats; /* zeroed by the caller */
	bool fixed_streams; /* lane_probe() */
	int notify_fd; /* an eventfd that hears of the first failure; -1: none */
};

/*
 * 0 or -errno; the config and its files are copied. -E2BIG: more members at
 * once than an io_uring can tell of.
 */
int queue_new(const struct queue_config *cfg, struct queue **out);
void queue_free(struct queue *q);

/*
 * Serves until the driver has stopped the device; 0, or the -errno of the
 * first failure. After a failure every request is answered with -EIO, and it
 * is up to whoever hears of it to stop the device. Blocks; call it in a
 * thread of its own.
 */
int queue_run(struct queue *q);

/* The first failure so far, -errno; 0: none. From any thread. */
int queue_error(const struct queue *q);

/*
 * Has the queue's thread make a turn of its loop, which stats->turns counts,
 * if it can: whoever calls this and sees no turn knows that it is stuck. From
 * any thread, before queue_free().
 */
void queue_poke(struct queue *q);

/*
 * Waits until every tag of a running queue has its FETCH in the driver: 0;
 * -errno if the queue ended before, -ETIMEDOUT after `timeout_ms`.
 */
int queue_wait_ready(struct queue *q, unsigned int timeout_ms);

#endif
