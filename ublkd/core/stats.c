/* SPDX-License-Identifier: MIT */
#include "stats.h"

#include <time.h>

#include "uapi.h"

uint64_t stats_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
}

void stats_begin(struct queue_stats *s, uint32_t flags)
{
	s->in_flight++;
	if (flags & UBLK_IO_F_FUA)
		s->fua++;
}

static unsigned int bucket(uint64_t ns)
{
	unsigned int b = 63U - (unsigned int)__builtin_clzll(ns | 1);

	return b < STATS_BUCKETS ? b : STATS_BUCKETS - 1;
}

void stats_end(struct queue_stats *s, unsigned int op, uint64_t size,
	       int result, uint64_t ns)
{
	s->in_flight--;
	if (op >= STATS_OPS)
		return;
	s->requests[op]++;
	s->latency[op][bucket(ns)]++;
	if (result < 0)
		s->errors[op]++;
	else if (op < 2)
		s->bytes[op] += (uint64_t)result;
	else
		s->bytes[op] += size;
	if (op < 2 && result > 0 && (uint64_t)result < size)
		s->requeues++;
}
