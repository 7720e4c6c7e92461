/* SPDX-License-Identifier: MIT */
#include "recorder.h"

struct recorded *recorder_open(struct recorder *r)
{
	struct recorded *e = &r->entries[r->last % RECORDER_ENTRIES];

	__atomic_store_n(&e->number, 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE); /* 0 is seen first */
	return e;
}

void recorder_close(struct recorder *r, struct recorded *e)
{
	__atomic_store_n(&e->number, r->last + 1, __ATOMIC_RELEASE);
	__atomic_store_n(&r->last, r->last + 1, __ATOMIC_RELEASE);
}
