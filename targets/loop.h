/* SPDX-License-Identifier: MIT */
/*
 * The loop target's C side: it serves what loop.py has opened and decided.
 */
#ifndef UBLKD_TARGETS_LOOP_H
#define UBLKD_TARGETS_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct ublkd_target_ops;

/* One per device, shared by its queues. */
struct loop {
	uint64_t offset; /* bytes: where the disk starts in the backing */
	bool read_only;
	bool block_device;
	/* learnt while serving: what the backing refused once */
	bool no_punch_hole;
	bool no_zero_range;
};

const struct ublkd_target_ops *loop_ops(void);

/* Members that one request may need: fallocate, zeroes instead, fsync. */
#define LOOP_MAX_MEMBERS 4

/*
 * What direct I/O on `fd` asks for, in bytes, by STATX_DIOALIGN (6.1):
 * 0; -EOPNOTSUPP where the kernel does not say; -EINVAL where it says that
 * the file cannot do direct I/O.
 */
int loop_dio_align(int fd, uint32_t *mem, uint32_t *offset);

/* Whether a block device takes discards by io_uring (6.12): 0 or -errno. */
int loop_probe_discard(int fd);

/*
 * Whether the file can free a range: 0 or -errno. Asks beyond the end, so
 * nothing changes.
 */
int loop_probe_punch_hole(int fd, uint64_t beyond_end);

#endif
