/* SPDX-License-Identifier: MIT */
/*
 * Counters of one queue and its last requests, in pages that others may map
 * and read while the queue runs. Every counter is an aligned 64-bit word with
 * one writer.
 */
#ifndef UBLKD_STATS_H
#define UBLKD_STATS_H

#include <stdint.h>

#include "recorder.h"

#define STATS_MAGIC 0x7374617473000003ULL /* the layout's version is its end */
#define STATS_OPS 6 /* indexed by UBLK_IO_OP_* up to WRITE_ZEROES */
#define STATS_BUCKETS 40 /* log2 of nanoseconds */

struct queue_stats {
	uint64_t magic;
	uint64_t started; /* ns of CLOCK_MONOTONIC */
	uint64_t turns; /* of the loop, idle ones too: see queue_poke() */
	uint64_t requests[STATS_OPS];
	uint64_t bytes[STATS_OPS]; /* committed */
	uint64_t errors[STATS_OPS];
	uint64_t short_members; /* transfers that needed another issue */
	uint64_t again_members; /* -EAGAIN or -EINTR, issued again */
	uint64_t requeues; /* requests committed in part */
	uint64_t fallbacks; /* requests whose pages were not lent */
	uint64_t fua; /* requests that had to be durable when they ended */
	uint64_t failed_files; /* bit n: fixed file n, done without */
	uint64_t in_flight;
	uint64_t lost_connections;
	uint64_t without_connection; /* 1: at the moment there is none */
	/* nbd's: of all queues' acknowledged writes, the last one of this */
	uint64_t acked_writes;
	uint64_t flushed_writes; /* and up to which one it has flushed them */
	uint64_t latency[STATS_OPS][STATS_BUCKETS];
	struct recorder recorder;
};

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t stats_now(void);

/* A request begins; `flags` are its UBLK_IO_F_*. */
void stats_begin(struct queue_stats *s, uint32_t flags);

/* A request of `op` ends with `result` after `ns`; `size` bytes were asked. */
void stats_end(struct queue_stats *s, unsigned int op, uint64_t size,
	       int result, uint64_t ns);

#endif
