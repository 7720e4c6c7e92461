/* SPDX-License-Identifier: MIT */
/*
 * What a server has acknowledged and may forget: every write since the last
 * flush, with its data, in the order in which they were acknowledged. So a
 * server that lost its cache can be told all of it again. Bounded: without
 * room a write has to wait for a flush.
 *
 * Its data is in a file in memory, so that lent pages can be written there.
 */
#ifndef UBLKD_NBD_JOURNAL_H
#define UBLKD_NBD_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

struct journal;

/* A write, a trim or a zeroing. */
struct nbd_entry {
	uint64_t order; /* of the acknowledgement, from 1; 0: there is none */
	uint64_t offset; /* bytes, on the disk */
	uint32_t length; /* bytes */
	uint16_t command;
	uint16_t flags;
	uint64_t position; /* of a WRITE's data: bytes, in the file */
};

/* `bytes` of data at most; NULL without memory. */
struct journal *journal_new(uint64_t bytes);
void journal_free(struct journal *j);

/* Room for a request, before it is sent; a ticket, or -1: there is none. */
int64_t journal_take(struct journal *j, const struct nbd_entry *e);
uint64_t journal_position(const struct journal *j, int64_t ticket);

/* The request was acknowledged, as number `order`. */
void journal_keep(struct journal *j, int64_t ticket, uint64_t order);

/* It was not, or will be sent with another ticket. */
void journal_drop(struct journal *j, int64_t ticket);

/* A flush has covered all up to this number. */
void journal_flushed(struct journal *j, uint64_t order);

/* Whether a flush would make room. */
bool journal_can_shrink(struct journal *j);

/* What is kept, in its order: how much there is; at most `max` are written. */
uint32_t journal_list(struct journal *j, struct nbd_entry *out, uint32_t max);

#endif
