/* SPDX-License-Identifier: MIT */
/*
 * The last requests of one queue, in the page of its counters: written by the
 * queue's thread, read by anybody at any time. An entry is whole if it had
 * the same number, which is not 0, before and after it was read.
 */
#ifndef UBLKD_RECORDER_H
#define UBLKD_RECORDER_H

#include <stdint.h>

/* A power of two: 1,000 stay whole while others are being written. */
#define RECORDER_ENTRIES 1024

struct recorded {
	uint64_t number; /* from 1; 0: it is being written, or never was */
	uint64_t ended; /* ns of CLOCK_MONOTONIC */
	uint64_t took; /* ns */
	uint64_t start_sector;
	uint32_t op_flags; /* UBLK_IO_OP_* and UBLK_IO_F_* */
	uint32_t nr_sectors;
	int32_t result; /* bytes, or -errno */
	uint16_t members;
	uint8_t shorts; /* transfers that went on; 255: or more */
	uint8_t lease; /* enum lease_kind */
};

struct recorder {
	uint64_t last; /* number of the newest entry */
	struct recorded entries[RECORDER_ENTRIES];
};

/* The place of the next entry; whoever reads it until it is closed throws it away. */
struct recorded *recorder_open(struct recorder *r);
void recorder_close(struct recorder *r, struct recorded *e);

#endif
